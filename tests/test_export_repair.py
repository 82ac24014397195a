"""The most sensitive layers of an int8 file that loses too much are restored to float32 and listed; errors per layer."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

import zoo.export
from zoo.errors import DisagreeError, UsageError
from zoo.export import _choose, _graph, _onnx, _parity, _quantise, _repair
from zoo.export._job import of_module
from zoo.export._pipeline import job_of

pytest.importorskip("onnxruntime")


class Outlier(nn.Module):
    """The deciding channel is small relative to another of the same tensor: it spans one step of 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(3 if at == 0 else 2, 2, 1) for at in range(4))
        self.linear = nn.Linear(2, 2)
        values = {
            "first": [[900.0, 0, 0], [0, 1, 0]], "second": [[0.001, 0], [0, 1]], "third": [[1.0, 0], [0, 1]],
            "fourth": [[0.5, 0], [0, 0.5]], "linear": [[0.0, -16], [0, 16]],
        }  # fmt: skip
        with torch.no_grad():
            for name, weight in values.items():
                layer = getattr(self, name)
                layer.weight.copy_(torch.tensor(weight).reshape(layer.weight.shape))
                layer.bias.copy_(torch.tensor([4.0, -4.0]) if name == "linear" else torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third, self.fourth):
            x = torch.relu(layer(x))
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    module = Outlier().eval()
    return _onnx.trace(_graph.Exported(module, (0, 0, 0), (1, 1, 1), size=4, stored=4, preprocess="none"))


@pytest.fixture
def known(graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A subject whose images have the class in their second channel."""
    monkeypatch.setattr(_onnx, "trace", lambda *_, **__: graph)
    monkeypatch.setattr(_quantise, "METHODS", ("minmax",))
    monkeypatch.setattr(_quantise, "COUNTS", (64,))
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0, 1, (200, 3, 1, 1)).astype(np.float32) + rng.uniform(0, 0.01, (200, 3, 4, 4)).astype(np.float32)
    targets = (inputs[:, 1].mean((1, 2)) > 0.5).astype(np.int64)
    return {"input": (3, 4, 4), "images": inputs, "targets": targets, "precision": "int8"}


class Recurrent(nn.Module):
    """One convolution used twice, with another between the two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.again, self.between = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.first(x))))
        return self.linear(self.again(torch.relu(self.between(x))).mean((2, 3)))


def test_a_shared_weight_is_one_layer() -> None:
    exported = _graph.Exported(Recurrent().eval(), (0, 0, 0), (1, 1, 1), size=4, stored=4, preprocess="none")
    found = _repair.layers(_onnx.trace(exported))
    assert [layer.name for layer in found] == ["first", "again", "between", "linear"]
    nodes = [name for layer in found for name in layer.nodes]
    assert sorted(nodes) == sorted(set(nodes))
    convolutions = [name for name in found[1].nodes if "onv" in name]
    assert len(convolutions) == 2, found[1].nodes


def test_the_worst_layers_are_given_back(known: dict[str, Any], tmp_path: Path) -> None:
    receipt = zoo.export.onnx(Outlier(), tmp_path / "x.onnx", max_drop=3, explain=True, **known)
    assert receipt.calibration is not None
    assert receipt.test is not None
    assert receipt.test["drop"] <= 3
    restored = [row["layer"] for row in receipt.calibration["restored"]]
    assert sorted(restored) == ["first", "second"], "both read or give the tensor with two scales"
    assert receipt.calibration["restored"][-1]["sqnr_after"] > 25
    assert "2 layers in float32" in receipt.line()
    kinds = {each.name: each.data_type for each in onnx.load(receipt.path).graph.initializer}
    eight = {name for name, kind in kinds.items() if kind == onnx.TensorProto.INT8}
    assert {name.split(".")[1] for name in eight} == {"third", "fourth", "linear"}
    assert receipt.layers is not None
    alone = {row["layer"]: row["sqnr_alone"] for row in receipt.layers}
    assert max(alone["first"], alone["second"]) < 15 < 25 < min(alone["third"], alone["fourth"])
    with (tmp_path / "x.layers.csv").open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == ["first", "second", "third", "fourth", "linear"]
    assert (tmp_path / "x.layers.png").stat().st_size > 5000


