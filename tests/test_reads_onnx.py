"""ONNX files written by other programs: a table, or one line and exit 4, within ``--seconds``."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from reads_cases import Case
from reads_onnx import CASES, TABLE, net

from zoo import __main__ as cli
from zoo import predictor
from zoo.bench import _budget, _roofline, _timing, inference
from zoo.errors import FileError, UsageError
from zoo.export import _guard

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what is not tested here: measuring the machine's limits, drawing pictures, large batches."""
    monkeypatch.setattr(_roofline, "SIZES", {"cpu": (64,)})
    monkeypatch.setattr(_roofline, "SECONDS", 0.001)
    monkeypatch.setattr(inference, "figures", lambda rows, out: [])
    monkeypatch.setattr(inference, "QUICK_BATCHES", (1, 2))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.input)
def test_bench(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "x.csv"
    case.write(path)
    if case.code:
        with pytest.raises(FileError, match=case.does) as caught:
            inference.main(True, [str(path)], out=out, seconds=0.01)
        assert caught.value.code == case.code
        assert "\n" not in str(caught.value)
        return
    inference.main(True, [str(path)], out=out, seconds=0.01)
    said = capsys.readouterr().err
    assert case.does == TABLE or case.does in said
    assert "roofline skipped" not in said or "skl2onnx" in case.input
    assert float(_timing.read_csv(out)[0]["images_per_s"]) > 0


def test_the_kinds_named_in_the_issue_are_there() -> None:
    assert len(CASES) >= 25
    assert len({case.input for case in CASES}) == len(CASES)


def test_batches_that_a_file_does_not_take(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(net(shape=(4, 3, 8, 8)).SerializeToString())
    with pytest.raises(FileError, match=r"accepts only batches of 4 .*omit --batches"):
        inference.main(True, [str(path)], out=tmp_path / "x.csv", batches=[1, 8], seconds=0.01)
    inference.main(True, [str(path)], out=tmp_path / "x.csv", batches=[1, 4], seconds=0.01)
    assert {row["batch"] for row in _timing.read_csv(tmp_path / "x.csv")} == {"4"}


@pytest.mark.parametrize("code", [0, 2])
def test_seconds_are_those_of_the_whole_command(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "x.csv"
    path.write_bytes(net().SerializeToString())
    monkeypatch.setattr(_budget, "OVERHEAD", 2.0 if code == 0 else 1e4)
    began = time.monotonic()
    assert cli.run(["bench", str(path), "--seconds", "20", "--out", str(out)]) == code
    assert time.monotonic() - began < 20
    err = capsys.readouterr().err
    assert err.startswith("expect   at most 20 s (--seconds)\n"), "before anything that takes long"
    assert ("expect   about" in err) == ("use      model: " in err) == out.exists() == (code == 0)
    assert code == 0 or "--seconds 20 is too short (model, batch 1 alone takes about 10,000 s); give about --seconds" in err


def test_a_batch_that_overruns_takes_the_time_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    now = time.monotonic()
    clock = _budget.Budget(100.0, began=now - 40)
    assert clock.left() == pytest.approx(47, abs=1), "a tenth and three seconds are kept"
    assert clock.affordable((1, 8, 64), 0.1, "m")[0] == [1, 8, 64]
    assert clock.share(8, 2) == pytest.approx(47 / 2, abs=1)
    clock.began = now - 80
    assert clock.share(8, 2) == pytest.approx(7 / 2, abs=1)
    assert clock.share(64, 1) == 0.0, "2 + 6.4 seconds at the least"
    clock.pace = 3.0
    assert clock.share(8, 2) == 0.0
    assert capsys.readouterr().err.count("no time for it within --seconds 100") == 2
    slow = _budget.Budget(100.0, began=now, imports=20.0)
    assert slow.left() == pytest.approx(60, abs=1), "where the imports take long the pictures do too"


def test_every_batch_after_the_first_asks_for_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "x.csv"
    path.write_bytes(net().SerializeToString())
    monkeypatch.setattr(_budget.Budget, "share", lambda self, batch, batches: 0.0)
    inference.main(True, [str(path)], out=out, budget=_budget.Budget(15.0))
    assert {row["batch"] for row in _timing.read_csv(out)} == {"1"}


def test_a_budget_is_shared_by_what_is_left_to_do() -> None:
    clock = _budget.Budget(100.0, places=2)
    assert clock.left() == pytest.approx(43.5, abs=1)
    assert clock.affordable((1, 8, 64), 1.0, "m")[0] == [1, 8]
    assert clock.affordable((1, 8, 64), 0.1, "m") == ([1, 8, 64], pytest.approx(43.5 / 3, abs=1))
    assert clock.turn(10, "m") == pytest.approx(4.3, abs=0.1)
    for use in (lambda: clock.affordable((1,), 60.0, "m"), lambda: clock.turn(10**4, "m")):
        with pytest.raises(UsageError, match="--seconds 100 is too short .m, "):
            use()
    assert _budget.Budget().affordable((1, 8), 1e9, "m") == ([1, 8], float("inf"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.input)
def test_predict_classifies_with_what_reads_square_colour_images(case: Case, tmp_path: Path) -> None:
    """Any other file ends in one line that names it. ``zoo predict`` does this in a child process (test_predict_other.py)."""
    model, halves = tmp_path / "model.onnx", {"mean": (0.5,), "std": (0.25,)}
    case.write(model)
    try:
        _guard.check(model)
        opened = predictor.load(model, **({} if case.input == "a uint8 input" else halves))
        shares = opened.probabilities(np.full((30, 40, 3), (200, 100, 50), np.uint8))
    except FileError as error:
        says = str(error)
        known = case.code or "not a square image" in says
        if not known or "\n" in says:
            raise
        return
    assert shares.sum() == pytest.approx(1, abs=1e-2) and shares.min() >= 0
    assert not case.code or "run to run" in case.input, "noise is found by its repetition only"
