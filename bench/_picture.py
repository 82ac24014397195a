"""The benchmarks' pictures: one colour and marker per contender in all pictures, distinguishable without colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from zoo.files import publish

# Okabe and Ito's palette, safe for the common colour blindnesses (Wong 2011, Nature Methods 8:441)
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#808080",
)  # fmt: skip
_STYLES = {
    "pytorch eager": (GREY, "o"),
    "pytorch channels_last": (SKY, "s"),
    "pytorch bf16": (BLUE, "D"),
    "pytorch fp16": (BLUE, "D"),
    "torch.compile": (GREEN, "^"),
    "torch.compile bf16": (GREEN, "v"),
    "torch.compile fp16": (GREEN, "v"),
    "onnxruntime cpu": (RED, "P"),
    "onnxruntime cpu int8": (RED, "*"),
    "onnxruntime cuda": (RED, "P"),
    "onnxruntime cuda fp16": (RED, "X"),
    "onnxruntime tensorrt": (ORANGE, "P"),
    "onnxruntime tensorrt fp16": (ORANGE, "X"),
    "openvino": (PINK, "<"),
    "openvino bf16": (PINK, ">"),
    "openvino int8": (PINK, "*"),
    "eager textbook": (ORANGE, "v"),
    "eager stable": (GREY, "o"),
    "torch.compile max-autotune": (GREEN, "<"),
    "F.cross_entropy": (BLUE, "D"),
    "torchvision sigmoid": (PINK, "s"),
    "mmcv softmax": (SKY, ">"),
    "zoo": (RED, "P"),
    "zoo kernel": (RED, "*"),
    "copy": (BLACK, ""),
}
_DPI = 200  # 8 inches: 1600 pixels, sharp when shown 800 wide


@dataclass(frozen=True)
class Line:
    """One contender: equally long columns by name; ``noisy`` points are drawn hollow."""

    name: str
    device: str
    columns: Mapping[str, Sequence[float]]
    noisy: Sequence[bool]


def style(name: str) -> dict[str, Any]:
    """Colour, marker and dashes of a contender; unknown ones are dotted black lines."""
    colour, marker = _STYLES.get(name.partition(" (")[0], (BLACK, "x"))
    line = "--" if name == "copy" else ":" if name.partition(" (")[0] not in _STYLES else "-"
    return {"color": colour, "marker": marker, "linestyle": line, "linewidth": 1.6, "markersize": 5}


def draw(path: Path, title: str, note: str, lines: Sequence[Line]) -> None:
    """Throughput against batch size, and latency against throughput with one point per batch size."""
    figure = Figure(figsize=(8, 4.2 + 0.17 * max(0, len(lines) // 3 - 2)), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for line in lines:
        batch, speed, look = line.columns["batch"], line.columns["images_per_s"], style(line.name)
        left.plot(batch, speed, label=line.name, **look)
        left.fill_between(batch, line.columns["low"], line.columns["high"], color=look["color"], alpha=0.2, linewidth=0)
        right.plot(speed, line.columns["median_ms"], **look)
        right.vlines(speed, line.columns["median_ms"], line.columns["p95_ms"], color=look["color"], linewidth=0.8)
        right.plot(speed, line.columns["p95_ms"], color=look["color"], linestyle="", marker="_", markersize=7)
        _hollow(left, batch, speed, line.noisy, look)
        _hollow(right, speed, line.columns["median_ms"], line.noisy, look)
    left.set_title("throughput (band: 95 % interval)")
    right.set_title("latency of a batch (bar: 95th percentile)")
    left.set_ylabel("images/s")
    right.set_ylabel("ms; lower is better")
    left.set_xlabel("batch size")
    right.set_xlabel("images/s; further right is better")
    left.set_xscale("log", base=2)
    right.set_xscale("log")
    for axes in (left, right):
        axes.set_yscale("log")
    batches = sorted({value for line in lines for value in line.columns["batch"]})
    left.set_xticks(batches, [f"{value:g}" for value in batches])
    left.xaxis.set_minor_formatter(NullFormatter())
    plain_ticks(right.xaxis, right.get_xlim())
    finish(figure, path, title, note + _mark(lines))


def draw_accuracy(path: Path, title: str, note: str, lines: Sequence[Line]) -> None:
    """Latency of the smallest batch and accuracy with its interval, one row per contender, the fastest on top."""
    smallest = min(min(line.columns["batch"]) for line in lines)
    at = [list(line.columns["batch"]).index(smallest) for line in lines]
    rows = sorted(zip(lines, at, strict=True), key=lambda row: row[0].columns["median_ms"][row[1]])
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(rows)), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for y, (line, n) in enumerate(rows):
        look = style(line.name) | {"linestyle": "", "markersize": 7}
        look["markerfacecolor"] = "white" if line.noisy[n] else look["color"]
        median, late = line.columns["median_ms"][n], line.columns["p95_ms"][n]
        left.errorbar([median], [y], xerr=[[0], [max(late - median, 0)]], elinewidth=1, capsize=2, **look)
        share, low, high = (100 * line.columns[key][n] for key in ("accuracy", "accuracy_low", "accuracy_high"))
        right.errorbar([share], [y], xerr=[[share - low], [high - share]], elinewidth=1, capsize=2, **look)
    left.set_xscale("log")
    plain_ticks(left.xaxis, left.get_xlim())
    left.set_yticks(range(len(rows)), [line.name for line, _ in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_xlabel(f"median latency at batch {smallest:g}, ms (bar: to p95)", fontsize=9)
    right.set_xlabel("test accuracy, % (bar: 95 % interval)", fontsize=9)
    finish(figure, path, title, note + ("; hollow: noisy" if any(line.noisy[n] for line, n in rows) else ""))


def draw_front(path: Path, title: str, note: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """95th percentile of latency against throughput, a labelled point for workers x threads, the front joined."""
    figure = Figure(figsize=(8, 4.2), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    levels = _levels(rows)
    for mode, (colour, marker) in {"threads": (BLUE, "o"), "processes": (RED, "s")}.items():
        for row in (row for row in rows if row["mode"] == mode):
            speed, low, high, late = (float(row[key]) for key in ("images_per_s", "low", "high", "p95_ms"))
            axes.errorbar(
                [speed], [late], xerr=[[speed - low], [high - speed]], color=colour, marker=marker, capsize=2, elinewidth=1,
                markerfacecolor="white" if row["noisy"] == "yes" else colour,
            )  # fmt: skip
            above = (6, 5 + 9 * levels[speed, late])
            words = f"{row['workers']} x {row['threads']}"
            axes.annotate(words, (speed, late), above, textcoords="offset points", fontsize=8, color=colour)
        axes.plot([], [], color=colour, marker=marker, linestyle="", label=f"workers as {mode}")
    best = sorted((float(row["images_per_s"]), float(row["p95_ms"])) for row in rows if row["front"] == "yes")
    if len(best) > 1:
        axes.plot(*zip(*best), color=GREY, linewidth=1, zorder=0, label="front")
    axes.set_xlabel("images/s of all workers (bar: 95 % interval); further right is better")
    axes.set_ylabel("95th percentile of latency, ms; lower is better")
    axes.set_ylim(0, 1.15 * max(float(row["p95_ms"]) for row in rows))
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    hollow = "; hollow: noisy" if any(row["noisy"] == "yes" for row in rows) else ""
    finish(figure, path, title, note + hollow)


def _levels(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[float, float], int]:
    """Vertical offset in lines of each point's label (throughput, latency), to avoid overlaps."""
    points = sorted((float(row["images_per_s"]), float(row["p95_ms"])) for row in rows)
    wide, top = points[-1][0] - points[0][0], max(late for _, late in points)
    found: dict[tuple[float, float], int] = {}
    for speed, late in points:
        near = [other[1] + 0.04 * top * level for other, level in found.items() if speed - other[0] < 0.08 * wide]
        level = 0
        while any(abs(late + 0.04 * top * level - place) < 0.03 * top for place in near):
            level += 1
        found[speed, late] = level
    return found