def test_no_more_than_half_of_the_layers(known: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_repair, "MOST", 0.2)
    with pytest.raises(
        DisagreeError, match=r"accuracy drops by .* points in int8, .* with 1 of 5 layers in float32; raise --max-drop"
    ):
        zoo.export.onnx(Outlier(), tmp_path / "x.onnx", max_drop=3, **known)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_given_back_without_need(known: dict[str, Any]) -> None:
    known.pop("precision")
    job = job_of(of_module(Outlier(), shape=known.pop("input"), **known), "none", softmax=False, max_drop=3)
    chosen = _choose.choose(job)
    fine = dataclasses.replace(chosen, accuracy=chosen.reference)
    assert _repair.repaired(job, fine, tolerance=2 * chosen.apart) == (chosen.graph, [])
    assert job.ranked == [], "ranking costs a run for each layer"


def test_outputs_that_differ_too_much_are_repaired_too(known: dict[str, Any]) -> None:
    """Right classes are not enough: the check of the file would reject it."""
    known.pop("precision")
    job = job_of(of_module(Outlier(), shape=known.pop("input"), **known), "none", softmax=False, max_drop=3)
    chosen = _choose.choose(job)
    right = dataclasses.replace(chosen, accuracy=chosen.reference)
    graph, restored = _repair.repaired(job, right, tolerance=chosen.apart)
    assert restored
    answer = _quantise.outputs(graph, chosen.val.images)
    assert _choose.difference(answer, chosen.exact, job.exported) <= _repair.NEAR * chosen.apart
    with pytest.raises(
        DisagreeError, match=r"outputs differ by .*, more than 1\.5 and 0 on 200 given images with 2 of 5 layers"
    ):
        _repair.repaired(job, right, tolerance=0)


def test_exact_layers_are_not_explained(known: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="explain needs a precision other than fp32, whose layers are exact; choose e.g. int8"):
        zoo.export.onnx(Outlier(), tmp_path / "x.onnx", explain=True, **known | {"precision": "fp32"})
    assert not list(tmp_path.iterdir())


def test_errors_of_fp16(known: dict[str, Any], tmp_path: Path) -> None:
    receipt = zoo.export.onnx(Outlier(), tmp_path / "x.onnx", explain=True, **known | {"precision": "fp16"})
    assert receipt.layers is not None
    assert [row["layer"] for row in receipt.layers] == ["first", "second", "third", "fourth", "linear"]
    assert all(row["sqnr"] > 50 for row in receipt.layers), "float16 keeps 11 bits, 6 dB each"


