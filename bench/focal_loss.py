"""Speed and accuracy of the focal loss: zoo's op against eager, compiled and other implementations, with a copy of the bytes as the limit.

torch.compile compiles for one number of threads, so it runs at the largest only; the kernels of narrower
instruction sets run at :data:`SETS_AT`, in float32. Rows whose pass is :data:`STEP` are whole training steps, with the share
of the loss. The benchmark takes about ten minutes on two cores.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.table import Table
from torch import Tensor
from torch.nn.functional import one_hot

from zoo import machine, ops, tables
from zoo.bench import _heads, _losses, _picture, _timing
from zoo.bench._losses import BASE, COPY, COPY_SHARES, EMPTY, OWN, OWN_KERNEL, SOFT, Contender
from zoo.console import print_line
from zoo.errors import DisagreeError
from zoo.training.loop import DTYPES

SIZES = (
    (128, 10), (128, 100), (4096, 10), (4096, 100), (65536, 10), (65536, 100), (1048576, 10), (8192, 1000), (512, 50257),
)  # fmt: skip
QUICK_SIZES = ((128, 10), (4096, 10), (4096, 100))
SETS_AT = ((4096, 10), (65536, 10), (1048576, 10), (4096, 100), (65536, 100))
LARGE = 1_000_000
"""Logits above which a call takes milliseconds in most contenders."""
STEP = "training step"
ASIDE = ("shares", "in place")
"""Words in the names of contenders that the picture omits."""
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-3}
"""Largest accepted error of zoo's loss and gradient, relative to the largest value."""


def main(
    quick: bool = False,
    *,
    out: Path | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    dtypes: Sequence[str] = (),
    threads: Sequence[int] = (),
    seconds: float = 0.0,
    device: str = "auto",
    model: str = "resnet32",
) -> Path:
    """Benchmark the loss over (N, C) ``sizes``, and in whole training steps of ``model``; returns the CSV, with a log-log plot of the same name next to it.

    Raises:
        UsageError: no such device. DisagreeError: zoo's loss or gradient is wrong; nothing is written.
    """
    where = machine.device(device)
    out = out or _timing.default_out("focal_loss", quick=quick)
    dtypes = dtypes or (("fp32",) if quick else ("fp32", "bf16"))
    threads = threads or sorted({machine.cores()} if quick or where.type == "cuda" else {1, machine.cores()})
    seconds = seconds or (0.3 if quick else 2.0)
    if quick:
        print_line("skipped  torch.compile (quick)")
    rows: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    try:
        for n, c in sizes or (QUICK_SIZES if quick else SIZES):
            for dtype in dtypes:
                torch.set_num_threads(max(threads))
                case = Case.draw(n, c, dtype, where)
                able = _able(case, _losses.all_of(where, compiled=not quick))
                for used in threads:
                    print_line(f"measure  {n:,} x {c:,}, {dtype}, {used} thread{'s' if used > 1 else ''}")
                    torch.set_num_threads(used)
                    rows += _timed(case, able, used, seconds, compiled=used == max(threads))
        torch.set_num_threads(max(threads))
        for n, c in sizes or (() if quick else _heads.SIZES):
            print_line(f"measure  {n:,} x {c:,}, last layer and loss")
            rows += _layers(_heads.Head.draw(n, c, where), max(threads), seconds)
        rows += _steps(model, where, max(threads), 5 * seconds)
    finally:
        torch.set_num_threads(before)
    _timing.write_csv(out, rows)
    _picture.publish_both(out.with_suffix(".png"), lambda temporary: figure(rows, temporary))
    return out


@dataclass(frozen=True)
class Case:
    """Logits (N, C), labels (N,) and weights (C,) of one size and type, drawn from a fixed seed."""

    dtype: str
    logits: Tensor
    target: Tensor
    weight: Tensor

    @staticmethod
    def draw(n: int, c: int, dtype: str, device: torch.device) -> Case:
        source = torch.Generator().manual_seed(0)
        logits = (3 * torch.randn(n, c, generator=source)).to(device, DTYPES[dtype])
        target = torch.randint(c, (n,), generator=source).to(device)
        return Case(dtype, logits, target, (0.5 + torch.rand(c, generator=source)).to(device))

    @cached_property
    def onehot(self) -> Tensor:
        return one_hot(self.target, self.logits.shape[1]).to(self.logits.dtype)

    @cached_property
    def shares(self) -> Tensor:
        """(N, C) shares of the classes, of the logits' type: a teacher's probabilities."""
        draw = torch.Generator().manual_seed(1)
        return (2 * torch.randn(self.logits.shape, generator=draw)).softmax(1).to(self.logits)

    def goal(self, contender: Contender) -> Tensor:
        """Target of the contender."""
        if contender.formula in SOFT:
            return self.shares
        return self.onehot if contender.formula == "sigmoid" else self.target


