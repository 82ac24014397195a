"""Each benchmark writes complete rows; wrong outputs and missing devices end it; tables and pictures are made from the CSV."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import zoo
import zoo.bench
from zoo import __main__ as cli
from zoo import ops
from zoo.bench import _agreement, _contenders, _losses, _runtimes, _subjects, _tables, _timing, focal_loss, inference
from zoo.errors import DisagreeError, FileError, UsageError

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path.stem for path in (ROOT / "bench").glob("[a-z]*.py"))
TINY: dict[str, dict[str, Any]] = {
    "depthwise": {"models": [("timm/mobilenetv3_small_050", 32)], "batch": 2},
    "focal_loss": {"sizes": [(16, 4), (32, 40), (4096, 10)], "seconds": 0.01, "model": "cnn_small"},
    "inference": {"targets": "cnn_small", "batches": [1, 2], "seconds": 0.01},
    "int8_graph": {"model": "resnet20", "batches": [1], "seconds": 0.01},
    "onnx_graph": {"model": "resnet20", "batches": [1], "seconds": 0.01},
    "startup": {"rounds": 1},
    "training": {"model": "cnn_small", "batch": 8, "steps": 2, "rounds": 1},
}


MARKS: dict[str, Any] = {
    **dict.fromkeys(("image_files", "int8_graph", "int8_repair", "onnx_graph"), pytest.mark.slow),
    "loadgen": pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="needs mlcommons-loadgen"),
}
EACH = [pytest.param(name, marks=MARKS[name]) if name in MARKS else name for name in FILES]


class Tables(dict[str, Path]):
    """A small CSV of each benchmark by its name, created on first use."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder = folder
        self.options = TINY | {"int8_repair": {"runs": [str(run)], "batches": [2], "seconds": 0.01, "max_drop": 100.0}}

    def __missing__(self, name: str) -> Path:
        main = importlib.import_module(f"zoo.bench.{name}").main
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_timing, "FEWEST", 2)  # the rounds of a real measurement would take most of the tests' time
            self[name] = main(True, out=self.folder / f"{name}.csv", **self.options.get(name, {}))
        return self[name]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, small_run: Path) -> Tables:
    return Tables(tmp_path_factory.mktemp("bench"), small_run)


def test_there_are_benchmarks() -> None:
    assert {"focal_loss", "inference", "startup", "training"} <= set(FILES)
    assert set(zoo.bench.names()) == set(FILES) - {"inference"}


MAY_BE_EMPTY = {
    *("onnxruntime", "commit", "formula", "loss_error", "grad_error", "settings"),
    *("gb_per_s", "times_copy", "loss_share"),  # inside and outside of a training step
    *("resident_per_s", "resident_low", "resident_high"),  # on a GPU
    *("accuracy", "accuracy_low", "accuracy_high", "images"),  # with a run's data
    *("reported", "source", "note"),  # for recipes with reported results
    *("views", "views_accuracy"),  # for runs that were evaluated with several views
}


def row_faults(rows: list[dict[str, str]]) -> list[str]:
    """Missing parts of a benchmark's rows: values, environment, rounds."""
    found = [] if rows else ["no rows"]
    for row in rows:
        found += [f"no {key}" for key in ("cpu", "device", "torch", "zoo", "commit", "command") if key not in row]
        found += [f"{key} is empty" for key, value in row.items() if value == "" and key not in MAY_BE_EMPTY]
        if "contender" in row:
            found += [] if row.get("noisy") in ("yes", "no") else ["noisy is neither yes nor no"]
            found += [] if int(row.get("rounds", 0)) >= 1 else ["no rounds"]
            found += [] if tuple(row)[-len(_timing.ENVIRONMENT) :] == _timing.ENVIRONMENT else ["the environment is not last"]
    return found


@pytest.mark.parametrize("name", EACH)
def test_quick_writes_rows_with_every_column(tables: Tables, name: str) -> None:
    assert row_faults(_timing.read_csv(tables[name])) == []


def test_rows_that_cannot_be_believed_are_caught(tables: Tables) -> None:
    good = _timing.read_csv(tables["inference"])[0]
    planted = {
        "no cpu": {key: value for key, value in good.items() if key != "cpu"},
        "median_ms is empty": good | {"median_ms": ""},
        "no rounds": good | {"rounds": "0"},
        "noisy is neither yes nor no": good | {"noisy": ""},
        "the environment is not last": {"command": good["command"]}
        | {k: good[k] for k in good if k != "command"}
        | {"more": "1"},
    }
    assert row_faults([]) == ["no rows"]
    for fault, row in planted.items():
        assert fault in row_faults([row]), fault


