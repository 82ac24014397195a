"""The benchmarks' pictures: one colour and marker a contender, the same in all of them, told apart also without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

# Okabe and Ito's palette, safe for the common colour blindnesses (Wong 2011, Nature Methods 8:441)
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#808080",
)  # fmt: skip
_STYLES = {
    "pytorch eager": (GREY, "o"),
    "pytorch channels_last": (SKY, "s"),
    "pytorch bf16": (BLUE, "D"),
    "torch.compile": (GREEN, "^"),
    "onnxruntime cpu": (RED, "P"),
    "onnxruntime cuda": (RED, "P"),
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
    """Colour, marker and dashes of a contender; a strange one is a dotted black line."""
    colour, marker = _STYLES.get(name.partition(" (")[0], (BLACK, "x"))
    line = "--" if name == "copy" else ":" if name.partition(" (")[0] not in _STYLES else "-"
    return {"color": colour, "marker": marker, "linestyle": line, "linewidth": 1.6, "markersize": 5}


def draw(path: Path, title: str, note: str, lines: Sequence[Line]) -> None:
    """Throughput and latency against batch, side by side."""
    figure = Figure(figsize=(8, 4.2), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for line in lines:
        batch, look = line.columns["batch"], style(line.name)
        left.plot(batch, line.columns["images_per_s"], label=line.name, **look)
        left.fill_between(batch, line.columns["low"], line.columns["high"], color=look["color"], alpha=0.2, linewidth=0)
        right.plot(batch, line.columns["median_ms"], **look)
        right.plot(batch, line.columns["p95_ms"], color=look["color"], linestyle="", marker="_", markersize=7)
        _hollow(left, batch, line.columns["images_per_s"], line.noisy, look)
        _hollow(right, batch, line.columns["median_ms"], line.noisy, look)
    left.set_title("throughput (band: 95 % interval)")
    right.set_title("latency of a batch (bar: 95th percentile)")
    left.set_ylabel("images/s")
    right.set_ylabel("ms")
    for axes in (left, right):
        axes.set_xlabel("batch size")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        batches = sorted({value for line in lines for value in line.columns["batch"]})
        axes.set_xticks(batches, [f"{value:g}" for value in batches])
        axes.xaxis.set_minor_formatter(NullFormatter())
    finish(figure, path, title, note + ("; hollow: noisy" if any(any(line.noisy) for line in lines) else ""))


def finish(figure: Figure, path: Path, title: str, note: str) -> None:
    """Title, legend below, grid and plain numbers on the axes; write a PNG."""
    for axes in figure.axes:
        axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.title.set_fontsize(9)
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        low, high = axes.get_ylim()
        axes.yaxis.set_minor_formatter(FuncFormatter(_minor) if high / low < 30 else NullFormatter())
        axes.tick_params(which="minor", labelsize=7)
    figure.suptitle(title, fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False, title=note, title_fontsize=8)
    figure.savefig(path, format="png", facecolor="white")


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
