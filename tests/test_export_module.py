"""Any module is exported with the same checks as a run; one that does not fit is a one-line error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_export import Tiny, facts, images, run_of
from torch import Tensor, nn

import zoo.export
from zoo import predictor
from zoo.errors import DisagreeError, FileError, UsageError
from zoo.export import _job, _onnx, _verify, onnx_fp32

pytest.importorskip("onnxruntime")


class Vector(nn.Module):
    """A module that does not accept images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return images(32).test.images


def test_floats_as_the_module_takes_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Vector().train()
    inputs = torch.randn(20, 6)
    receipt = zoo.export.onnx(module, tmp_path / "x.onnx", input=(6,), images=inputs, classes=("a", "b", "c"))
    assert (receipt.agree, receipt.n, receipt.preprocess, receipt.images) == (20, 20, "none", "the given images")
    assert module.training, "the module stays as it is"
    session = onnx_fp32.answer(receipt.path)
    np.testing.assert_allclose(session(inputs.numpy()), module(inputs).detach().numpy(), atol=1e-6)
    found = facts(receipt.path)
    assert (found["model"], found["classes"]) == ("Vector", '["a", "b", "c"]')
    assert [check.state for check in _verify.verify(receipt.path)] == ["ok", "ok", "ok", "not run"]


def test_uint8_images_with_targets(tmp_path: Path, pixels: np.ndarray) -> None:
    """The file normalises its input, the predictor reads it, and its accuracy is measured."""
    torch.manual_seed(0)
    targets = images(32).test.targets
    receipt = zoo.export.onnx(
        Tiny(), tmp_path / "x.onnx", input=(3, 32, 32), images=pixels, targets=targets, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2),
        preprocess="normalize",
    )  # fmt: skip
    assert receipt.test is not None
    assert receipt.test["n"] == len(targets) == receipt.agree
    opened = predictor.load(receipt.path)
    assert opened.classes == tuple(map(str, range(10)))
    assert opened.probabilities(pixels[0]).sum() == pytest.approx(1)


def test_int8_without_targets_is_held_to_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, inputs = Tiny().eval(), torch.randn(64, 3, 32, 32)
    receipt = zoo.export.onnx(module, tmp_path / "x.onnx", input=(3, 32, 32), images=inputs, precision="int8", max_drop=10)
    assert receipt.test is None
    assert receipt.agree >= 58
    counts = {each.data_type for each in onnx.load(receipt.path).graph.initializer}
    assert onnx.TensorProto.INT8 in counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": (3, 9)}, r"module fails \(Tiny, input \(N, 3, 9\): RuntimeError: .*\); it must accept one float32 tensor"),
        ({"input": ()}, r"no input shape for Tiny; give the shape of one input, e.g. input=\(3, 224, 224\)"),
        ({"classes": ["a"]}, r"classes differ \(names 1, model 10\)"),
        ({"classes": ["a", *"abcdefghi"]}, r"class names are not distinct \('a' is given 2 times\); give each once"),
        ({"images": np.zeros((4, 3, 8, 8), np.float32)}, r"images do not fit the model \(float32 \(4, 3, 8, 8\), input \(3, 32, 32\)\)"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8)}, r"uint8 images need mean and std"),
        ({"mean": (0.5,), "std": (0.5,)}, r"mean and std have 1 and 1 values, the input 3 channels"),
        ({"targets": [1, 10], "images": np.zeros((2, 3, 32, 32), np.float32)}, r"targets do not fit .*give 2 class numbers from 0 to 9"),
        ({"preprocess": "full"}, r"preprocess full needs uint8 images"),
        ({"path": None}, r"no path for the file of a Tiny; give one, e.g. 'model.onnx'"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    asked = {"path": tmp_path / "x.onnx", "input": (3, 32, 32)} | change
    with pytest.raises(UsageError, match=message) as caught:
        zoo.export.onnx(Tiny(), asked.pop("path"), **asked)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class FixedBatch(nn.Module):
    """The batch size of the trace becomes a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(int(x.shape[0]), 6))


def test_a_fixed_batch_is_found_before_calibration(tmp_path: Path) -> None:
    with pytest.raises(
        DisagreeError, match=r"exported graph cannot run \(Got invalid dimensions for input: image .* Expected: 2"
    ):
        zoo.export.onnx(FixedBatch(), tmp_path / "x", precision="int8", input=(6,), images=torch.randn(70, 6))
    with pytest.raises(FileError, match=r"cannot be traced \(the code fixes the batch to 2\); use x.shape without int\(\)"):
        zoo.export.program(FixedBatch(), tmp_path / "x", input=(6,))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Pair(), r"module returns tuple for two inputs \(Pair, input \(N, 4\)\); expected one tensor of logits"),
        (Two(), r"module fails \(Two, input \(N, 4\): TypeError: .*'y'"),
        (nn.Linear(4, 1), r"module returns one number per input \(Linear, input \(N, 4\)\); expected a logit for each of"),
        (nn.Flatten(0), r"module returns \(8,\) for two inputs"),
    ],
)
def test_another_signature(module: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _job.of_module(module, shape=(4,))


def test_a_run_has_its_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a run has its own classes; omit it, or export run.model"):
        zoo.export.onnx(run_of(Tiny(), tmp_path), classes=("a",))


def test_the_error_names_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = _onnx.trace

    def planted(*args: Any, **named: Any) -> onnx.ModelProto:
        graph = traced(*args, **named)
        (weight,) = [each for each in graph.graph.initializer if each.name.startswith("model.conv2.weight")]
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        return graph

    monkeypatch.setattr(_onnx, "trace", planted)
    with pytest.raises(DisagreeError, match=r"first node that differs: conv2/\w+ \(Conv\)"):
        zoo.export.onnx(Tiny(), tmp_path / "x.onnx", input=(3, 32, 32))