@dataclass(frozen=True)
class Able:
    """A contender that runs here, the errors of its loss and gradient, and the memory of a call by pass in MB."""

    contender: Contender
    errors: tuple[float, float]
    peak: Mapping[bool, float]


def _able(case: Case, contenders: Sequence[Contender]) -> list[Able]:
    """Contenders that can run, each checked against the reference: a compiler may be missing or fail."""
    truths = {
        formula: _losses.truth(formula, case.logits, case.shares if formula in SOFT else case.target, case.weight)
        for formula in dict.fromkeys(contender.formula for contender in contenders)
    }
    found = []
    for contender in contenders:
        try:
            errors = _errors(contender, case, truths[contender.formula])
            peak = {backward: _peak(_call(contender, case, backward)) for backward in (False, True)}
        except Exception as error:
            if not contender.optional:
                raise
            print_line(f"skipped  {contender.name}: {(str(error).strip() or type(error).__name__).splitlines()[0][:100]}")
            continue
        found.append(Able(contender, errors, peak))
    return found


def _timed(case: Case, able: Sequence[Able], threads: int, seconds: float, *, compiled: bool) -> list[dict[str, Any]]:
    """All rows of one case and thread count."""
    logits, target, weight = case.logits, case.target, case.weight
    n, c = logits.shape
    common = {"n": n, "c": c, "dtype": case.dtype, "threads": threads}
    usable = {each.contender.name: each for each in able if compiled or not each.contender.name.startswith("torch.compile")}
    rows = []
    for backward in (False, True):
        calls = {name: _call(each.contender, case, backward) for name, each in usable.items()}
        sets = backward and case.dtype == "fp32" and (n, c) in SETS_AT
        calls |= _losses.kernels_of(logits, target, weight, backward=backward, sets=sets)
        calls[EMPTY] = _losses.empty_of(logits, backward=backward)
        calls[COPY] = _losses.copy_of(logits, target, backward=backward)
        calls[COPY_SHARES] = _losses.copy_of(logits, case.shares, backward=backward)
        peaks = {name: usable[name].peak[backward] if name in usable else _peak(call) for name, call in calls.items()}
        warmup = 0 if logits.numel() > LARGE else 2  # one call precedes the timing anyway
        sync = torch.cuda.synchronize if logits.is_cuda else None
        samples = _timing.interleave(calls, seconds=seconds, warmup=warmup, sync=sync)
        for name in samples:
            row = common | {"kernel": _kernel(name), "pass": "forward+backward" if backward else "forward", "contender": name}
            soft = name == COPY_SHARES or (name in usable and usable[name].contender.formula in SOFT)
            moved = logits.nbytes * (1 + backward) + (case.shares if soft else target).nbytes
            row |= _facts(usable.get(name)) | _numbers(name, samples, moved, COPY_SHARES if soft else COPY)
            row |= {"peak_mb": peaks[name], "loss_share": ""}
            rows.append({key: _timing.rounded(value) for key, value in row.items()} | _timing.environment(logits.device))
    return rows


def _kernel(name: str) -> str:
    """The kernel of zoo's op, or the instruction set at the end of the contender's name."""
    chosen = name.removeprefix(OWN_KERNEL).strip() if name.startswith(OWN_KERNEL) else ""
    return f"C++ {chosen}" if chosen else ops.kernel()


def _facts(able: Able | None) -> dict[str, Any]:
    formula, buffer, errors = (able.contender.formula, "fresh", able.errors) if able else ("", "reused", ("", ""))
    return {"formula": formula, "buffer": buffer, "loss_error": errors[0], "grad_error": errors[1]}


