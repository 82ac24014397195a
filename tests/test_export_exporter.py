"""Exports that PyTorch's exporter is known to have got wrong: right with the version here, and refused where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import zoo.export
from zoo.errors import DisagreeError
from zoo.export import onnx_fp32

pytest.importorskip("onnxruntime")


def net(block: Any) -> nn.Module:
    """A ResNet of one block a stage, as it comes from its constructor: many BatchNorms with the same weights."""
    torch.manual_seed(0)
    return ResNet(block, [1, 1, 1, 1], num_classes=5).eval()


@pytest.mark.parametrize("block", [Bottleneck, BasicBlock])
def test_folded_biases_are_each_convolutions_own(block: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch#166797, a ResNet-50 with the bias of another convolution, and #169178, a ResNet-18 that is wrong at any batch."""
    module, inputs = net(block), torch.randn(9, 3, 32, 32)
    receipt = zoo.export.onnx(module, tmp_path / "x.onnx", input=(3, 32, 32), images=inputs)
    assert (receipt.agree, receipt.n, receipt.batches) == (9, 9, (1, 2, 7))
    graph = onnx.load(receipt.path).graph
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(each, nn.Conv2d) for each in module.modules())
    for node in convolutions:
        assert tensors[node.input[2]].shape == (len(tensors[node.input[1]]),), node.name
    if block is BasicBlock:
        refused(module, inputs, onnx.load(receipt.path), tmp_path, monkeypatch)


def refused(
    module: nn.Module, inputs: torch.Tensor, graph: onnx.ModelProto, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same graph with a convolution's bias moved is not published."""
    names = {node.name.partition("/")[0]: node.input[2] for node in graph.graph.node if node.op_type == "Conv"}
    tensors = {each.name: each for each in graph.graph.initializer}
    one = tensors[names["layer2.0.conv1"]]
    moved = onnx.numpy_helper.to_array(one) + np.float32(0.5)
    name = f"{one.name}.other"
    graph.graph.initializer.append(onnx.numpy_helper.from_array(moved, name))
    for node in graph.graph.node:
        if node.name.startswith("layer2.0.conv1/"):
            node.input[2] = name
    monkeypatch.setattr(onnx_fp32, "trace", lambda *_, **__: graph)
    with pytest.raises(DisagreeError, match=r"first node that differs: layer2\.0\.conv1/\w+ \(Conv\)\); nothing"):
        zoo.export.onnx(module, folder / "y.onnx", input=(3, 32, 32), images=inputs)
    assert not (folder / "y.onnx").exists()
