"""Biases of an 8 bit graph take back the shift that rounded weights cause."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from zoo.export import _bias, _graph, _onnx, _quantise

pytest.importorskip("onnxruntime")


class Net(nn.Module):
    """Grouped, depthwise, padded and strided convolutions and two linear layers; all weights positive, so that errors do not cancel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, stride=2)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        for each in self.parameters():
            nn.init.uniform_(each, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(torch.relu(self.grouped(torch.relu(self.first(x)))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


LAYERS = ("first", "grouped", "depthwise", "hidden", "head")


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


@pytest.fixture(scope="module")
def graph(net: Net) -> ModelProto:
    return _onnx.trace(_graph.Exported(net, (0, 0, 0), (1, 1, 1), size=12, stored=12, preprocess="none"))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((40, 3, 12, 12), dtype=np.float32)


@pytest.fixture(scope="module")
def ranges(graph: ModelProto, images: np.ndarray) -> _quantise.Ranges:
    (found,) = _quantise.calibrate(graph, images, method="minmax", counts=[40])
    return replace(found, narrow=True)  # larger errors


def constants(graph: ModelProto) -> dict[str, dict[str, np.ndarray]]:
    """Weight and bias of each layer in float64."""
    stored = {each.name: numpy_helper.to_array(each).astype(np.float64) for each in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            value, scale = stored[node.input[0]], stored[node.input[1]]
            stored[node.output[0]] = value * scale.reshape(-1, *[1] * (value.ndim - 1)) if scale.ndim else value * scale
    return {
        node.name.partition("/")[0]: {"weight": stored[node.input[1]], "bias": stored[node.input[2]]}
        for node in graph.graph.node
        if node.op_type in ("Conv", "Gemm")
    }


def test_means_are_those_of_the_inputs(net: Net, graph: ModelProto, images: np.ndarray) -> None:
    seen: dict[str, Tensor] = {}
    hooks = [
        getattr(net, name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))  # type: ignore[misc]
        for name in LAYERS
    ]
    net(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    means = _bias.input_means(graph, images)
    for node in graph.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            exact = (
                seen[node.name.partition("/")[0]].flatten(2) if node.op_type == "Conv" else seen[node.name.partition("/")[0]]
            )
            expected = exact.mean((0, 2) if node.op_type == "Conv" else 0).detach().numpy()
            np.testing.assert_allclose(means[node.input[0]], expected, rtol=1e-5, atol=1e-6)


def test_biases_take_back_the_shift(net: Net, graph: ModelProto, images: np.ndarray, ranges: _quantise.Ranges) -> None:
    means = _bias.input_means(graph, images)
    plain, corrected = (constants(_quantise.quantise(graph, replace(ranges, means=each))) for each in ({}, means))
    inputs = {node.name.partition("/")[0]: node.input[0] for node in graph.graph.node}
    for name in LAYERS:
        layer, mean = getattr(net, name), torch.from_numpy(means[inputs[name]])
        error = torch.from_numpy(plain[name]["weight"]) - layer.weight.detach().double()
        if isinstance(layer, nn.Conv2d):
            flat = mean.reshape(1, -1, 1, 1).expand(1, -1, 3, 3)
            shift = F.conv2d(flat, error, groups=layer.groups).flatten()
        else:
            shift = F.linear(mean, error)
        assert shift.abs().max() > 1e-4
        np.testing.assert_array_equal(corrected[name]["weight"], plain[name]["weight"])
        np.testing.assert_allclose(plain[name]["bias"] - corrected[name]["bias"], shift.numpy(), atol=1e-5)


def test_outputs_are_nearer(graph: ModelProto, images: np.ndarray, ranges: _quantise.Ranges) -> None:
    exact = _quantise.outputs(graph, images)
    means = _bias.input_means(graph, images)
    plain, corrected = (
        _quantise.outputs(_quantise.quantise(graph, replace(ranges, means=each)), images) - exact for each in ({}, means)
    )
    assert abs(corrected).mean() < 0.75 * abs(plain).mean()


def test_layers_in_float32_keep_their_bias(graph: ModelProto, images: np.ndarray, ranges: _quantise.Ranges) -> None:
    names = [name for name in _graph.model_nodes(graph) if not name.startswith(("grouped/", "head/"))]
    means = _bias.input_means(graph, images)
    made = constants(_quantise.quantise(graph, replace(ranges, means=means), names))
    for name in ("grouped", "head"):
        np.testing.assert_array_equal(made[name]["bias"], constants(graph)[name]["bias"])
    assert np.abs(made["first"]["bias"] - constants(graph)["first"]["bias"]).max() > 1e-4


def test_layers_that_share_a_bias_take_back_their_own_shift(images: np.ndarray) -> None:
    graph = _onnx.trace(_graph.Exported(Net().eval(), (0, 0, 0), (1, 1, 1), size=12, stored=12, preprocess="none"))
    layers = {node.name.partition("/")[0]: node for node in graph.graph.node}
    layers["depthwise"].input[2] = layers["grouped"].input[2]
    (found,) = _quantise.calibrate(graph, images, method="minmax", counts=[40])
    means = _bias.input_means(graph, images)
    plain, corrected = (constants(_quantise.quantise(graph, replace(found, means=each))) for each in ({}, means))
    for name in ("grouped", "depthwise"):
        error = plain[name]["weight"] - constants(graph)[name]["weight"]
        shift = _bias._shift(layers[name], error, means[layers[name].input[0]])
        np.testing.assert_allclose(plain[name]["bias"] - corrected[name]["bias"], shift, atol=1e-5)