@pytest.mark.parametrize("name", EACH)
def test_table_has_the_rows_and_fits(tables: Tables, name: str) -> None:
    rows = _timing.read_csv(tables[name])
    console = Console(width=80 if name == "inference" else 110, record=True, file=io.StringIO())
    console.print(importlib.import_module(f"zoo.bench.{name}").table(rows))
    text = console.export_text()
    assert "…" not in text
    for contender in {row["contender"] for row in rows if "contender" in row}:
        assert contender in text


def test_inference_rows(tables: Tables) -> None:
    rows = _timing.read_csv(tables["inference"])
    names = [row["contender"] for row in rows if row["batch"] == "1"]
    assert names[:2] == ["pytorch eager", "pytorch channels_last"]
    assert "onnxruntime cpu" in names
    assert {row["batch"] for row in rows} == {"1", "2"}
    for row in rows:
        assert 0 < float(row["low"]) <= float(row["images_per_s"]) * 1.001
        assert float(row["high"]) >= float(row["images_per_s"]) * 0.999
        assert float(row["p99_ms"]) >= float(row["p95_ms"]) >= 0
        assert row["contender"] != "pytorch eager" or float(row["ratio"]) == 1.0
        assert 0 < float(row["share"]) <= inference.ABOVE or row["noisy"] == "yes"
        assert row["bound"] in ("compute", "copy")
        assert float(row["gflops"]) == pytest.approx(2 * 10_913_024 * float(row["images_per_s"]) / 1e9, rel=2e-3)
        assert float(row["first_ms"]) > 0 and float(row["load_ms"]) > 0 and float(row["file_mb"]) > 0.1
        assert float(row["max_diff"]) <= _contenders.TOLERANCES[row["precision"]]
    sizes = {row["contender"]: float(row["file_mb"]) for row in rows}
    assert sizes["onnxruntime cpu int8"] < sizes["onnxruntime cpu"] / 2


@pytest.mark.parametrize("name", ["inference", "focal_loss"])
def test_picture_is_drawn(tables: Tables, name: str) -> None:
    with Image.open(tables[name].with_suffix(".png")) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (840, 1600, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def contender(name: str, answer: torch.Tensor, precision: str = "fp32") -> _contenders.Contender:
    return _contenders.Contender(name, precision, lambda inputs: _contenders.Ready(lambda: answer))


def test_unequal_answers_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtimes, "of_onnxruntime", lambda *_, **__: [contender("onnxruntime cpu", torch.zeros(1, 10))])
    with pytest.raises(DisagreeError, match=r"onnxruntime cpu and pytorch eager disagree \(batch 1, .*no results written"):
        inference.main(True, "cnn_small", out=tmp_path / "x.csv", batches=[1], seconds=0.01)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [torch.full((2, 3), torch.nan), torch.zeros(2, 4), torch.full((2, 3), 1.01)])
def test_nan_shape_and_small_differences_are_seen(answer: torch.Tensor) -> None:
    truth = contender(_contenders.BASE, torch.ones(2, 3))
    device = torch.device("cpu")
    with pytest.raises(DisagreeError):
        _agreement.agreeing([truth, contender("other", answer)], torch.zeros(2, 1), None, {}, device)
    found = _agreement.agreeing([truth, contender("same", torch.ones(2, 3))], torch.zeros(2, 1), None, {}, device)
    assert set(found) == {_contenders.BASE, "same"}
    with pytest.raises(DisagreeError, match="and the unoptimised graph disagree"):
        _agreement.agreeing([truth], torch.zeros(2, 1), torch.zeros(2, 3), {}, device)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("preprocess", ["none", "normalize", "full"])
