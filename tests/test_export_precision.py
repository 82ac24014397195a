"""fp16 and int8: content of the files, loss of accuracy, and no publication if the loss is too large."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from test_export import AwayRun, Tiny, facts, run_of

import zoo.export
from zoo import tensor_files
from zoo.errors import DataError, DisagreeError, FileError, UsageError
from zoo.export import _accuracy, _cases, _graph, _onnx, _parity, _session, onnx_fp16, onnx_fp32
from zoo.run import Run
from zoo.training import freezing

pytest.importorskip("onnxruntime")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    torch.manual_seed(0)
    return run_of(Tiny(), tmp_path)


@pytest.mark.parametrize(
    ("preprocess", "softmax"),
    [
        pytest.param("none", False, marks=pytest.mark.slow),
        ("normalize", True),
        pytest.param("full", False, marks=pytest.mark.slow),
    ],
)
def test_fp16_takes_and_gives_what_fp32_does(run: Run, preprocess: str, softmax: bool) -> None:
    exact = zoo.export.onnx(run, preprocess=preprocess, softmax=softmax)
    half = zoo.export.onnx(run, precision="fp16", preprocess=preprocess, softmax=softmax)
    assert half.path.name == "model.fp16.onnx"
    ends = [
        [(end.name, end.type, end.shape) for end in (*session.get_inputs(), *session.get_outputs())]
        for session in (_session.open_session(exact.path), _session.open_session(half.path))
    ]
    assert ends[0] == ends[1]
    assert 1e-6 < half.max_abs <= 0.05
    model = onnx.load(half.path)
    onnx.checker.check_model(model, full_check=True)
    kinds = {each.name: each.data_type for each in model.graph.initializer}
    weights = {name: kind for name, kind in kinds.items() if name.startswith("model.")}
    assert len(weights) >= 4
    assert set(weights.values()) == {TensorProto.FLOAT16}
    if preprocess != "none":
        assert kinds["scale"] == TensorProto.FLOAT, "preprocessing keeps its precision"


def test_fp16_weights_too_large(run: Run) -> None:
    with torch.no_grad():
        run.model.linear.weight[0, 0] = 1e6  # type: ignore[union-attr,index]
    with pytest.raises(DisagreeError, match=r"weight too large for float16 \(model.linear.weight, 1e\+06"):
        zoo.export.onnx(run, precision="fp16")
    assert list(run.path.iterdir()) == []


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[zoo.export.Receipt, onnx.ModelProto]:
    """The int8 file of a tiny net."""
    torch.manual_seed(0)
    receipt = zoo.export.onnx(run_of(Tiny(), tmp_path_factory.mktemp("int8")), precision="int8", max_drop=10, seed=3)
    return receipt, onnx.load(receipt.path)


def test_int8_is_u8s8_per_channel(int8: tuple[zoo.export.Receipt, onnx.ModelProto]) -> None:
    receipt, model = int8
    assert receipt.path.name == "model.int8.onnx"
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        activation, weight = (makers[name] for name in node.input[:2])
        assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert tensors[activation.input[2]].dtype == np.uint8
        assert tensors[weight.input[0]].dtype == np.int8
        assert tensors[weight.input[1]].shape == (len(tensors[weight.input[0]]),), "a scale for each output channel"
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    first = next(node for node in model.graph.node if "image" in node.input)
    assert first.op_type == "Mul", "preprocessing stays in float32"


def test_int8_is_clean_and_says_how(int8: tuple[zoo.export.Receipt, onnx.ModelProto]) -> None:
    receipt, model = int8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    onnx.checker.check_model(model, full_check=True)
    written = facts(receipt.path)
    how = json.loads(written["calibration"])
    assert how == receipt.calibration
    assert (how["seed"], how["images"], how["split"]) == (3, 64, "train")
    assert {each["method"] for each in how["tried"]} == {"minmax", "percentile", "entropy"}
    best = max(each["accuracy"] for each in how["tried"])
    assert next(each for each in how["tried"] if each["method"] == how["method"])["accuracy"] == best
    test = json.loads(written["test"])
    assert test["n"] == 64
    assert test["drop"] == pytest.approx(100 * (test["fp32"]["correct"] - test["correct"]) / 64, abs=1e-3)
    assert "drop" in receipt.line()
    assert written["precision"] == "int8"


def test_int8_answers_like_fp32(int8: tuple[zoo.export.Receipt, onnx.ModelProto]) -> None:
    receipt, _ = int8
    assert 1e-4 < receipt.max_abs < 0.5
    assert receipt.agree + receipt.ties == receipt.n == 64


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_drop_beyond_the_limit_is_not_published(run: Run, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    asked = {"n": 64, "correct": 30, "accuracy": 30 / 64, "low": 0.3, "high": 0.6, "drop": 0.51, "fp32": {"accuracy": 0.5}}
    monkeypatch.setattr(_accuracy, "compared", lambda hits, reference: asked)
    with pytest.raises(
        DisagreeError, match=r"accuracy drops by 0.51 points \(test 46.88 %, float32 50.00 %, allowed 0.5\)"
    ) as caught:
        zoo.export.onnx(run, precision=precision)
    assert caught.value.code == 8
    assert list(run.path.iterdir()) == []
    assert zoo.export.onnx(run, precision=precision, max_drop=0.52).test == asked


def test_drop_is_measured() -> None:
    reference, hits = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 1], bool)
    found = _accuracy.compared(hits, reference)
    assert (found["accuracy"], found["drop"], found["only_fp32"], found["only_this"]) == (0.5, 25.0, 2, 1)
    assert "drop" not in _accuracy.compared(hits, None)


def test_int8_without_the_data(run: Run) -> None:
    away = AwayRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(Run)})
    with pytest.raises(DataError, match="int8 is calibrated on training images, which were not found"):
        zoo.export.onnx(away, precision="int8")


def test_unknown_precision(run: Run) -> None:
    with pytest.raises(UsageError, match="no precision 'int4' of onnx .did you mean int8.*; use one of fp16, fp32, int8"):
        zoo.export.onnx(run, precision="int4")


@pytest.mark.parametrize(
    ("version", "opset"), [("1.14", 18), ("1.15.1", 18), ("1.16.3", 19), ("1.17", 20), ("1.23", 20), ("2.0", 20)]
)
def test_target_runtime_chooses_the_opset(version: str, opset: int) -> None:
    assert _onnx.check_opset(None, version) == opset


@pytest.mark.parametrize(
    ("version", "opset", "message"),
    [
        ("1.13", None, "cannot read opset 18 or newer; the oldest supported version is 1.14"),
        ("new", None, "is not a version"),
        ("1.17", 19, "both select"),
    ],
)
def test_target_runtime_refused(version: str, opset: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _onnx.check_opset(opset, version)


def test_frozen_tensors_are_checked_again(run: Run) -> None:
    names = ["conv1.weight", "bn.running_mean"]
    meta = {"model": "cnn_small", "frozen": freezing.frozen_digest(run.model, names)}
    tensor_files.save_tensors(run.path / "weights.safetensors", run.model.state_dict(), meta)
    assert json.loads(facts(zoo.export.onnx(run).path)["frozen_sha256"]) == meta["frozen"]
    with torch.no_grad():
        run.model.bn.running_mean[2] += 1e-6  # type: ignore[union-attr,index,operator]
    with pytest.raises(DisagreeError, match=r"frozen tensors differ from those of the run.*1 of 2, first bn.running_mean"):
        zoo.export.onnx(run, force=True)
    damaged = bytearray((run.path / "weights.safetensors").read_bytes())
    damaged[-5] ^= 1
    (run.path / "weights.safetensors").write_bytes(damaged)
    with pytest.raises(FileError, match="checksum differs in tensor"):
        zoo.export.onnx(run, force=True)


def test_fp16_model_only(run: Run) -> None:
    """Shape arithmetic and resizing before the model are unchanged."""
    exported = _graph.Exported(run.model, run.mean, run.std, size=32, stored=32, preprocess="full")
    graph = _onnx.trace(exported)
    made = onnx_fp16.convert(graph)
    before, after = ([node.op_type for node in each.graph.node] for each in (graph, made))
    assert len(after) == len(before) + 2
    assert after.count("Cast") == before.count("Cast") + 2


def test_no_image_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracy on all test images uses what the comparison with PyTorch computed of them."""
    torch.manual_seed(0)
    run = run_of(Tiny(), tmp_path, count=200)
    computed: list[int] = []
    answer = onnx_fp32.answer

    def counted(path: Path) -> Any:
        inner = answer(path)
        return lambda inputs: (computed.append(len(inputs)), inner(inputs))[1]

    monkeypatch.setattr(onnx_fp32, "answer", counted)
    receipt = zoo.export.onnx(run, images=150, full_test=True)
    again = sum(3 * size for size in _parity.BATCHES[:-1])  # of the images; of the 12 other ones fewer
    others = 12 + sum(min(12, 3 * size) for size in _parity.BATCHES[:-1])
    assert sum(computed) == 200 + again + others
    assert receipt.test is not None
    outputs = answer(receipt.path)(
        _cases.fed(run.dataset().test.images, _graph.of_run(run, stored=32, preprocess="normalize", softmax=False))
    )
    assert receipt.test["correct"] == int((outputs.argmax(1) == run.dataset().test.targets).sum())
