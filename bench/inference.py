"""Inference by runtime, precision and batch size: PyTorch eager and compiled, onnxruntime and OpenVINO on the same bytes."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import machine, metrics
from zoo.bench import Images, _agreement, _budget, _contenders, _gpu, _memory, _roofline, _runtimes, _subjects, _timing
from zoo.bench._agreement import Found
from zoo.bench._budget import Budget
from zoo.bench._contenders import BASE, Call, Contender
from zoo.bench._show import figures, table
from zoo.bench._subjects import Subject
from zoo.console import print_line
from zoo.errors import FileError, UsageError
from zoo.export import _accuracy, _guard, _session

__all__ = ["figures", "main", "table"]

BATCHES, QUICK_BATCHES = (1, 8, 64, 256), (1, 8, 64)
ACCURACY_BATCH, QUICK_IMAGES, MOST_BYTES = 64, 1000, 400_000_000
"""Accuracy is taken at this batch size or the largest below it, on 1,000 images in a quick run and never on more than 400 MB."""

QUICK_S, QUICK_CALLS = 30.0, 10
"""Time limit in seconds per batch size of a quick run, and the number of calls per contender if a call is long."""

TF32 = "NVIDIA_TF32_OVERRIDE"

ABOVE = 1.1
"""A larger share of the roofline means that its limits were measured under load: such a row is marked as noisy too."""


def main(
    quick: bool = False,
    targets: Any = (None,),
    *,
    out: Path | None = None,
    batches: Sequence[int] = (),
    devices: Sequence[str] = (),
    threads: int = 0,
    seconds: float = 0.0,
    budget: Budget | None = None,
    allow_cpu_fallback: bool = False,
    max_memory: int = 0,
    timeout: float = _guard.TIMEOUT,
    given: Images | None = None,
    size: int = 0,
) -> Path:
    """Benchmark runs (None: the latest), models by name and ONNX files; returns the CSV, with pictures next to it.

    ``threads`` 0: all available cores; ``seconds``: time per batch size, overridden by a ``budget`` for the command. Empty
    ``devices``: the CPU and, if there is one, the GPU. ``given`` are images for the accuracy, instead of those of the run; ``size``
    are the pixels of the input of files that leave them open.

    Raises:
        UsageError: a missing device or runtime, or too short a budget. FileError: a model that does not run.
        DisagreeError: outputs differ; nothing is written.
    """
    targets = list(targets) if isinstance(targets, list | tuple) else [targets]
    asked = checked_batches(batches)
    batches = asked or (QUICK_BATCHES if quick else BATCHES)
    places = [_Place.of(name, allow_cpu_fallback) for name in devices] or [_Place(torch.device("cpu")), *_gpu_here()]
    rows: list[dict[str, Any]] = []
    folders: list[Path | None] = []
    names: list[str] = []
    budget = budget or Budget()
    budget.places = len(targets) * len(places)
    with _settings(checked_threads(threads), places) as used:
        for target in targets:
            with _subjects.opened(
                target, _precisions(places), max_memory=max_memory, timeout=timeout, given=given, size=size
            ) as subject:
                names.append(subject.name)
                folders.append(subject.folder)
                sizes = fitting(subject, batches, asked)
                if subject.run is not None and not given and (accuracy := _accuracy.of_run(subject.run)):
                    print_line(f"accuracy {accuracy}; the table has the accuracy of each contender in its own precision")
                for place in places:
                    with _session.boundary(next(iter(subject.files.values())).name):
                        bench = _Bench(subject, place, used, quick, bool(devices), allow_cpu_fallback, budget)
                        rows += bench.run(sizes, seconds or (1.5 if quick else 15.0), trim=quick and not asked)
                    budget.places -= 1
    out = out or default_out("bench", folders, names)
    _timing.write_csv(out, rows)
    figures(rows, out)
    return out


def fitting(subject: Subject, usual: Sequence[int], asked: Sequence[int]) -> Sequence[int]:
    """The batch sizes ``asked`` for, or the ``usual`` ones, that the file accepts; FileError if it accepts none of the former."""
    if not subject.fixed:
        return asked or usual
    if asked and subject.fixed not in asked:
        path = next(iter(subject.files.values()))
        raise FileError(
            f"model accepts only batches of {subject.fixed} ({path}); omit --batches, or export it with a free batch size"
        )
    return (subject.fixed,)


def default_out(stem: str, folders: Sequence[Path | None], names: Sequence[str]) -> Path:
    """``STEM.csv`` in the folder of the only run, else in ``runs/bench``, named by what was measured."""
    if len(folders) == 1 and folders[0]:
        return folders[0] / f"{stem}.csv"
    kind = "" if stem == "bench" else f"-{stem}"
    return _timing.default_out("-".join(dict.fromkeys(names))[:60] + kind, quick=True)


def checked_batches(batches: Sequence[int]) -> tuple[int, ...]:
    """Sorted, without duplicates; UsageError for an invalid one."""
    found = tuple(sorted(set(batches)))
    if found and found[0] < 1:
        raise UsageError(f"batch size {found[0]} is not allowed; give positive numbers, e.g. --batches 1,8,64")
    return found


def checked_threads(threads: int) -> int:
    """``threads``, for 0 the available cores; UsageError for more than the cores of the machine."""
    most = os.cpu_count() or 1
    if threads > most:
        raise UsageError(f"--threads {threads} is more than this machine has cores; give at most {most}")
    return threads or machine.cores()


@dataclass(frozen=True)
class _Place:
    """Device of the contenders; ``fell`` if a requested GPU is missing and the CPU was allowed."""

    device: torch.device
    fell: bool = False

    @staticmethod
    def of(name: str, allow_cpu: bool) -> _Place:
        if name.startswith("cuda") and allow_cpu and not torch.cuda.is_available():
            print_line(f"warning  no GPU for {name}: measuring on the CPU instead; each row is marked")
            return _Place(torch.device("cpu"), fell=True)
        try:
            return _Place(machine.device(name))
        except UsageError as error:
            found = f"CUDA devices found: {torch.cuda.device_count()}"
            hint = ", or --allow-cpu-fallback" if name.startswith("cuda") else ""
            raise UsageError(f"no device {name!r} ({found}); use --devices cpu{hint}") from error


def _gpu_here() -> list[_Place]:
    return [_Place(torch.device("cuda"))] if torch.cuda.is_available() else []


def _precisions(places: Sequence[_Place]) -> tuple[str, ...]:
    gpu = any(place.device.type == "cuda" or place.fell for place in places)
    cpu = any(place.device.type == "cpu" for place in places)
    return ("fp32", *(["int8"] if cpu else []), *(["fp16"] if gpu else []))


@contextlib.contextmanager
def _settings(threads: int, places: Sequence[_Place]) -> Iterator[int]:
    """Set ``threads`` for PyTorch, disable TF32 (as in onnxruntime) and gradients; restore all afterwards."""
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    override = os.environ.get(TF32)
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if any(place.device.type == "cuda" for place in places):
        os.environ[TF32] = "0"  # TensorRT has no separate switch in onnxruntime
        print_line("tf32     off in PyTorch and in onnxruntime")
    try:
        with torch.inference_mode():
            yield threads
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before[1:]
        os.environ.pop(TF32, None)
        if override is not None:
            os.environ[TF32] = override


class _Bench:
    """One subject at one place: its contenders, and their rows batch by batch."""

    def __init__(
        self, subject: Subject, place: _Place, threads: int, quick: bool, must: bool, allow_cpu: bool, budget: Budget
    ) -> None:
        self.subject, self.place, self.threads, self.quick = subject, place, threads, quick
        self.device, self.budget = place.device, budget
        self.contenders = self._gather(must=must, allow_cpu=allow_cpu)
        self.work = _roofline.known(next(iter(subject.files.values())))
        size = math.prod(subject.shape) * (1 if subject.preprocess == "full" else 4)
        self.tested = subject.images("test", min(QUICK_IMAGES if quick else _subjects.IMAGES, MOST_BYTES // size))
        self.accuracy: dict[str, tuple[int, int]] = {}
        self.peaks: dict[str, float] = {}
        self.kept = {each.name: each.load_mb for each in self.contenders}

    def run(self, batches: Sequence[int], seconds: float, *, trim: bool) -> list[dict[str, Any]]:
        """The rows of the ``batches`` that fit into the time, ``seconds`` each; ``trim`` skips slow ones."""
        cost = self.cost(batches[0]) if trim or self.budget.total else 0.0
        if trim:
            batches = self.affordable(batches, cost)
        if self.budget.total:
            calls = _budget.CALLS + (0 if self.quick else _budget.TUNING)
            batches, seconds = self.budget.affordable(batches, cost / QUICK_CALLS * calls, self.subject.name)
        _budget.announce(self.subject.name, batches, seconds + (0 if self.budget.total else _budget.OVERHEAD))
        return self.measured(batches, seconds)

    def _gather(self, *, must: bool, allow_cpu: bool) -> list[Contender]:
        subject, found = self.subject, []
        if subject.build:
            compiled = not self.quick and not self.place.fell and self.budget.left() >= _budget.COMPILE_FROM
            found += _contenders.of_pytorch(subject.build, self.device, compiled=compiled, file_mb=subject.weights_mb)
            if not compiled:
                print_line("skipped  torch.compile (it takes minutes)")
            if self.place.fell:  # the CPU has separate rows
                found = [replace(each, name=each.name + _gpu.FELL) for each in found]
        try:
            device = torch.device("cuda") if self.place.fell else self.device
            example = subject.noise(subject.fixed or 1).numpy()
            found += _runtimes.of_onnxruntime(
                subject.files, device, self.threads, tune=not self.quick, allow_cpu=allow_cpu, example=example
            )
        except UsageError as error:
            if must or not found:
                raise
            print_line(f"skipped  onnxruntime {self.device.type}: {error}")
        if self.device.type == "cpu" and not self.place.fell:
            half = machine.precision("auto", self.device) == "bf16"
            found += (native := _runtimes.of_openvino(subject.files, self.threads, half=half))
            if not native:
                print_line("skipped  openvino (not installed; pip install openvino)")
        return found

    def cost(self, batch: int) -> float:
        """Seconds per image in :data:`QUICK_CALLS` calls of all contenders, estimated from two calls of the first at ``batch``."""
        call = self.contenders[0].prepare(self._inputs(batch)).call
        call()
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) / batch * QUICK_CALLS * len(self.contenders)

    def affordable(self, batches: Sequence[int], cost: float) -> Sequence[int]:
        """The smallest of ``batches`` and those that take no more than :data:`QUICK_S` at ``cost`` seconds per image."""
        kept = [batch for batch in batches if batch == batches[0] or cost * batch <= QUICK_S]
        for batch in batches[len(kept) :]:
            print_line(f"skipped  batch {batch} (quick; it would take about {cost * batch:,.0f} s; request it with --batches)")
        return kept

    def measured(self, batches: Sequence[int], seconds: float) -> list[dict[str, Any]]:
        """The rows of all batch sizes; each accuracy is in all rows of its contender."""
        at = max((batch for batch in batches if batch <= ACCURACY_BATCH), default=batches[0])
        rows: list[dict[str, Any]] = []
        for number, batch in enumerate(batches):
            if number and self.budget.total and not (seconds := self.budget.share(batch, len(batches) - number)):
                continue
            began = time.monotonic()
            print_line(f"measure  {self.subject.name} on {self.device.type}, batch {batch}")
            with _memory.enough_for(batch):
                rows += self._batch(batch, seconds, accuracy=batch == at)
            self.budget.pace = max(self.budget.pace, (time.monotonic() - began) / max(seconds, 1e-9))
        if self.tested and not self.accuracy:
            print_line(f"skipped  accuracy (no time for it within --seconds {self.budget.total:g})")
        environment = _timing.environment(self.device)
        return [row | self._accuracy(row["contender"]) | environment for row in rows]

    def _batch(self, batch: int, seconds: float, *, accuracy: bool) -> list[dict[str, Any]]:
        torch.compiler.reset()  # compilations for other batch sizes count towards the limit
        began, inputs = time.perf_counter(), self._inputs(batch)
        before = self._limits(batch)
        limits_s = time.perf_counter() - began
        found = _agreement.agreeing(self.contenders, inputs, self._reference(inputs), self.kept, self.device)
        calls: dict[str, Call] = {name: each.ready.call for name, each in found.items()}
        resident = {f"{name} resident": each.ready.resident for name, each in found.items() if each.ready.resident}
        sync = torch.cuda.synchronize if self.device.type == "cuda" else None
        if self.budget.total:  # remaining time of this batch after measuring the limits once more
            seconds -= time.perf_counter() - began + limits_s
            seconds -= self._count_right(found, inputs, seconds / 3) if accuracy else 0.0
        samples = _timing.interleave(calls | resident, seconds=max(0.0, seconds), sync=sync)
        after = self._limits(batch)
        limits = before.merged(after) if before and after else None
        if limits:
            self.peaks = {key: max(value, self.peaks.get(key, 0.0)) for key, value in limits.flops.items()}
            limits = replace(limits, flops=self.peaks)
        if accuracy and not self.budget.total:
            self._count_right(found, inputs, math.inf)
        base = BASE if BASE in samples else next(iter(samples))
        rows = []
        for name, each in found.items():
            row = self._row(each, batch, samples, base)
            row |= self._costs(each) | self._share(each, batch, 1 / samples[name].rate, limits)
            noisy = samples[name].noisy or any(samples[n].noisy for n in (f"{name} resident",) if n in samples)
            noisy = noisy or (row["share"] != "" and row["share"] > ABOVE)
            row |= {"settings": each.ready.settings, "noisy": "yes" if noisy else "no", "rounds": samples[name].rounds}
            rows.append({key: _plain(value) for key, value in row.items()})
        return rows

    def _count_right(self, found: Mapping[str, Found], inputs: Tensor, seconds: float) -> float:
        """Take each contender's accuracy, on fewer images or none if all would take more than ``seconds``; returns the time."""
        if not self.tested:
            return 0.0
        start = time.perf_counter()
        images, targets = self.tested
        if seconds < math.inf:
            for each in found.values():
                each.ready.call()
            per_image = (time.perf_counter() - start) / len(inputs)
            if (count := int(seconds / max(per_image, 1e-9))) < 1:
                return time.perf_counter() - start
            if count < len(images):
                print_line(
                    f"accuracy on {count:,} of {len(images):,} images (no time for more within --seconds {self.budget.total:g})"
                )
            images, targets = _spread(images, targets, count)
        self.accuracy = {name: _agreement.correct(each.ready.call, inputs, images, targets) for name, each in found.items()}
        return time.perf_counter() - start

    def _inputs(self, batch: int) -> Tensor:
        """Test images if available (repeated for a large batch), else noise; pinned for a GPU, for all contenders."""
        inputs = self.subject.noise(batch)
        if self.tested:
            images = self.tested[0]
            inputs = images[torch.arange(batch) % len(images)].contiguous()
        return inputs.pin_memory() if self.device.type == "cuda" else inputs

    def _reference(self, inputs: Tensor) -> Tensor | None:
        """Reference for a file without a PyTorch model: its graph run by onnxruntime without optimisations."""
        if self.subject.build:
            return None
        path = next(iter(self.subject.files.values()))
        session = _session.open_session(path, threads=self.threads, optimise=False)
        return torch.as_tensor(_runtimes.run(session, inputs.numpy())()).float()

    def _limits(self, batch: int) -> _roofline.Limits | None:
        if self.work is None:
            return None
        wanted = {each.precision for each in self.contenders}
        return _roofline.limits(self.work, wanted, self.device, self.threads, batch)

    def _row(self, each: Found, batch: int, samples: dict[str, _timing.Sample], base: str) -> dict[str, Any]:
        contender, sample = each.contender, samples[each.contender.name]
        slow, fast = (batch * rate for rate in _timing.median_interval(sample.rates))
        row = {
            "model": self.subject.name, "contender": contender.name, "batch": batch, "threads": self.threads,
            "precision": contender.precision, "median_ms": sample.median / 1e6, "p95_ms": sample.quantile(0.95) / 1e6,
            "p99_ms": sample.quantile(0.99) / 1e6, "images_per_s": batch * sample.rate, "low": slow, "high": fast,
            "ratio": _timing.speedup(samples[base], sample), "base": base,
        }  # fmt: skip
        stays = samples.get(f"{contender.name} resident")
        row["resident_per_s"] = batch * stays.rate if stays else ""
        row["resident_low"], row["resident_high"] = (
            (batch * rate for rate in _timing.median_interval(stays.rates)) if stays else ("", "")
        )
        return row

    def _costs(self, each: Found) -> dict[str, Any]:
        return {
            "load_ms": each.contender.load_ms, "first_ms": each.first_ms, "peak_mb": each.peak_mb, "file_mb": each.contender.file_mb,
            "max_diff": each.difference,
        }  # fmt: skip

    def _share(self, each: Found, batch: int, seconds: float, limits: _roofline.Limits | None) -> dict[str, Any]:
        if self.work is None or limits is None:
            return dict.fromkeys(("gflops", "limit_gflops", "share", "bound"), "")
        done, share, bound = limits.place(self.work, each.contender.precision, batch, seconds)
        return {"gflops": done, "limit_gflops": done / share, "share": share, "bound": bound}

    def _accuracy(self, name: str) -> dict[str, Any]:
        right, n = self.accuracy.get(name, (0, 0))
        low, high = metrics.wilson(right, n) if n else (math.nan, math.nan)
        row = {"accuracy": right / n if n else math.nan, "accuracy_low": low, "accuracy_high": high, "images": n or ""}
        return {key: _plain(value) for key, value in row.items()}


def _spread(images: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Up to ``count`` of the images, evenly."""
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    return images[chosen], targets[chosen]


def _plain(value: Any) -> Any:
    """Four significant digits; empty if unknown."""
    return "" if isinstance(value, float) and math.isnan(value) else _timing.rounded(value)