@SLOW
def test_run_with_its_own_file(small_run: Path, tmp_path: Path, preprocess: str) -> None:
    folder = Path(shutil.copytree(small_run, tmp_path / "run"))
    zoo.export.onnx(zoo.load(folder), folder / "model.onnx", preprocess=preprocess)
    assert inference.main(True, str(folder), batches=[2], seconds=0.01) == folder / "bench.csv"
    assert (folder / "bench.png").is_file()
    rows = {row["contender"]: row for row in _timing.read_csv(folder / "bench.csv")}
    for row in rows.values():
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
        assert int(row["images"]) > 0
    assert rows["onnxruntime cpu"]["accuracy"] == rows["pytorch eager"]["accuracy"]
    with Image.open(folder / "bench_accuracy.png") as picture:
        assert picture.size[0] == 1600, "the width of a README, twice for fine screens"


@pytest.mark.parametrize(
    ("preprocess", "beside"), [pytest.param("none", True, marks=SLOW), ("full", True), ("normalize", False)]
)
def test_a_file(small_run: Path, tmp_path: Path, preprocess: str, beside: bool) -> None:
    folder = Path(shutil.copytree(small_run, tmp_path / "run"))
    file = folder / "own.onnx" if beside else tmp_path / "own.onnx"
    zoo.export.onnx(zoo.load(folder), file, preprocess=preprocess)
    path = inference.main(True, [str(file)], out=tmp_path / "x.csv", batches=[2], seconds=0.01)
    rows = _timing.read_csv(path)
    assert ("pytorch eager" in {row["contender"] for row in rows}) == beside
    assert {row["base"] for row in rows} == {"pytorch eager" if beside else "onnxruntime cpu"}
    assert {row["model"] for row in rows} == {"own"}


@SLOW
def test_several_in_one_call(tmp_path: Path) -> None:
    path = inference.main(True, ["cnn_small", "resnet20"], out=tmp_path / "x.csv", batches=[1], seconds=0.01)
    assert {row["model"] for row in _timing.read_csv(path)} == {"cnn_small", "resnet20"}
    assert {each.name for each in tmp_path.glob("*.png")} == {"x-cnn_small.png", "x-resnet20.png"}


