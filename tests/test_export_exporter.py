"""Known wrong exports of PyTorch: right in zoo's file, and a file with the same fault is not published.

pytorch#166797, #169178 and #174042 are one fault: onnxscript before 0.5.7 named the bias of a fused BatchNorm after the fused layer's
input, so that of two layers that read one tensor (a residual block's first convolution and its shortcut) one got the other's bias.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import zoo.export
from zoo.errors import DisagreeError, FileError
from zoo.export import _onnx, _tracing, onnx_fp32
from zoo.training import signals

pytest.importorskip("onnxruntime")


class Block(nn.Module):
    """The first block of a stage: ``conv1`` and ``shortcut`` read one tensor, each with its BatchNorm."""

    def __init__(self, branch: int, shortcut: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, branch, 3, padding=1, bias=False), nn.BatchNorm2d(branch)
        self.conv2, self.bn2 = nn.Conv2d(branch, shortcut, 1, bias=False), nn.BatchNorm2d(shortcut)
        self.shortcut = nn.Sequential(nn.Conv2d(3, shortcut, 1, bias=False), nn.BatchNorm2d(shortcut))
        self.fc = nn.Linear(shortcut, 5)
        shift(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.relu(inner + self.shortcut(x)).mean((2, 3)))


class Linears(nn.Module):
    """The same with linear layers (#174042)."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(6, one, bias=False), nn.BatchNorm1d(one)
        self.fc2, self.bn2 = nn.Linear(6, other, bias=False), nn.BatchNorm1d(other)
        shift(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return torch.cat([torch.relu(self.bn1(self.fc1(x))), self.bn2(self.fc2(x))], 1)


class Tied(nn.Module):
    """One convolution used twice, with a BatchNorm for each use: there is no name for the second fused weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        shift(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(torch.relu(self.bn1(self.conv(x))))).mean((2, 3))


def shift(module: nn.Module) -> None:
    """Statistics as after training, which make each fused bias another."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)


MODULES = [
    (Block(4, 8), (3, 6, 6)),  # ResNet-50, #166797
    (Block(4, 4), (3, 6, 6)),  # ResNet-18, #169178
    (Linears(4, 6), (6,)),
    (Linears(4, 4), (6,)),
    (Tied(), (3, 6, 6)),
]


@pytest.mark.parametrize(("module", "shape"), MODULES)
def test_a_fused_layer_has_its_own_bias(module: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    images = torch.randn(20, *shape)
    receipt = zoo.export.onnx(module, tmp_path / "x.onnx", input=shape, images=images)
    assert receipt.agree == 20
    wanted = module.eval()(images).detach().numpy()
    np.testing.assert_allclose(onnx_fp32.answer(receipt.path)(images.numpy()), wanted, atol=1e-5)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of onnxscript 0.5.6: the first layer has the bias of the second."""
    traced = _onnx.trace

    def planted(*args: Any, **named: Any) -> onnx.ModelProto:
        graph = traced(*args, **named)
        layers = [node for node in graph.graph.node if node.op_type in ("Conv", "Gemm") and node.input[0] == "relu"]
        assert len(layers) == 2
        layers[0].input[2] = layers[1].input[2]
        return graph

    monkeypatch.setattr(_onnx, "trace", planted)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (Block(4, 4), (3, 6, 6), r"first node that differs: conv1/\w+ \(Conv\), in module conv1: Conv2d\)"),
        (Linears(4, 4), (6,), r"first node that differs: fc1/\w+ \(Gemm\), in module fc1: Linear\)"),
        (Block(4, 8), (3, 6, 6), r"exported graph cannot run \(.*conv1/.*\); nothing published"),
    ],
)
def test_another_layers_bias_is_refused(
    module: nn.Module, shape: tuple[int, ...], message: str, old: None, tmp_path: Path
) -> None:
    with pytest.raises(DisagreeError, match=message) as caught:
        zoo.export.onnx(module, tmp_path / "x.onnx", input=shape)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_resnets(name: str, tmp_path: Path) -> None:
    """The networks of the reports, with statistics as after training."""
    torchvision = pytest.importorskip("torchvision")
    module = torchvision.models.get_model(name, weights=None)
    shift(module)
    receipt = zoo.export.onnx(module, tmp_path / "x.onnx", input=(3, 64, 64), images=torch.randn(16, 3, 64, 64))
    assert (receipt.agree, receipt.n) == (16, 16)


class Branching(nn.Module):
    """A branch on the data, which no tracer follows."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            x = 2 * x
        return x.mean((2, 3))


class Bessel(nn.Module):
    """An operator that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(x).mean((2, 3))


LINE = Branching.forward.__code__.co_firstlineno + 1


@pytest.mark.parametrize(
    ("module", "fmt", "message"),
    [
        (Branching(), "onnx", rf"traced \(.*{Path(__file__).name}:{LINE}, a branch or size depends on the data\); use torch.where"),
        (Branching(), "pt2", rf"traced \(.*{Path(__file__).name}:{LINE}, a branch or size depends on the data\); use torch.where"),
        (Bessel(), "onnx", r"traced \(ONNX lacks the operator prims\.bessel_i0e\); use other operators in the model, or --format pt2"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_traced(
    module: nn.Module, fmt: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileError, match=message) as caught:
        zoo.export.program(module, tmp_path / "model", fmt=fmt, input=(3, 8, 8))
    assert str(caught.value).isprintable()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert [line.split()[0] for line in printed.err.splitlines()] == ["trace"]
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_pytorch_exports_is_no_failure_of_it(tmp_path: Path) -> None:
    """PyTorch wraps every exception of its exporter in its own, whose text is a report of a hundred lines."""

    class Signalled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.compiler.is_exporting():
                os.kill(os.getpid(), signal.SIGTERM)
            return x.mean((2, 3))

    with signals.handled(), pytest.raises(signals.Interrupted, match="SIGTERM"):
        zoo.export.onnx(Signalled(), tmp_path / "model.onnx", input=(3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_a_signal_while_pytorch_imports_its_tracer_is_no_failure_of_the_model() -> None:
    """The half-imported module raises an AttributeError over the signal."""

    def half_imported() -> None:
        try:
            raise signals.Interrupted(signal.SIGINT)
        except signals.Interrupted:
            raise AttributeError("module 'torch._dynamo' has no attribute 'exc'")  # noqa: B904

    with pytest.raises(signals.Interrupted, match="SIGINT"), _tracing.tracing():
        half_imported()
