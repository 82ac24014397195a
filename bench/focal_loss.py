"""How fast and how exact is the focal loss: zoo's op against eager, compiled and peers, with a copy of the bytes as the limit."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.table import Table
from torch import Tensor
from torch.nn.functional import one_hot

from zoo import host, ops, show
from zoo.bench import _losses, _picture, _timing
from zoo.bench._losses import BASE, COPY, OWN, OWN_KERNEL, Contender
from zoo.console import say
from zoo.files import publish
from zoo.spec import DisagreeError
from zoo.train import DTYPES

SIZES = ((128, 10), (128, 100), (4096, 10), (4096, 100), (65536, 10), (1048576, 10), (8192, 1000), (512, 50257))
QUICK_SIZES = ((128, 10), (4096, 10), (4096, 100))
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-3}
"""Largest error of zoo's own loss and gradient that passes, relative to the largest value."""


def main(
    quick: bool = False,
    *,
    out: Path | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    dtypes: Sequence[str] = (),
    threads: Sequence[int] = (),
    seconds: float = 0.0,
    device: str = "auto",
) -> Path:
    """Benchmark the loss over (N, C) ``sizes``; returns the CSV, with a log-log plot of the same name beside it.

    Raises:
        UsageError: no such device. DisagreeError: zoo's own loss or gradient is off; nothing is written.
    """
    where = host.device(device)
    out = out or _timing.default_out("focal_loss", quick=quick)
    dtypes = dtypes or (("fp32",) if quick else ("fp32", "bf16"))
    threads = threads or sorted({host.cores()} if quick or where.type == "cuda" else {1, host.cores()})
    if quick:
        say("skipped  torch.compile (quick)")
    rows: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    try:
        for used in threads:
            torch.set_num_threads(used)
            for n, c in sizes or (QUICK_SIZES if quick else SIZES):
                for dtype in dtypes:
                    rows += _case(n, c, dtype, used, where, quick, seconds or (0.3 if quick else 4.0))
    finally:
        torch.set_num_threads(before)
    _timing.write_csv(out, rows)
    publish(out.with_suffix(".png"), lambda temporary: figure(rows, temporary))
    return out


def _case(n: int, c: int, dtype: str, threads: int, where: torch.device, quick: bool, seconds: float) -> list[dict[str, Any]]:
    """All rows of one size, type and thread count."""
    draw = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(n, c, generator=draw)).to(where, DTYPES[dtype])
    target = torch.randint(c, (n,), generator=draw).to(where)
    weight = (0.5 + torch.rand(c, generator=draw)).to(where)
    tried = (_checked(each, logits, target, weight, dtype) for each in _losses.all_of(where, compiled=not quick))
    errors = {each: found for each, found in tried if found is not None}
    common = {"n": n, "c": c, "dtype": dtype, "threads": threads, "kernel": ops.kernel()}
    rows = []
    for backward in (False, True):
        calls = {each.name: _call(each, logits, target, weight, backward) for each in errors}
        if kernel := _losses.kernel_of(logits, target, weight, backward=backward):
            calls[OWN_KERNEL] = kernel
        calls[COPY] = _losses.copy_of(logits, target, backward=backward)
        told = {each.name: (each.formula, "fresh", *found) for each, found in errors.items()}
        peaks = {name: _peak(call) for name, call in calls.items()}
        samples = _timing.interleave(calls, seconds=seconds, sync=torch.cuda.synchronize if where.type == "cuda" else None)
        for name in samples:
            row = common | {"pass": "forward+backward" if backward else "forward", "contender": name}
            row |= dict(zip(("formula", "buffer", "loss_error", "grad_error"), told.get(name, ("", "reused", "", ""))))
            row |= _numbers(name, samples, logits.nbytes * (1 + backward) + target.nbytes) | {"peak_mb": peaks[name]}
            rows.append({key: _timing.rounded(value) for key, value in row.items()} | _timing.environment(where))
    return rows


def _checked(
    contender: Contender, logits: Tensor, target: Tensor, weight: Tensor, dtype: str
) -> tuple[Contender, tuple[float, float] | None]:
    """The contender and its errors, None if it cannot run here: a compiler may be missing or refuse."""
    try:
        return contender, _errors(contender, logits, target, weight, dtype)
    except Exception as error:
        if not contender.optional:
            raise
        say(f"skipped  {contender.name}: {(str(error).strip() or type(error).__name__).splitlines()[0][:100]}")
        return contender, None


def _goal(contender: Contender, logits: Tensor, target: Tensor) -> Tensor:
    return one_hot(target, logits.shape[1]).to(logits.dtype) if contender.formula == "sigmoid" else target


def _call(contender: Contender, logits: Tensor, target: Tensor, weight: Tensor, backward: bool) -> Callable[[], object]:
    goal = _goal(contender, logits, target)
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return contender.call(logits, goal, weight)

        return forward
    leaf = logits.detach().requires_grad_()

    def both() -> None:
        contender.call(leaf, goal, weight).backward()
        leaf.grad = None

    return both


