"""The fastest file within the accuracy bound is kept, a slow precision is reported, and zoo bench uses the same bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_export import Tiny, run_of

from zoo import registry
from zoo.bench import _advice, _fastest
from zoo.errors import BusyError, DisagreeError, DiskError, FileError, UsageError, ZooError
from zoo.export import Receipt, _accuracy, _quantise

pytest.importorskip("onnxruntime")


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured time of each file: the order of real ones depends on what else the machine does."""
    times = {"onnx fp32": 6e6, "onnx fp16": 2e6, "onnx int8": 4e6}  # ns
    monkeypatch.setattr(_quantise, "METHODS", ("minmax",))
    monkeypatch.setattr(_quantise, "COUNTS", (64,))
    monkeypatch.setattr(_fastest, "NOT_DEPLOYED", {"pt2", "openvino"})

    def interleave(calls: dict[str, Callable[[], object]], **_: Any) -> dict[str, SimpleNamespace]:
        return {name: SimpleNamespace(median=times[name]) for name, call in calls.items() if np.isfinite(call()).all()}

    monkeypatch.setattr(_fastest._timing, "interleave", interleave)


@pytest.mark.usefixtures("paced")
def test_the_fastest_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = run_of(Tiny(), tmp_path)
    receipt, rows = _fastest.fastest(run, max_drop=10, seconds=0.1)
    assert [(row["format"], row["precision"]) for row in rows] == [key for key in registry.targets() if key[0] == "onnx"]
    assert (receipt.precision, receipt.path) == ("fp16", tmp_path / "model.fp16.onnx")
    assert [row["precision"] for row in rows if row["chosen"]] == ["fp16"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.fp16.onnx"]


def named_file(target: Any, subject: Any, out: Path, job: Any, *, force: bool) -> Receipt:
    """An export that writes the name of its precision."""
    spec = target.TARGET
    out.write_bytes(spec.precision.encode())
    return Receipt(
        path=out, bytes=4, files=(out.name,), format=spec.format, precision=spec.precision, opset=20, ir_version=9, preprocess="none",
        batches=(1,), agree=1, n=1, ties=0, max_abs=0.0, images="", seconds=0.0,
    )  # fmt: skip


@pytest.mark.usefixtures("paced")
@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_only_the_file_of_the_fastest_may_be_in_the_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fastest is model.fp16.onnx; without --force it is written unless it exists, and no other file is changed."""
    monkeypatch.setattr(_fastest._pipeline, "export", named_file)
    for key in (key for key in registry.targets() if key[0] == "onnx"):
        monkeypatch.setattr(registry.find_target(*key), "answer", lambda path: lambda fed: np.zeros(1))
    run = run_of(Tiny(), tmp_path)
    (tmp_path / name).write_bytes(b"old")
    if name == "model.fp16.onnx":
        with pytest.raises(BusyError) as caught:
            _fastest.fastest(run)
        assert str(caught.value) == (
            f"file exists ({tmp_path / name}, onnx fp16 is the fastest: onnx fp16 2.0 ms, onnx int8 4.0 ms, onnx fp32 6.0 ms); "
            "use --force to replace it"
        )
        assert (tmp_path / name).read_bytes() == b"old"
        _fastest.fastest(run, force=True)
    else:
        _fastest.fastest(run)
        assert (tmp_path / name).read_bytes() == b"old"
    assert f"warning  files exist and are replaced only with --force ({tmp_path}: {name})\n" in capsys.readouterr().err
    assert (tmp_path / "model.fp16.onnx").read_bytes() == b"fp16"
    assert {path.name for path in tmp_path.iterdir()} == {name, "model.fp16.onnx"}


def test_files_in_the_way_of_every_target_are_found_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(Tiny(), tmp_path)
    for (fmt, _), fields in registry.targets().items():
        if fmt not in _fastest.NOT_DEPLOYED:
            (tmp_path / f"model{fields['suffix']}").touch()
    monkeypatch.setattr(_fastest._job, "of_run", None)
    with pytest.raises(
        BusyError, match=r"every possible file exists \(.*model\.int8\.onnx.*use --force to replace the fastest"
    ):
        _fastest.fastest(run)


@pytest.mark.parametrize("error", [FileError, DisagreeError, DiskError])
def test_a_candidate_that_fails_is_skipped(
    error: type[ZooError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("no")

    monkeypatch.setattr(_fastest._pipeline, "export", fail)
    with pytest.raises(UsageError, match="no export target is left"):
        _fastest.fastest(run_of(Tiny(), tmp_path))
    assert "skipped  onnx int8: no\n" in capsys.readouterr().err


def test_slower_than_float32() -> None:
    calls = []

    def slow(part: np.ndarray) -> np.ndarray:
        calls.append(len(part))
        time.sleep(0.012)
        return part

    def fast(part: np.ndarray) -> np.ndarray:
        time.sleep(0.004)
        return part

    assert _accuracy.slower(slow, fast, np.zeros((100, 2))) > 1.5
    assert set(calls) == {16}
    assert _accuracy.slower(fast, slow, np.zeros((100, 2))) < 0.67


def row(contender: str, precision: str, batch: int, ms: float, accuracy: float, **changes: str) -> dict[str, str]:
    return {
        "model": "net", "device": "cpu", "contender": contender, "precision": precision, "batch": str(batch), "median_ms": str(ms),
        "images_per_s": str(1000 * batch / ms), "accuracy": str(accuracy), "noisy": "no",
    } | changes  # fmt: skip


def test_one_line_recommends() -> None:
    rows = [
        row("pytorch eager", "fp32", 1, 9.0, 0.92), row("ort", "fp32", 1, 3.0, 0.92), row("ort int8", "int8", 1, 2.0, 0.90),
        row("pytorch eager", "fp32", 64, 90.0, 0.92), row("ort", "fp32", 64, 50.0, 0.92), row("ov int8", "int8", 64, 20.0, 0.918),
    ]  # fmt: skip
    (line,) = _advice.lines(rows)
    assert line == (
        "use      net: ort for batch 1 (3 ms), ov int8 for batch 64 (3,200 images per second); accuracy 92.00 % and 91.80 %, float32 92.00 %"
    ), "2 points less is too much, 0.2 is not"
    rows[1]["noisy"] = "yes"
    assert "noisy figures, measure again" in _advice.lines(rows)[0]


@pytest.mark.parametrize("nothing", ["nan", ""])
def test_without_accuracy_only_float32(nothing: str) -> None:
    """A file without its run has no accuracy: its cell in the CSV is empty."""
    rows = [
        row(name, kind, 1, ms, 0) | {"accuracy": nothing} for name, kind, ms in (("ort", "fp32", 3.0), ("ort8", "int8", 1.0))
    ]
    assert _advice.lines(rows) == ["use      net: ort for batch 1 (3 ms)"]
