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
        self.padded = nn.Conv2d(12, 12, 5, padding=2, groups=12)  # on a map of 3 x 3 pixels
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        for each in self.parameters():
            nn.init.uniform_(each, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.padded(torch.relu(self.depthwise(torch.relu(self.grouped(torch.relu(self.first(x)))))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


LAYERS = ("first", "grouped", "depthwise", "padded", "hidden", "head")


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


def inputs_of(net: nn.Module, images: np.ndarray) -> dict[str, Tensor]:
    """The input of each layer in PyTorch."""
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))  # type: ignore[misc]
        for name, layer in net.named_children()
    ]
    with torch.no_grad():
        net(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    return seen


def test_means_are_those_of_the_inputs(net: Net, graph: ModelProto, images: np.ndarray) -> None:
    seen, means = inputs_of(net, images), _bias.input_means(graph, images)
    layers = [node for node in graph.graph.node if node.op_type in ("Conv", "Gemm")]
    assert {node.name.partition("/")[0] for node in layers} == set(LAYERS)
    for node in layers:
        expected = seen[node.name.partition("/")[0]].mean(0)
        np.testing.assert_allclose(means[node.input[0]], expected, rtol=1e-5, atol=1e-6)


def test_biases_take_back_the_shift(net: Net, graph: ModelProto, images: np.ndarray, ranges: _quantise.Ranges) -> None:
    """The shift is that of PyTorch's layer, padding included, over all images."""
    seen, means = inputs_of(net, images), _bias.input_means(graph, images)
    plain, corrected = (constants(_quantise.quantise(graph, replace(ranges, means=each))) for each in ({}, means))
    for name in LAYERS:
        layer, x = getattr(net, name), seen[name].double()
        error = torch.from_numpy(plain[name]["weight"]) - layer.weight.detach().double()
        if isinstance(layer, nn.Conv2d):
            moved = F.conv2d(x, error, None, layer.stride, layer.padding, layer.dilation, layer.groups).mean((0, 2, 3))
        else:
            moved = F.linear(x, error).mean(0)
        assert moved.abs().max() > 1e-4
        np.testing.assert_array_equal(corrected[name]["weight"], plain[name]["weight"])
        np.testing.assert_allclose(plain[name]["bias"] - corrected[name]["bias"], moved.numpy(), atol=1e-5)


def test_files_for_a_benchmark_are_corrected(graph: ModelProto, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quantise, "saturate", lambda *_: True)
    (found,) = _quantise.calibrate(graph, images, method="minmax", counts=[40])
    expected = _quantise.quantise(graph, replace(found, narrow=True, means=_bias.input_means(graph, images)))
    for name, each in constants(_quantise.calibrated(graph, images)).items():
        np.testing.assert_array_equal(each["bias"], constants(expected)[name]["bias"])


def test_outputs_are_nearer(graph: ModelProto, images: np.ndarray, ranges: _quantise.Ranges) -> None:
    exact = _quantise.outputs(graph, images)
    means = _bias.input_means(graph, images)
    plain, corrected = (
        _quantise.outputs(_quantise.quantise(graph, replace(ranges, means=each)), images) - exact for each in ({}, means)
    )
    assert abs(corrected).mean() < 0.9 * abs(plain).mean()


def test_layers_in_float32_keep_their_bias(graph: ModelProto, images: np.ndarray, ranges: _quantise.Ranges) -> None:
    names = [name for name in _graph.model_nodes(graph) if not name.startswith(("grouped/", "head/"))]
    means = _bias.input_means(graph, images)
    made = constants(_quantise.quantise(graph, replace(ranges, means=means), names))
    for name in ("grouped", "head"):
        np.testing.assert_array_equal(made[name]["bias"], constants(graph)[name]["bias"])
    assert np.abs(made["first"]["bias"] - constants(graph)["first"]["bias"]).max() > 1e-4


class Twice(nn.Module):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        nn.init.uniform_(self.layer.weight, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(torch.relu(self.layer(x)))).mean((2, 3))


def test_a_bias_that_two_layers_read_is_unchanged(images: np.ndarray) -> None:
    """With the other layer in float32, both read the same 8 bit weight and bias, but their shifts differ."""
    graph = _onnx.trace(_graph.Exported(Twice().eval(), (0, 0, 0), (1, 1, 1), size=12, stored=12, preprocess="none"))
    (found,) = _quantise.calibrate(graph, images, method="minmax", counts=[40])
    _, second = (node.name for node in graph.graph.node if node.op_type == "Conv")
    means = _bias.input_means(graph, images)
    plain, partly = (
        _quantise.outputs(
            _quantise.quantise(graph, replace(found, means=each), [n for n in _graph.model_nodes(graph) if n != second]), images
        )
        for each in ({}, means)
    )
    np.testing.assert_array_equal(partly, plain)


class Folded(nn.Module):
    """A linear layer directly on the input, whose rows are more than the images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(12, 6), nn.Linear(6, 4)
        for each in self.parameters():
            nn.init.uniform_(each, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(x.reshape(-1, 12))).reshape(-1, 36, 6).mean(1))


@pytest.mark.parametrize("net", [Folded(), nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Linear(8, 3))])
def test_linear_layers_on_the_input(net: nn.Module, images: np.ndarray) -> None:
    graph = _onnx.trace(_graph.Exported(net.eval(), (0, 0, 0), (1, 1, 1), size=12, stored=12, preprocess="none"))
    seen, means = inputs_of(net, images), _bias.input_means(graph, images)
    layers = [node for node in graph.graph.node if node.op_type == "Gemm"]
    assert len(layers) == 2
    for node in layers:
        np.testing.assert_allclose(means[node.input[0]], seen[node.name.partition("/")[0]].mean(0), rtol=1e-5, atol=1e-6)
    (found,) = _quantise.calibrate(graph, images, method="minmax", counts=[40])
    exact = _quantise.outputs(graph, images)
    wrong = [
        abs(_quantise.outputs(_quantise.quantise(graph, replace(found, narrow=True, means=each)), images) - exact).mean()
        for each in ({}, means)
    ]
    assert wrong[1] < 1.01 * wrong[0]
