"""Which runtime, precision and batch to deploy: PyTorch eager and compiled against onnxruntime on the same inputs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from zoo import host, registry, show
from zoo import run as runs
from zoo.bench import _contenders, _picture, _timing
from zoo.bench._contenders import BASE, Call, Contender
from zoo.console import say
from zoo.export import _graph, onnx_fp32
from zoo.files import publish
from zoo.spec import DisagreeError, UsageError

BATCHES, QUICK_BATCHES = (1, 8, 64, 256), (1, 8, 64)


@dataclass(frozen=True)
class Subject:
    """What is benchmarked: a float32 model, as its ONNX file has it, and where the run and that file are, if any."""

    name: str
    model: _graph.Exported
    input: tuple[int, int, int]
    folder: Path | None = None
    file: Path | None = None


def main(
    quick: bool = False,
    target: str | Path | runs.Run | None = None,
    *,
    out: Path | None = None,
    batches: Sequence[int] = (),
    device: str = "auto",
    threads: int = 0,
    seconds: float = 0.0,
) -> Path:
    """Benchmark a run (default: the latest) or a model by name; returns the CSV, with a picture of the same name beside it.

    ``threads`` 0 is all cores that are really available; ``seconds`` are those of measuring at one batch size. ``auto``
    is the CPU, and the GPU besides where there is one.

    Raises:
        UsageError: a device or runtime that is not there. DisagreeError: outputs differ; nothing is written.
    """
    batches = tuple(sorted(set(batches))) or (QUICK_BATCHES if quick else BATCHES)
    if batches[0] < 1:
        raise UsageError(f"batch size {batches[0]} is not allowed; give positive numbers, e.g. --batches 1,8,64")
    subject = _subject(target)
    out = out or (subject.folder / "bench.csv" if subject.folder else _timing.default_out(subject.name, quick=True))
    places = [host.device(device)] if device != "auto" else [torch.device("cpu"), *_gpu()]
    rows: list[dict[str, Any]] = []
    with _settings(threads or host.cores()) as used, _model_file(subject) as file:
        for place in places:
            contenders = _gather(subject, file, place, used, compiled=not quick, must=device != "auto")
            for batch in batches:
                rows += _measure(subject, contenders, place, batch, used, seconds or (1.5 if quick else 15.0))
    _timing.write_csv(out, rows)
    publish(out.with_suffix(".png"), lambda temporary: figure(rows, temporary))
    return out


def _subject(target: str | Path | runs.Run | None) -> Subject:
    if isinstance(target, str) and (target in registry.names("models") or target.startswith("timm/")):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, shape = runs.create_model(target), runs.model_spec(target).input
        return Subject(
            target, _graph.Exported(model, (0, 0, 0), (1, 1, 1), size=shape[1], stored=shape[1], preprocess="none"), shape
        )
    run = target if isinstance(target, runs.Run) else runs.load(target)
    mode, softmax = "none", False
    file = run.path / "model.onnx" if (run.path / "model.onnx").is_file() else None
    if file:
        mode, softmax = _contenders.own_preprocessing(file)
    if mode == "full":  # takes images of any size as bytes, which PyTorch's contenders are not given
        mode, softmax, file = "none", False, None
        say("onnx     model.onnx resizes images itself; the network alone is measured")
    size = run.input[1]
    wrapped = _graph.Exported(run.model, run.mean, run.std, size=size, stored=size, preprocess=mode, softmax=softmax)
    return Subject(run.recipe.model, wrapped, run.input, run.path, file)


def _gpu() -> list[torch.device]:
    return [torch.device("cuda")] if torch.cuda.is_available() else []


@contextlib.contextmanager
def _settings(threads: int) -> Iterator[int]:
    """``threads`` for PyTorch, no TF32 (onnxruntime is given none either), no gradients; all as before afterwards."""
    before, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode():
            yield threads
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.allow_tf32 = tf32


@contextlib.contextmanager
def _model_file(subject: Subject) -> Iterator[Path]:
    """The run's own model.onnx, else a new one that is gone afterwards."""
    if subject.file:
        yield subject.file
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with torch.inference_mode(False):
            onnx_fp32.write(subject.model, path)
        yield path


def _gather(subject: Subject, file: Path, place: torch.device, threads: int, *, compiled: bool, must: bool) -> list[Contender]:
    found = _contenders.of_pytorch(subject.model, place, compiled=compiled)
    if not compiled:
        say("skipped  torch.compile (quick)")
    try:
        found += _contenders.of_onnxruntime(file, place, threads)
    except UsageError as error:
        if must:
            raise
        say(f"skipped  onnxruntime {place.type}: {error}")
    return found