def test_calibration_is_kept(known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second calibration reads the ranges of the first; other images, another graph or a damaged file are calibrated anew."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    calls = []
    calibrate = _quantise.calibrate

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(named)
        return calibrate(*args, **named)

    monkeypatch.setattr(_quantise, "calibrate", counted)
    known.pop("precision")
    subject = of_module(Outlier(), shape=known.pop("input"), **known)
    first = _choose.choose(job_of(subject, "none", softmax=False))
    second = _choose.choose(job_of(subject, "none", softmax=False))
    assert len(calls) == 1
    assert first.graph.SerializeToString(deterministic=True) == second.graph.SerializeToString(deterministic=True)
    _choose.choose(job_of(subject, "none", softmax=False, seed=1))
    assert len(calls) == 2
    for path in (tmp_path / "calibration").iterdir():
        path.write_text("{")
    _choose.choose(job_of(subject, "none", softmax=False))
    assert len(calls) == 3


def test_entropy_ends_when_activations_grow(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The method's time grows with the square of the ratio of the ranges; the ranges found so far are kept and stored."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    images = np.random.default_rng(0).uniform(0, 1, (96, 3, 4, 4)).astype(np.float32)
    images[64:] *= 20
    for source in ("omitted, the range of ", "ranges from "):
        found = list(_choose.calibrated(graph, images, "entropy", [32, 64, 96]))
        assert [ranges.count for ranges in found] == [32, 64]
        assert source in capsys.readouterr().err
    assert [ranges.count for ranges in _choose.calibrated(graph, images, "percentile", [32, 64, 96])] == [32, 64, 96]
    assert [ranges.count for ranges in _choose.calibrated(graph, images[:64], "entropy", [32, 64])] == [32, 64]


def test_a_loss_on_the_test_images_alone_is_repaired(
    known: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images that selected the graph may hide its loss, as memorised training images do."""
    monkeypatch.setattr(_repair.Bound, "holds", lambda *_: True)
    receipt = zoo.export.onnx(Outlier(), tmp_path / "both.onnx", max_drop=3, **known)
    assert receipt.calibration is not None
    assert receipt.calibration["restored_on"] == "test images", "outputs that differ are repaired as well"
    monkeypatch.setattr(_parity, "CALIBRATED", 0.0)
    receipt = zoo.export.onnx(Outlier(), tmp_path / "x.onnx", max_drop=3, **known)
    assert receipt.calibration is not None
    assert receipt.test is not None
    assert receipt.test["drop"] <= 3
    assert sorted(row["layer"] for row in receipt.calibration["restored"]) == ["first", "second"]
    assert re.search(
        r"repair   accuracy drops by 5\d\.\d\d points .*allowed 3\): now 1 of 5 layers in float32\n", capsys.readouterr().err
    )
    assert receipt.calibration["restored_on"] == "test images"
    monkeypatch.setattr(_repair, "MOST", 0.2)
    with pytest.raises(DisagreeError, match=r"accuracy drops by 5\d\.\d\d points .*allowed 3\); raise --max-drop"):
        zoo.export.onnx(Outlier(), tmp_path / "y.onnx", max_drop=3, **known)
    assert not (tmp_path / "y.onnx").exists()


def test_a_drop_of_exactly_the_bound_is_accepted() -> None:
    bound = _repair.Bound(0.05, 1.5)
    drop = 100 * (1_762 / 2_000 - 1_761 / 2_000)
    assert drop > 0.05, "by rounding"
    assert bound.holds(drop, 1.5)
    assert not bound.holds(2 * drop, 1.5) and not bound.holds(0.0, 1.6)


def widest(graph: onnx.ModelProto) -> int:
    """Largest |weight| of an 8 bit graph."""
    return max(
        int(np.abs(numpy_helper.to_array(each).astype(int)).max())
        for each in graph.graph.initializer
        if each.data_type == TensorProto.INT8 and each.dims
    )


@pytest.mark.parametrize("narrow", [True, False])
def test_weights_have_7_bits_where_8_saturate(narrow: bool, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CPUs without VNNI; the graphs of a repair and of a benchmark then have 7 bits as well."""
    known.pop("precision")
    job = job_of(of_module(Outlier(), shape=known.pop("input"), **known), "none", softmax=False)
    outputs = _quantise.outputs

    def worse(graph: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
        quantised = any(each.data_type == TensorProto.INT8 and each.dims for each in graph.graph.initializer)
        return outputs(graph, images) + (300.0 if quantised and (widest(graph) > 64) == narrow else 0.0)

    monkeypatch.setattr(_quantise, "outputs", worse)
    chosen = _choose.choose(job)
    assert chosen.ranges.means, "biases are corrected"
    assert chosen.ranges.narrow == narrow and chosen.facts["weights"] == f"{7 if narrow else 8} bits per channel"
    repaired = _repair.without(job, chosen, _repair.layers(job.exact)[:1])
    for graph in (chosen.graph, repaired, _quantise.calibrated(job.exact, chosen.images)):
        assert (widest(graph) <= 64) == narrow


def test_weights_of_7_bits_can_be_required(known: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quantise, "saturate", lambda *_: pytest.fail("nothing to compare"))
    made = zoo.export.onnx(Outlier(), tmp_path / "net.onnx", reduce_range=True, max_drop=100, **known)
    assert made.calibration is not None and made.calibration["weights"] == "7 bits per channel"
    assert widest(onnx.load(tmp_path / "net.onnx")) <= 64
    with pytest.raises(UsageError, match=r"--reduce-range applies to int8 only \(precision fp32\)"):
        zoo.export.onnx(Outlier(), tmp_path / "other.onnx", reduce_range=True, **{**known, "precision": "fp32"})