def _errors(contender: Contender, logits: Tensor, target: Tensor, weight: Tensor, dtype: str) -> tuple[float, float]:
    """Errors of loss and gradient against float64, relative to the largest true value of each."""
    leaf = logits.detach().requires_grad_()
    loss = contender.call(leaf, _goal(contender, logits, target), weight)
    loss.backward()
    true_loss, true_grad = _losses.truth(contender.formula, logits, target, weight)
    assert leaf.grad is not None
    errors = (
        float((loss.detach().double() - true_loss).abs() / true_loss.abs()),
        float((leaf.grad.double() - true_grad).abs().max() / true_grad.abs().max()),
    )
    if contender.name == OWN and not max(errors) <= TOLERANCE[dtype]:
        raise DisagreeError(
            f"zoo's focal loss is off ({tuple(logits.shape)} {dtype}, loss {errors[0]:.1e}, gradient {errors[1]:.1e}, allowed"
            f" {TOLERANCE[dtype]:.0e}); nothing written. Build it again: make build"
        )
    return errors


def _numbers(name: str, samples: Mapping[str, _timing.Sample], moved: int) -> dict[str, Any]:
    sample = samples[name]
    low, high = sample.interval
    return {
        "median_us": sample.median / 1e3, "p95_us": sample.quantile(0.95) / 1e3, "low_us": low / 1e3, "high_us": high / 1e3,
        "gb_per_s": moved / sample.median, "times_copy": 1 / _timing.ratio(samples[COPY], sample),
        "ratio": _timing.ratio(samples[BASE], sample), "noisy": "yes" if sample.noisy else "no", "rounds": sample.rounds,
    }  # fmt: skip


def _peak(call: Callable[[], object]) -> float:
    """Megabytes of PyTorch's memory that one call holds at its highest point, by the profiler's record of each block."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its notes on stderr are not for users
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    blocks = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    held = itertools.accumulate((event.nbytes() for event in sorted(blocks, key=lambda event: event.start_ns())), initial=0)
    return max(held) / 1e6


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal: forward and backward together, one block a size."""
    shown = [row for row in rows if row["pass"] == "forward+backward"]
    columns = ("contender", ">N x C", ">type", ">threads", ">us", ">x copy", ">ratio", ">grad error", ">MB")
    found = show.make(columns, [])
    for row in shown:
        found.add_row(*_cells(row), style="bold" if row["contender"] in (OWN, OWN_KERNEL) else None)
    return found


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"{row['contender']}{' (noisy)' if row['noisy'] == 'yes' else ''}"
    time, multiple, ratio = (float(row[key]) for key in ("median_us", "times_copy", "ratio"))
    error = f"{float(row['grad_error']):.0e}" if row["grad_error"] != "" else ""
    memory = f"{float(row['peak_mb']):.3g}"
    size = f"{int(row['n']):,} x {row['c']}"
    return name, size, row["dtype"], str(row["threads"]), f"{time:,.4g}", f"{multiple:.3g}", f"{ratio:.3g}", error, memory


def figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time of forward and backward against N x C, few classes and many apart, log-log, with the copy as dashed line."""
    most, dtype = max(int(row["threads"]) for row in rows), rows[0]["dtype"]
    shown = [row for row in rows if (int(row["threads"]), row["dtype"], row["pass"]) == (most, dtype, "forward+backward")]
    panels = {"up to 32 classes": (1, 32), "more classes": (33, 1 << 62)}
    panels = {title: span for title, span in panels.items() if any(span[0] <= int(row["c"]) <= span[1] for row in shown)}
    chart = Figure(figsize=(8, 4.2), dpi=200, layout="constrained")
    for axes, (title, span) in zip(chart.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        inside = [row for row in shown if span[0] <= int(row["c"]) <= span[1]]
        for name in dict.fromkeys(row["contender"] for row in inside):
            own = sorted((int(row["n"]) * int(row["c"]), float(row["median_us"])) for row in inside if row["contender"] == name)
            axes.plot([size for size, _ in own], [time for _, time in own], label=name, **_picture.style(name))
        sizes = sorted({(int(row["n"]), int(row["c"])) for row in inside}, key=lambda size: size[0] * size[1])
        axes.set(title=title, xlabel="N x C", ylabel="microseconds", xscale="log", yscale="log")
        axes.set_xticks([n * c for n, c in sizes], [f"{n:,}\nx {c:,}" for n, c in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
    place = rows[0]["device"] if rows[0]["device"] != "cpu" else rows[0]["cpu"]
    note = f"{most} threads, {rows[0]['kernel']}, torch {rows[0]['torch']}, {rows[0]['date']}; dashed: a copy of the same bytes"
    _picture.finish(chart, path, f"Focal loss, forward and backward, {dtype}, {place}", note)