@SLOW
def test_run_whose_weights_changed_since_export(small_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_run, tmp_path / "run"))
    run = zoo.load(folder)
    with torch.no_grad():
        next(iter(run.model.parameters())).mul_(1.1)
    zoo.export.onnx(run, folder / "model.onnx")
    with pytest.raises(DisagreeError, match="zoo export --onnx --force"):
        inference.main(True, str(folder), batches=[2], seconds=0.01)
    assert not (folder / "bench.csv").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_absent_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cuda") as caught:
        inference.main(True, "cnn_small", out=tmp_path / "x.csv", devices=["cuda"])
    assert "found" in str(caught.value)
    assert cli.run(["bench", "cnn_small", "--devices", "cuda", "--quick", "--out", str(tmp_path / "x.csv")]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_an_allowed_fallback_is_said_in_the_row(tmp_path: Path) -> None:
    path = inference.main(
        True, "cnn_small", out=tmp_path / "x.csv", devices=["cpu", "cuda"], batches=[1], seconds=0.01, allow_cpu_fallback=True
    )
    rows = _timing.read_csv(path)
    names = [row["contender"] for row in rows]
    assert len(set(names)) == len(names), "distinct from the CPU's"
    assert {row["base"] for row in rows} == {"pytorch eager", "pytorch eager (on the cpu)"}
    rows = [row for row in rows if row["contender"].startswith("onnxruntime cuda")]
    assert [row["contender"] for row in rows] == ["onnxruntime cuda (on the cpu)", "onnxruntime cuda fp16 (on the cpu)"]
    assert {(row["device"], row["settings"]) for row in rows} == {("cpu", "fell back to the cpu, as allowed")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_onnxruntime_does_not_fall_back_to_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with (
        _subjects.opened("cnn_small", ("fp32",)) as subject,
        pytest.raises(UsageError, match="CPUExecutionProvider"),
    ):
        _runtimes.of_onnxruntime(subject.files, torch.device("cuda"), 1, example=subject.noise(1).numpy())


@pytest.mark.parametrize("batches", [[0], [-1, 8]])
def test_bad_batches_are_refused(batches: list[int], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch size"):
        inference.main(True, "cnn_small", out=tmp_path / "x.csv", batches=batches)


def test_threads_and_gradients_are_as_before(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    inference.main(True, "cnn_small", out=tmp_path / "x.csv", batches=[1], threads=1, seconds=0.01)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert {row["threads"] for row in _timing.read_csv(tmp_path / "x.csv")} == {"1"}


def test_focal_truth_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    p = np.exp([2.0, 0.0, -1.0]) / np.exp([2.0, 0.0, -1.0]).sum()
    loss, grad = _losses.truth("focal", logits, torch.tensor([0]), torch.tensor([1.5, 1.0, 1.0]))
    assert float(loss) == pytest.approx(-1.5 * (1 - p[0]) ** 2 * np.log(p[0]), rel=1e-12)
    slope = 1.5 * ((1 - p[0]) ** 2 - 2 * p[0] * (1 - p[0]) * np.log(p[0]))  # minus dl/d(log p_t)
    expected = [-slope * (1 - p[0]), slope * p[1], slope * p[2]]
    assert grad[0].tolist() == pytest.approx(expected, rel=1e-10)


def test_focal_rows_hold_errors_and_the_copy(tables: Tables) -> None:
    rows = _timing.read_csv(tables["focal_loss"])
    steps = [row for row in rows if row["pass"] == "cnn_small training step"]
    assert [row["contender"] for row in steps] == ["F.cross_entropy", "zoo"]
    for row in steps:
        assert 0 < float(row["loss_share"]) < 0.5
        assert float(row["low_us"]) <= float(row["median_us"]) <= float(row["high_us"])
    layers = [row for row in rows if row["pass"].startswith("layer and loss")]
    assert {row["contender"] for row in layers} >= {"F.linear, F.cross_entropy", "F.linear, zoo gamma 0 in place"}
    assert all(max(float(row["loss_error"]), float(row["grad_error"])) < 1e-4 for row in layers)
    rows = [row for row in rows if row not in steps and row not in layers]
    assert {row["pass"] for row in rows} == {"forward", "forward+backward"}
    assert {"eager textbook", "eager stable", "F.cross_entropy", "torchvision sigmoid", "zoo", "empty function", "copy"} <= {
        row["contender"] for row in rows
    }
    for row in rows:
        if row["contender"] in ("copy", "copy with shares"):
            assert float(row["times_copy"]) == 1.0
        elif not row["contender"].startswith(("zoo kernel", "empty function")):
            assert 0 <= float(row["loss_error"]) < 1e-4
            assert 0 <= float(row["grad_error"]) < 1e-4


def test_shares_are_held_to_a_copy_that_moves_them_and_in_place_takes_no_memory(tables: dict[str, Path]) -> None:
    rows = [row for row in _timing.read_csv(tables["focal_loss"]) if (row["n"], row["pass"]) == ("4096", "forward+backward")]
    named = {row["contender"]: row for row in rows}
    for name in ("F.cross_entropy, shares", "zoo, shares, gamma 0", "zoo, shares", "zoo, shares, in place"):
        both = float(named[name]["median_us"]) / float(named["copy with shares"]["median_us"])
        assert float(named[name]["times_copy"]) == pytest.approx(both, rel=0.6)  # medians of a shared machine
    mb = 4096 * 10 * 4 / 1e6
    assert float(named["zoo"]["peak_mb"]) == pytest.approx(mb, rel=0.1)
    assert float(named["zoo, shares"]["peak_mb"]) == pytest.approx(mb, rel=0.1)
    if ops._C is not None:
        for name in ("zoo in place", "zoo, shares, in place"):
            assert float(named[name]["peak_mb"]) < mb / 10


def test_a_wrong_loss_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return _losses.stable(logits, target, weight) * 1.001

    monkeypatch.setattr(_losses, "own", off)
    with pytest.raises(DisagreeError, match="focal loss is wrong"):
        focal_loss.main(True, out=tmp_path / "x.csv", sizes=[(8, 4)], seconds=0.01)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(ops._C is None, reason="no compiled library")
def test_each_instruction_set_has_its_row(tables: Tables) -> None:
    rows = [row for row in _timing.read_csv(tables["focal_loss"]) if row["contender"].startswith("zoo kernel ")]
    chosen, here = ops._C.capability(None), set()
    for name in _losses.INSTRUCTION_SETS:
        with contextlib.suppress(ValueError):
            here.add(ops._C.capability(name))
    ops._C.capability(chosen)
    assert {row["contender"] for row in rows} == {f"zoo kernel {name}" for name in here - {chosen}}
    assert {(row["n"], row["pass"]) for row in rows} <= {("4096", "forward+backward")}
    assert all(row["kernel"] == "C++ " + row["contender"].split()[-1] for row in rows)


@pytest.mark.skipif(ops._C is None, reason="no compiled library")
def test_a_row_of_an_instruction_set_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(_losses, "kernel_of", lambda *_, **__: lambda: seen.append(ops._C.capability(None)))
    chosen = ops._C.capability(None)
    calls = _losses.kernels_of(torch.zeros(2, 3), torch.zeros(2), torch.ones(3), backward=True, sets=True)
    for call in calls.values():
        call()
        assert ops._C.capability(None) == chosen
    assert seen == [chosen, *(name.split()[-1] for name in list(calls)[1:])]
    assert len(set(seen)) == len(seen)


def test_a_step_knows_the_share_of_its_loss() -> None:
    def slow(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        time.sleep(1.0)
        return _losses.weighted_cross_entropy(logits, target, weight)

    fast, slept = (
        _losses.Step("cnn_small", _losses.Contender("x", call), torch.device("cpu"), None)
        for call in (_losses.weighted_cross_entropy, slow)
    )
    for step in (fast, slept):
        before = [parameter.clone() for parameter in step.net.parameters()]
        step()
        assert all(not torch.equal(old, new) for old, new in zip(before, step.net.parameters(), strict=True))
    assert fast.share < 0.3 < slept.share < 1


def test_the_empty_function_has_the_passes_of_a_loss() -> None:
    """It does not copy the gradient either: autograd copies one with another reference."""
    for backward in (False, True):
        call = _losses.empty_of(torch.zeros(4, 3), backward=backward)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call()
        names = {event.name for event in profile.events()}
        assert ("EmptyBackward" in names) == backward and not names & {"aten::copy_", "aten::clone"}


def test_copy_moves_the_bytes_of_the_loss() -> None:
    logits, target = torch.zeros(64, 10), torch.zeros(64, dtype=torch.int64)
    moved = {backward: 2 * _losses.copy_of(logits, target, backward=backward)().nbytes for backward in (False, True)}  # type: ignore[attr-defined]
    assert moved == {False: 64 * 40 + 64 * 8, True: 64 * 80 + 64 * 8}


def test_peak_memory_counts_blocks() -> None:
    assert focal_loss._peak(lambda: torch.empty(1_000_000).fill_(1)) == pytest.approx(4.0, rel=0.01)


def test_command_prints_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = zoo.bench.command("cnn_small", zoo.bench.Request(quick=True, batches="1,2", out=tmp_path / "x.csv", as_json=True))
    printed = json.loads(capsys.readouterr().out)
    read = _timing.read_csv(path)
    assert [list(row) for row in printed] == [list(row) for row in read]
    for name in ("batch", "cores", "median_ms", "images_per_s", "max_diff"):
        assert [row[name] for row in printed] == [float(row[name]) for row in read], (
            "a number as text is no number for a program"
        )
    assert {row["accuracy"] for row in printed} == {None}
    for name in ("model", "contender", "python", "commit", "noisy"):
        assert [row[name] for row in printed] == [row[name] for row in read]
    with pytest.raises(UsageError, match="--batches"):
        zoo.bench.command("cnn_small", zoo.bench.Request(batches="1,x"))
    for what in ("startup", "int8_repair"):
        with pytest.raises(UsageError, match=f"{what} accepts no --batches"):
            zoo.bench.command(what, zoo.bench.Request(batches="1"))
    with pytest.raises(UsageError, match="accepts no other names; omit cnn_small"):
        zoo.bench.command(["startup", "cnn_small"])


def test_every_name_is_checked_before_the_first_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "main", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "page.onnx").write_bytes(b"<html>")
    for name, kind, says in (
        ("resnet33", UsageError, "no run or model 'resnet33' .did you mean resnet32"),
        ("no-such-run", UsageError, "no run 'no-such-run'"),
        (str(tmp_path / "gone.onnx"), FileError, "no model file"),
        (tmp_path / "page.onnx", FileError, "page.onnx is a web page or XML"),
    ):
        with pytest.raises(kind, match=says):
            zoo.bench.command(["cnn_small", name], zoo.bench.Request(out=tmp_path / "x.csv"))


@pytest.mark.parametrize("words", ["nope.onnx", "resnet33", "focal_loss --batches 3", "resnet32 --qps 3"])
def test_a_refusal_does_not_import_torch(tmp_path: Path, words: str) -> None:
    code = (
        "import sys; from zoo import __main__ as main\n"
        f"code = main.run(['bench', *{words.split()}])\n"
        "print(code, [name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ran.stdout.split(maxsplit=1)[1].strip() == "[]" and ran.stdout[0] in "24", ran.stdout + ran.stderr


def test_markdown(tmp_path: Path) -> None:
    environment = dict.fromkeys(_timing.ENVIRONMENT, "") | {
        "device": "cpu",
        "cpu": "A chip",
        "cores": "2",
        "command": "zoo bench",
    }
    rows = [
        {"contender": name, "batch": 1, "images_per_s": speed, "ratio": 1.2345} | environment
        for name, speed in (("a", 1234.5), ("b", 0.5))
    ]
    _timing.write_csv(tmp_path / "t.csv", rows)
    text = "before\n<!-- table:t contender=a contender images_per_s ratio -->\nold\n<!-- /table:t -->\nafter <!-- table:none -->\nx<!-- /table:none -->"
    made = _tables.updated(text, tmp_path)
    assert "| contender | images per s | ratio |\n| --- | ---: | ---: |\n| a | 1,234 | 1.23 |\n" in made
    assert "<sub>A chip, 2 cores: `zoo bench`</sub>" in made
    assert "old" not in made
    assert "| b |" not in made
    assert made.startswith("before\n")
    assert made.endswith("after <!-- table:none -->\n<!-- /table:none -->")
    assert _tables.updated(made, tmp_path) == made
    with pytest.raises(ValueError, match="no column 'speed'"):
        _tables.render(tmp_path / "t.csv", ["speed"])
    with pytest.raises(ValueError, match="no rows"):
        _tables.render(tmp_path / "t.csv", where={"contender": "z"})
    means = _tables.render(tmp_path / "t.csv", ["ratio", "mean:images_per_s"], {"contender": "*"})
    assert "| ratio | runs | images per s |\n| ---: | ---: | ---: |\n| 1.23 | 2 | 617.5 ± 8.7e+02 |\n" in means
    shares = _tables.render(tmp_path / "t.csv", ["contender", "ratio%"])
    assert "| contender | ratio % |\n| --- | ---: |\n| a | 123 |\n" in shares
    _timing.write_csv(tmp_path / "t.csv", rows[::-1])
    assert "| b | 0.5 |\n| a | 1,234 |" in _tables.render(tmp_path / "t.csv", ["contender", "images_per_s"])
    for column in ("-images_per_s", "-mean:images_per_s"):
        ordered = _tables.render(tmp_path / "t.csv", ["contender", column])
        assert ordered.index("| a |") < ordered.index("| b |")


def test_the_source_of_a_table_names_all_machines_and_days(tmp_path: Path) -> None:
    plain = dict.fromkeys(_timing.ENVIRONMENT, "") | {"device": "cpu", "command": "zoo train"}
    places = [("A", "1", "c1", "2026-11-24"), ("B", "2", "c2", "2026-11-29"), ("C", "2", "c2", "2026-11-26")]
    rows = [
        {"seed": at, "accuracy": 0.5} | plain | {"cpu": cpu, "cores": cores, "commit": commit, "date": date}
        for at, (cpu, cores, commit, date) in enumerate(places)
    ]
    _timing.write_csv(tmp_path / "t.csv", rows)
    made = _tables.render(tmp_path / "t.csv", ["-mean:accuracy%"])
    assert "<sub>A, B and C, 1 core or 2 cores, 2 commits, 2026-11-24 to 2026-11-29: `zoo train`</sub>" in made
    one = _tables.render(tmp_path / "t.csv", ["accuracy"], {"seed": "1"})
    assert "<sub>B, 2 cores, commit c2, 2026-11-29: `zoo train`</sub>" in one


def test_tables_in_documents_are_those_of_the_results() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    marked = [page for page in pages if "<!-- table:" in page.read_text(encoding="utf-8")]
    assert len(marked) > 1
    for page in marked:
        text = page.read_text(encoding="utf-8")
        assert _tables.updated(text) == text, "run: python -m zoo.bench._tables README.md docs/*.md"
