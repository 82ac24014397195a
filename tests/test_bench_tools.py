"""Tools of the benchmarks: roofline, memory, verified providers, load, comparison, and the check of the clock."""

from __future__ import annotations

import io
import itertools
import json
import mmap
import os
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

import zoo.bench
from zoo import __main__ as cli
from zoo import registry
from zoo.bench import (
    _agreement,
    _compare,
    _contenders,
    _gpu,
    _memory,
    _picture,
    _roofline,
    _runtimes,
    _self_check,
    _serve,
    _subjects,
    _timing,
    inference,
    int8_repair,
)
from zoo.errors import DisagreeError, DiskError, FileError, UsageError
from zoo.export import _child, _session

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ONNX files of cnn_small."""
    folder = tmp_path_factory.mktemp("small")
    with _subjects.opened("cnn_small", ("fp32", "int8", "fp16")) as subject:
        return {name: Path(folder / path.name).resolve() for name, path in subject.files.items() if _copied(path, folder)}


def _copied(path: Path, folder: Path) -> bool:
    return (folder / path.name).write_bytes(path.read_bytes()) > 0


@pytest.mark.parametrize("model", ["cnn_small", "resnet20"])
def test_multiply_accumulates_are_the_registrys(model: str) -> None:
    with _subjects.opened(model, ("fp32",)) as subject:
        found = _roofline.work(subject.files["fp32"])
    assert found.macs == registry.entry("models", model)["macs"]
    assert found.sample_bytes == (3 * 32 * 32 + 10) * 4
    assert found.weights == pytest.approx(registry.entry("models", model)["params"], rel=0.03)


def test_all_precisions_do_the_same_work(small: dict[str, Path]) -> None:
    assert {name: _subjects.precision(path) for name, path in small.items()} == {"fp32": "fp32", "int8": "int8", "fp16": "fp16"}
    assert len({_roofline.work(path).macs for path in small.values()}) == 1


def test_a_type_without_matrix_instructions_is_measured_by_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []

    def best(job: tuple[int, Any], device: torch.device) -> float:
        sides.append(round((job[0] / 2) ** (1 / 3)))
        return 1.5e9  # of float16 on a CPU: a product of side 2048 would take 11 s

    monkeypatch.setattr(_roofline, "_best", best)
    assert _roofline.flops("fp16", torch.device("cpu"), 1) == 1.5e9
    assert sides == [256, 768]


def test_share_of_the_roofline() -> None:
    limits = _roofline.Limits({"fp32": 100e9}, 10e9)
    heavy, light = _roofline.Work(10**9, 1000, 1000), _roofline.Work(10**6, 10**9, 0)
    done, share, bound = limits.place(heavy, "fp32", 1, 0.04)
    assert (round(done, 6), round(share, 6), bound) == (50.0, 0.5, "compute")
    assert limits.place(light, "fp32", 2, 0.4)[1:] == (0.5, "copy")
    large = _roofline.Work(1, 0, 10**9)
    both = _roofline.Limits({"fp32": 100e9, "int8": 100e9}, 10e9)
    assert [both.place(large, name, 1, 0.8)[1] for name in ("fp32", "int8")] == [0.5, 0.125]
    higher = limits.merged(_roofline.Limits({"fp32": 50e9}, 20e9))
    assert (higher.flops["fp32"], higher.bandwidth) == (100e9, 20e9)


def test_memory_of_a_piece_of_work() -> None:
    """Pages mapped by the test: whether malloc returns freed blocks depends on what ran before."""

    def pages() -> mmap.mmap:
        area = mmap.mmap(-1, 20_000_000)
        for at in range(0, len(area), 4096):
            area[at] = 1
        return area

    _, peak, kept = _memory.used(lambda: pages().close())
    if np.isnan(peak):
        pytest.skip("this system does not keep a peak")
    assert 18 < peak < 40
    assert kept < 10
    held, _, kept = _memory.used(pages)
    assert 18 < kept < 40
    assert len(held) == 20_000_000


def test_another_setting_must_be_clearly_faster() -> None:
    assert _runtimes.fastest({"usual": lambda: time.sleep(0.004), "other": lambda: time.sleep(0.001)}) == "other"
    assert _runtimes.fastest({"usual": lambda: time.sleep(0.002), "other": lambda: time.sleep(0.004)}) == "usual"


def test_a_tuned_session_answers_the_same(small: dict[str, Path]) -> None:
    inputs = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = _runtimes.Tuned(small["fp32"], 2, tune=False).prepare(inputs)
    ready = _runtimes.Tuned(small["fp32"], 2, tune=True).prepare(inputs)
    assert plain.tune is None
    assert ready.tune
    tuned = ready.tune()
    assert plain.settings == ready.settings == ""
    assert tuned.settings.startswith(("threads spin", "threads sleep"))
    session = _session.open_session(small["fp32"])
    for call in (plain.call, tuned.call, _runtimes.run(session, inputs.numpy(), 4)):
        np.testing.assert_allclose(call(), plain.call(), atol=1e-5)
    call = _runtimes.run(session, inputs.numpy(), 2)
    before = call()
    inputs.zero_()
    assert not np.allclose(before, call()), "a call reads the inputs anew"


def test_tuning_is_no_part_of_the_first_run() -> None:
    def tuned(answer: float) -> _contenders.Contender:
        def tune() -> _contenders.Ready:
            time.sleep(0.5)
            return _contenders.Ready(lambda: torch.full((1, 2), answer), settings="found")

        return _contenders.Contender("x", "fp32", lambda _: _contenders.Ready(lambda: torch.ones(1, 2), tune=tune))

    (found,) = _agreement.agreeing([tuned(1.0)], torch.zeros(1), torch.ones(1, 2), {}, CPU).values()
    assert found.first_ms < 400
    assert found.ready.settings == "found"
    with pytest.raises(DisagreeError, match="x and the unoptimised graph disagree"):
        _agreement.agreeing([tuned(2.0)], torch.zeros(1), torch.ones(1, 2), {}, CPU)


@pytest.mark.parametrize("main", [inference.main, _serve.main, _self_check.main])
def test_a_batch_that_memory_does_not_hold(main: Any, small: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"out of memory \(batch 1,000,000,000\); use smaller batches"):
        main(True, [str(small["fp32"])], out=tmp_path / "x.csv", batches=[10**9])
    assert not list(tmp_path.iterdir())


def test_only_want_of_memory_is_called_so() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(DiskError, match="batch 8"), _memory.enough_for(8):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), _memory.enough_for(8):
        raise RuntimeError("shapes")


def test_proof_reads_a_real_profile(small: dict[str, Path], tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "p")
    session = onnxruntime.InferenceSession(str(small["fp32"]), options, providers=[_gpu.CPU])
    session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 32, 32), np.float32)})
    counts = _gpu.placed(Path(session.end_profiling()))
    assert counts[_gpu.CPU]["Conv"] + counts[_gpu.CPU]["FusedConv"] > 1
    with pytest.raises(
        UsageError, match=r"onnxruntime ran .*Conv.* on the CPU instead of CUDAExecutionProvider; use --devices cpu"
    ):
        _gpu.judged(counts, _gpu.CUDA)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_bound_tensors_are_those_that_are_read_and_written(precision: str) -> None:
    """I/O binding by pointers, which needs no GPU, for a file whose output has another type and an unknown length."""
    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(*each) for each in (("x", 1, ["n", 3]), ("y", kind, ["n", "classes"]))]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Cast", ["x"], ["y"], to=kind)], "", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = _session.open_session(model.SerializeToString())
    inputs = torch.tensor([[1.0, 2.0, 3.0]])
    call = _gpu.bound(session, inputs, session.run(None, {"x": inputs.numpy()})[0])
    assert call().tolist() == [[1, 2, 3]]
    inputs.mul_(2)
    assert call().tolist() == [[2, 4, 6]]
    assert str(call().dtype).endswith("float16" if precision == "fp16" else "float32")


def test_a_provider_that_fails_is_not_replaced_in_silence(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    def fails(*_: object) -> None:
        raise RuntimeError("CUDA failure 35: driver too old")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [_gpu.CUDA, _gpu.CPU])
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fails)
    with pytest.raises(UsageError, match="CUDA failure 35: driver too old"):
        _gpu.open_session(small["fp32"], _gpu.CUDA, torch.device("cuda"), 1)
    assert not capsys.readouterr().out


def test_heavy_nodes_on_the_cpu_are_a_failure() -> None:
    good = {_gpu.CUDA: Counter(Conv=30, Gemm=1), _gpu.CPU: Counter(Shape=1, Gather=2)}
    assert _gpu.judged(good, _gpu.CUDA) == "cuda 31 nodes, cpu 3 (Gather, Shape)"
    with pytest.raises(UsageError, match="ran 1 Gemm on the CPU"):
        _gpu.judged({_gpu.CUDA: Counter(Conv=30), _gpu.CPU: Counter(Gemm=1)}, _gpu.CUDA)
    with pytest.raises(UsageError, match="ran 2 NhwcFusedConv on the CPU"):
        _gpu.judged({_gpu.CUDA: Counter(Conv=30), _gpu.CPU: Counter(NhwcFusedConv=2)}, _gpu.CUDA)
    with pytest.raises(UsageError, match="ran all nodes on the CPU"):
        _gpu.judged({_gpu.CPU: Counter(Shape=1)}, _gpu.CUDA)


@pytest.mark.gpu
def test_cuda_rows(tmp_path: Path) -> None:
    from zoo.bench import inference

    rows = _timing.read_csv(
        inference.main(True, "resnet20", out=tmp_path / "x.csv", devices=["cuda"], batches=[1, 8], seconds=0.3)
    )
    own = [row for row in rows if row["contender"].startswith("onnxruntime cuda")]
    assert {row["precision"] for row in own} == {"fp32", "fp16"}
    for row in own:
        assert row["settings"].startswith("tf32 off, cuda ")
        assert float(row["resident_per_s"]) > 0


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_serve_measures_every_setup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.csv"
    assert cli.run(["bench", "cnn_small", "--serve", "--quick", "--threads", "2", "--seconds", "30", "--out", str(path)]) == 0
    rows = _timing.read_csv(path)
    found = {(row["mode"], row["workers"], row["threads"]) for row in rows}
    assert found == {
        ("threads", "1", "1"), ("threads", "1", "2"), ("threads", "2", "1"), ("processes", "2", "1"), ("threads", "4", "1"),
        ("processes", "4", "1"),
    }  # fmt: skip
    assert any(row["front"] == "yes" for row in rows)
    assert all(float(row["low"]) <= float(row["images_per_s"]) <= float(row["high"]) for row in rows)
    assert "workers x threads" in capsys.readouterr().out
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size == (1600, 840)


def test_front() -> None:
    rows = [{"images_per_s": s, "p95_ms": p} for s, p in ((10, 1), (20, 2), (15, 3), (20, 4))]
    assert _serve.front(rows) == {0, 1}


def test_labels_of_near_points_stand_above_each_other() -> None:
    points = [(500, 5), (510, 5), (515, 5), (900, 5), (505, 30)]
    levels = _picture._levels([{"images_per_s": speed, "p95_ms": late} for speed, late in points])
    assert [levels[point] for point in points] == [0, 1, 2, 0, 0]
    assert _picture._levels([{"images_per_s": 1, "p95_ms": 1}]) == {(1, 1): 0}


@pytest.mark.parametrize(("limits", "labelled"), [((290, 9300), True), ((0.15, 130), False)])
def test_an_axis_of_two_powers_of_ten_has_numbers_between(limits: tuple[float, float], labelled: bool) -> None:
    axes = Figure().subplots()
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    _picture.plain_ticks(axes.yaxis, limits)
    assert (axes.yaxis.get_minor_formatter()(500 if labelled else 0.5) != "") == labelled


def row(name: str, speed: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "contender": name,
        "batch": 1,
        "threads": 2,
        "precision": "fp32",
        "images_per_s": speed,
        "low": low,
        "high": high,
        "noisy": "no",
        **more,
    }


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = _timing.write_csv(
        tmp_path / "a.csv", [row("x", 100, 95, 105), row("y", 100, 95, 105), row("z", 100, 95, 105), row("only a", 1, 1, 1)]
    )
    b = _timing.write_csv(tmp_path / "b.csv", [row("x", 104, 99, 109), row("y", 200, 190, 210), row("z", 50, 45, 55)])
    assert cli.run(["bench", "--compare", str(a), str(b), "--json"]) == 0
    found = {each["contender"]: each for each in json.loads(capsys.readouterr().out)}
    assert {name: each["verdict"] for name, each in found.items()} == {"x": "not a difference", "y": "faster", "z": "slower"}
    assert found["y"]["ratio"] == 2.0
    assert (found["y"]["ratio_low"], found["y"]["ratio_high"]) == pytest.approx((190 / 105, 210 / 95), rel=1e-3)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_compare.table(list(found.values())))
    assert "not a difference" in console.export_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "no file"),
        ("x.csv", "a,b\n1,2\n", "not a benchmark"),
        ("x.csv", "", "not a benchmark"),
        ("x.csv", "contender,images_per_s,low,high\nx,1,1,1\nx,0,1,1\n", "damaged .*row 2"),
        ("x.csv", "contender,images_per_s,low,high\nx,much,1,1\n", "damaged .*row 1"),
        ("x.csv", "contender,images_per_s,low,high\nx,nan,1,1\n", "damaged .*row 1"),
        ("x.csv", "contender,images_per_s,low,high\nx,1\n", "differ in their number of cells"),
        ("x.csv", f"contender,images_per_s,low,high\n{'x' * 200_000},1,1,1\n", "cannot be read"),
        ("x.csv", "contender,images_per_s,low,high,workers\nx,1,1,1,2\n", "two kinds of benchmark .*only one has workers"),
    ],
)
def test_compare_refuses(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    good = _timing.write_csv(tmp_path / "good.csv", [row("x", 100, 95, 105)])
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match=message):
        _compare.compared(good, tmp_path / name)
    other = _timing.write_csv(tmp_path / "other.csv", [row("y", 100, 95, 105)])
    with pytest.raises(FileError, match="no rows in common"):
        _compare.compared(good, other)
    assert cli.run(["bench", "--compare", str(good)]) == 2


@pytest.mark.parametrize(("seconds", "kept"), [(0.001, [1, 8, 64]), (0.05, [1, 8]), (9.0, [1])])
def test_a_quick_look_leaves_out_batches_that_take_long(
    seconds: float, kept: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0, seconds)
    monkeypatch.setattr(inference, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    contender = SimpleNamespace(prepare=lambda inputs: SimpleNamespace(call=lambda: None))
    bench = SimpleNamespace(contenders=[contender] * 5, _inputs=lambda batch: None)
    cost = inference._Bench.cost(bench, 1)  # type: ignore[arg-type]
    assert inference._Bench.affordable(bench, (1, 8, 64), cost) == kept  # type: ignore[arg-type]
    err = capsys.readouterr().err
    assert err.count("skipped  batch") == 3 - len(kept)
    if len(kept) == 2:
        assert "batch 64 (quick; it would take about 160 s" in err  # 0.05 s x 64 x 10 calls x 5 contenders


def test_self_check_finds_an_expensive_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _timing.timed
    monkeypatch.setattr(_timing, "timed", lambda *given: honest(*given) * 20)  # far more than on a busy machine
    own, bare = _self_check.both(lambda: sum(range(2000)), 0.3)
    assert np.median(own) > 5 * np.median(bare)


@pytest.mark.parametrize(("factor", "raises"), [(1.0, False), (1.5, True)])
def test_self_check_refuses_a_difference_beyond_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, raises: bool
) -> None:
    bare = np.random.default_rng(0).normal(1e6, 1e3, 40)
    monkeypatch.setattr(_self_check, "both", lambda call, seconds: (bare[::-1] * factor, bare))
    expected = pytest.raises(DisagreeError, match="from a bare loop") if raises else nullcontext()
    with expected:
        _self_check.main(True, ["cnn_small"], out=tmp_path / "x.csv", batches=[8])
    assert len(_timing.read_csv(tmp_path / "x.csv")) == 1


def test_options_that_do_not_go_together() -> None:
    for words in (
        ["--serve", "--self-check"],
        ["cnn_small", "--serve", "--devices", "cuda"],
        ["startup", "--threads", "2"],
        ["cnn_small", "--threads", "0"],
        ["cnn_small", "--threads", "100000"],
        ["cnn_small", "--serve", "--threads", "100000"],
        ["cnn_small", "--self-check", "--threads", "100000"],
        ["cnn_small", "--devices", ","],
        ["cnn_small", "--batches", ""],
        ["cnn_small", "--seconds", "nan"],
        ["cnn_small", "--seconds", "inf"],
    ):
        assert cli.run(["bench", *words]) == 2, words


def test_the_option_that_set_the_limit_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def slow(*_: Any, timeout: float, **__: Any) -> None:
        raise _child.TooLongError(Path("net.onnx"), timeout)

    monkeypatch.setattr(inference, "main", slow)
    monkeypatch.setattr(zoo.bench, "_check_target", lambda name: None)  # there is no file
    assert cli.run(["bench", "net.onnx", "--seconds", "0.1"]) == 2
    assert "--seconds 0.1 is too short to run net.onnx once; give more" in capsys.readouterr().err
    assert cli.run(["bench", "net.onnx", "--seconds", "9", "--timeout", "5"]) == 4
    assert "over 5 s); if you trust it, raise --timeout" in capsys.readouterr().err


def test_where_to_write_is_settled_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "main", None)
    (tmp_path / "file").touch()
    for out, code in ((tmp_path, 2), (tmp_path / "x.png", 2), (tmp_path / "file" / "x.csv", 6)):
        assert cli.run(["bench", "cnn_small", "--out", str(out)]) == code, out


def test_rows_of_others_are_kept_with_the_new_columns(tmp_path: Path) -> None:
    path = _timing.write_csv(tmp_path / "x.csv", [{"run": "a", "old": 1}, {"run": "b", "old": 2}])
    rows = [{"run": "b", "new": 3}]
    assert _timing.merged(path, rows, lambda row: row["run"] != "b") == [{"run": "a", "new": ""}, {"run": "b", "new": 3}]
    assert _timing.merged(tmp_path / "none.csv", rows, lambda _: True) == rows


def test_int8_repair_keeps_the_rows_of_omitted_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(run: Any, *_: object) -> list[dict[str, Any]]:
        if run.path.name == "lossy":
            raise DisagreeError("accuracy drops")
        return [{"run": run.path.name, "accuracy": "new"}]

    monkeypatch.setattr(int8_repair.run_folders, "find", Path)
    monkeypatch.setattr(int8_repair.engine, "load", lambda path: SimpleNamespace(path=path))
    monkeypatch.setattr(int8_repair, "_rows", rows)
    out = tmp_path / "int8_repair.csv"
    _timing.write_csv(out, [{"run": name, "accuracy": "old"} for name in ("good", "lossy", "other")])
    int8_repair.main(out=out, runs=["good", "lossy"])
    assert {row["run"]: row["accuracy"] for row in _timing.read_csv(out)} == {"lossy": "old", "other": "old", "good": "new"}
    with pytest.raises(DisagreeError):
        int8_repair.main(out=out, runs=["lossy"])