def _measure(
    subject: Subject, contenders: Sequence[Contender], place: torch.device, batch: int, threads: int, seconds: float
) -> list[dict[str, Any]]:
    inputs = _inputs(batch, subject.input).to(place)
    calls = _agreeing(contenders, inputs)
    sync = torch.cuda.synchronize if place.type == "cuda" else None
    samples = _timing.interleave(calls, seconds=seconds, sync=sync)
    environment = _timing.environment(place)
    precision = {each.name: each.precision for each in contenders}
    rows = []
    for name, sample in samples.items():
        slow, fast = (batch / time * 1e9 for time in reversed(sample.interval))
        row = {
            "model": subject.name, "contender": name, "batch": batch, "threads": threads, "precision": precision[name],
            "median_ms": sample.median / 1e6, "p95_ms": sample.quantile(0.95) / 1e6, "p99_ms": sample.quantile(0.99) / 1e6,
            "images_per_s": batch / sample.median * 1e9, "low": slow, "high": fast, "ratio": _timing.ratio(samples[BASE], sample),
            "noisy": "yes" if sample.noisy else "no", "rounds": sample.rounds,
        }  # fmt: skip
        rows.append({key: _timing.rounded(value) for key, value in row.items()} | environment)
    return rows


def _inputs(batch: int, shape: tuple[int, int, int]) -> Tensor:
    """The same (N, C, H, W) float32 images for every contender and every run: seeded noise of unit variance."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32))


def _agreeing(contenders: Sequence[Contender], inputs: Tensor) -> dict[str, Call]:
    """One call for each contender that can run, its answer held against eager float32 first."""
    calls: dict[str, Call] = {}
    truth = torch.empty(0)
    for each in contenders:
        try:
            call = each.prepare(inputs)
            answer = torch.as_tensor(call()).float().cpu()
        except Exception as error:
            if each.name != "torch.compile":
                raise
            say(
                f"skipped  torch.compile: {str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__}"
            )
            continue
        if each.name == BASE:
            truth = answer
        allowed = each.tolerance * max(1.0, float(truth.abs().max()))
        worst = float((answer - truth).abs().max()) if answer.shape == truth.shape else float("inf")
        if not worst <= allowed:  # also when it is nan
            raise DisagreeError(
                f"{each.name} and {BASE} disagree (batch {len(inputs)}, largest difference {worst:.2g}, allowed {allowed:.2g});"
                " nothing written. If the model changed, export again: zoo export --onnx --force"
            )
        calls[each.name] = call
    return calls


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal, 80 columns wide; the fastest of each batch in bold."""
    found = show.make(("contender", ">batch", ">img/s", ">95 % interval", ">ratio", ">p50 ms", ">p95 ms"), [])
    for row in rows:
        fastest = max(float(other["images_per_s"]) for other in rows if other["batch"] == row["batch"])
        found.add_row(*_cells(row), style="bold" if float(row["images_per_s"]) == fastest else None)
    return found


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    speed, low, high, ratio, median, p95 = (
        float(row[key]) for key in ("images_per_s", "low", "high", "ratio", "median_ms", "p95_ms")
    )
    name = f"{row['contender']}{' (noisy)' if row['noisy'] == 'yes' else ''}"
    return name, str(row["batch"]), f"{speed:,.0f}", f"{low:,.0f}-{high:,.0f}", f"{ratio:.2f}", f"{median:.3g}", f"{p95:.3g}"


def figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw throughput (band: 95 % interval) and latency against batch, one line a contender, as PNG."""
    devices = sorted({str(row["device"]) for row in rows})
    title = f"{rows[0]['model']}: inference on {' and '.join(d if d != 'cpu' else rows[0]['cpu'] for d in devices)}"
    lines = [
        line
        for name in dict.fromkeys(row["contender"] for row in rows)
        for device in devices
        if (line := _line(rows, name, device))
    ]
    if len(devices) > 1:
        lines = [replace(line, name=f"{line.name} ({line.device})") for line in lines]
    note = f"{rows[0]['threads']} threads, torch {rows[0]['torch']}, onnxruntime {rows[0]['onnxruntime']}, {rows[0]['date']}"
    _picture.draw(path, title, note, lines)


def _line(rows: Sequence[Mapping[str, Any]], name: str, device: str) -> _picture.Line | None:
    own = [row for row in rows if row["contender"] == name and row["device"] == device]
    numbers = {key: [float(row[key]) for row in own] for key in ("batch", "images_per_s", "low", "high", "median_ms", "p95_ms")}
    noisy = [row["noisy"] == "yes" for row in own]
    return _picture.Line(name, device, numbers, noisy) if own else None