def _mark(lines: Sequence[Line]) -> str:
    return "; hollow: noisy" if any(any(line.noisy) for line in lines) else ""


def plain_ticks(axis: Any, limits: tuple[float, float]) -> None:
    """Plain numbers on a logarithmic axis, also between the powers of ten if there are at most two of these."""
    axis.set_major_formatter(FuncFormatter(_plain))
    powers = math.floor(math.log10(limits[1])) - math.ceil(math.log10(max(limits[0], 1e-12))) + 1
    axis.set_minor_formatter(FuncFormatter(_minor) if powers <= 2 else NullFormatter())


def finish(figure: Figure, path: Path, title: str, note: str) -> None:
    """Title, legend below, grid and plain numbers on the axes; write the format of the suffix."""
    for axes in figure.axes:
        axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.title.set_fontsize(9)
        if axes.get_yscale() == "log":
            plain_ticks(axes.yaxis, axes.get_ylim())
        axes.tick_params(which="minor", labelsize=8, pad=5)  # in line with the labels of the longer major ticks
    figure.suptitle(title, fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False, title=note, title_fontsize=8
        )
    else:
        figure.supxlabel(note, fontsize=8)
    empty = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with mpl.rc_context({"svg.hashsalt": "zoo"}):  # the same numbers give the same bytes
        figure.savefig(path, facecolor="white", metadata=empty)


def publish_both(path: Path, draw: Callable[[Path], object]) -> Path:
    """Publish what ``draw(temporary)`` draws as a PNG at ``path`` and as an SVG next to it; returns the path of the PNG."""
    for each in (path.with_suffix(".svg"), path):
        publish(each, draw)
    return path


def _hollow(axes: Any, x: Sequence[float], y: Sequence[float], noisy: Sequence[bool], look: Mapping[str, Any]) -> None:
    where = [number for number, flag in enumerate(noisy) if flag]
    axes.plot(
        [x[n] for n in where], [y[n] for n in where], linestyle="", marker=look["marker"], markerfacecolor="white",
        markeredgecolor=look["color"], markersize=look["markersize"],
    )  # fmt: skip


def _plain(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _minor(value: float, _: object = None) -> str:
    return _plain(value) if f"{value:e}"[0] in "25" else ""