def _steps(model: str, device: torch.device, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of whole training steps of ``model`` at batch 128 with zoo's loss and with PyTorch's cross entropy."""
    contenders = [each for each in _losses.all_of(device, compiled=False) if each.name in (OWN, "F.cross_entropy")]
    sync = torch.cuda.synchronize if device.type == "cuda" else None
    steps = {each.name: _losses.Step(model, each, device, sync) for each in contenders}
    samples = _timing.interleave(steps, seconds=seconds, warmup=1, sync=sync)
    rows = []
    for each in contenders:
        sample = samples[each.name]
        numbers = {"gb_per_s": "", "times_copy": "", "ratio": _timing.ratio(samples["F.cross_entropy"], sample)}
        row = {"n": _losses.Step.BATCH, "c": _losses.Step.CLASSES, "dtype": "fp32", "threads": threads, "kernel": ops.kernel()}
        row |= {"pass": f"{model} {STEP}", "contender": each.name, "formula": each.formula, "buffer": "fresh"}
        row |= {"loss_error": "", "grad_error": "", **_times(sample), **numbers}
        row |= {"noisy": "yes" if sample.noisy else "no", "rounds": sample.rounds, "peak_mb": _peak(steps[each.name])}
        row["loss_share"] = steps[each.name].share
        rows.append({key: _timing.rounded(value) for key, value in row.items()} | _timing.environment(device))
    return rows


def _layers(head: _heads.Head, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of a layer of ``head`` with its loss, in float32."""
    losses, errors = _heads.contenders(head.target.device), {}
    for name, loss in list(losses.items()):
        try:
            errors[name] = head.error(loss)
        except Exception as error:
            if name not in _heads.PEERS:
                raise
            print_line(f"skipped  {name}: {(str(error).strip() or type(error).__name__).splitlines()[0][:100]}")
            del losses[name]
    for name in _heads.OWN:
        _hold(name, errors[name], (len(head.target), len(head.weight)), "fp32")
    calls = {name: head.call(loss) for name, loss in losses.items()}
    sync = torch.cuda.synchronize if head.target.is_cuda else None
    samples = _timing.interleave(calls, seconds=seconds, warmup=1, sync=sync)
    rows = []
    for name, sample in samples.items():
        row = {"n": len(head.target), "c": len(head.weight), "dtype": "fp32", "threads": threads, "kernel": ops.kernel()}
        row |= {"pass": _heads.PASS, "contender": name, "formula": "cross_entropy", "buffer": "fresh"}
        row |= {
            "loss_error": errors[name][0],
            "grad_error": errors[name][1],
            **_times(sample),
            "gb_per_s": "",
            "times_copy": "",
        }
        row |= {"ratio": _timing.ratio(samples[_heads.BASE], sample), "noisy": "yes" if sample.noisy else "no"}
        row |= {"rounds": sample.rounds, "peak_mb": _peak(calls[name]), "loss_share": ""}
        rows.append({key: _timing.rounded(value) for key, value in row.items()} | _timing.environment(head.target.device))
    return rows


def _hold(name: str, errors: tuple[float, float], shape: tuple[int, ...], dtype: str) -> None:
    """DisagreeError if zoo's values are wrong."""
    if not max(errors) <= TOLERANCE[dtype]:
        raise DisagreeError(
            f"zoo's focal loss is wrong ({name}, {shape} {dtype}, loss {errors[0]:.1e}, gradient {errors[1]:.1e}, allowed"
            f" {TOLERANCE[dtype]:.0e}); no results written. Rebuild it: pip install --no-deps -e ."
        )


def _call(contender: Contender, case: Case, backward: bool) -> Callable[[], object]:
    goal = case.goal(contender)
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return contender.call(case.logits, goal, case.weight)

        return forward
    leaf = case.logits.detach().requires_grad_()
    if contender.inplace:  # each call's gradients are the next one's logits: its time does not depend on them
        buffer = case.logits.clone()
        return lambda: contender.call(_losses.Handed.apply(leaf, buffer), goal, case.weight).backward()

    def both() -> None:
        contender.call(leaf, goal, case.weight).backward()
        leaf.grad = None

    return both


def _errors(contender: Contender, case: Case, true: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Errors of loss and gradient against float64, relative to the largest true value of each."""
    leaf = case.logits.detach().requires_grad_()
    loss = contender.call(leaf * 1 if contender.inplace else leaf, case.goal(contender), case.weight)
    loss.backward()
    true_loss, true_grad = true
    assert leaf.grad is not None
    errors = (
        float((loss.detach().double() - true_loss).abs() / true_loss.abs()),
        float((leaf.grad.double() - true_grad).abs().max() / true_grad.abs().max()),
    )
    if contender.name.startswith(OWN):
        _hold(contender.name, errors, tuple(leaf.shape), case.dtype)
    return errors


def _times(sample: _timing.Sample) -> dict[str, Any]:
    low, high = sample.interval
    return {
        "median_us": sample.median / 1e3, "p95_us": sample.quantile(0.95) / 1e3, "low_us": low / 1e3, "high_us": high / 1e3,
    }  # fmt: skip


def _numbers(name: str, samples: Mapping[str, _timing.Sample], moved: int, copy: str) -> dict[str, Any]:
    """Times, and multiples of a copy of as many bytes as the contender must move."""
    sample = samples[name]
    return _times(sample) | {
        "gb_per_s": moved / sample.median, "times_copy": 1 / _timing.ratio(samples[copy], sample),
        "ratio": _timing.ratio(samples[BASE], sample), "noisy": "yes" if sample.noisy else "no", "rounds": sample.rounds,
    }  # fmt: skip


def _peak(call: Callable[[], object]) -> float:
    """Peak of PyTorch's memory in one call in MB, by the profiler's record of each block."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # hide its messages on stderr
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    blocks = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    held = itertools.accumulate((event.nbytes() for event in sorted(blocks, key=lambda event: event.start_ns())), initial=0)
    return max(held) / 1e6


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal: forward and backward together, one block per size."""
    shown = [row for row in rows if row["pass"].endswith("forward+backward")]
    columns = ("contender", ">N x C", ">type", ">threads", ">us", ">x copy", ">ratio", ">grad error", ">MB")
    found = tables.make(columns, [])
    for row in shown:
        found.add_row(*_cells(row), style="bold" if row["contender"] in (OWN, OWN_KERNEL) else None)
    notes = _losses.absent(rows[0]["device"])
    if steps := [row for row in rows if row["pass"].endswith(STEP)]:
        shares = ", ".join(f"{row['contender']} {float(row['loss_share']):.2%}" for row in steps)
        notes.insert(0, f"share of the loss in a {steps[0]['pass']}, batch {steps[0]['n']}: {shares}")
    found.caption = "\n".join(notes)
    return found


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"{row['contender']}{' (noisy)' if row['noisy'] == 'yes' else ''}"
    time, ratio = float(row["median_us"]), float(row["ratio"])
    multiple = f"{float(row['times_copy']):.3g}" if row["times_copy"] != "" else ""
    error = f"{float(row['grad_error']):.0e}" if row["grad_error"] != "" else ""
    memory = f"{float(row['peak_mb']):.3g}"
    size = f"{int(row['n']):,} x {row['c']}"
    return name, size, row["dtype"], str(row["threads"]), f"{time:,.4g}", multiple, f"{ratio:.3g}", error, memory


def figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time per logit of forward and backward against N x C, few and many classes in panels, with the copy as dashed line.

    Time per logit spans fewer decades than time, so that close contenders stay apart; later lines are thinner, so that
    a covered one shows. Soft labels, gradients in place and kernels of narrower instruction sets are only in the table.
    """
    most, dtype = max(int(row["threads"]) for row in rows), rows[0]["dtype"]
    shown = [row for row in rows if (int(row["threads"]), row["dtype"], row["pass"]) == (most, dtype, "forward+backward")]
    shown = [row for row in shown if not row["contender"].startswith(f"{OWN_KERNEL} ")]
    shown = [row for row in shown if not any(word in row["contender"] for word in ASIDE)]
    panels = {"up to 32 classes": (1, 32), "33 to 256 classes": (33, 256), "over 256 classes": (257, 1 << 62)}
    panels = {title: span for title, span in panels.items() if any(span[0] <= int(row["c"]) <= span[1] for row in shown)}
    chart = Figure(figsize=(8, 4.2), dpi=200, layout="constrained")
    for axes, (title, span) in zip(chart.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True):
        inside = [row for row in shown if span[0] <= int(row["c"]) <= span[1]]
        names = list(dict.fromkeys(row["contender"] for row in inside))
        for number, name in enumerate(names):
            own = sorted((int(row["n"]) * int(row["c"]), float(row["median_us"])) for row in inside if row["contender"] == name)
            look = _picture.style(name) | {"linewidth": 3.2 - 2 * number / len(names), "markerfacecolor": "none"}
            axes.plot([size for size, _ in own], [1000 * time / size for size, time in own], label=name, **look)
        sizes = sorted({(int(row["n"]), int(row["c"])) for row in inside}, key=lambda size: size[0] * size[1])
        axes.set(title=title, xlabel="N x C", xscale="log", yscale="log")
        axes.set_xticks([n * c for n, c in sizes], [f"{n:,}\nx {c:,}" for n, c in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
    chart.axes[0].set_ylabel("nanoseconds per logit")
    least = min(1000 * float(row["median_us"]) / (int(row["n"]) * int(row["c"])) for row in shown if row["contender"] != EMPTY)
    chart.axes[0].set_ylim(bottom=least / 2)  # an empty call costs next to nothing per logit
    place = rows[0]["device"] if rows[0]["device"] != "cpu" else rows[0]["cpu"]
    note = f"{most} threads, {rows[0]['kernel']}, torch {rows[0]['torch']}, {rows[0]['date']}; dashed: a copy of the same bytes"
    _picture.finish(chart, path, f"Focal loss, forward and backward, {dtype}, {place}", note)
