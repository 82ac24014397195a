"""Pictures of the analysis tools."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.report import _draw


def spy(shape: tuple[int, int], rows: Sequence[int], columns: Sequence[int], path: Path) -> Path:
    """Positions of the entries of a sparse matrix."""
    n, m = shape
    figure = _draw.canvas(min(8.0, max(2.5, 7 * n / m)) + 0.8)
    axes = figure.subplots()
    axes.scatter(columns, rows, s=max(0.5, 2_000 / max(n, m)), marker="s", color=_draw.BLUE, linewidths=0)
    axes.set(xlim=(-0.5, m - 0.5), ylim=(n - 0.5, -0.5))
    axes.set_xlabel("input (channel, y, x)", fontsize=9)
    axes.set_ylabel("output (channel, y, x)", fontsize=9)
    axes.set_title(f"{n} x {m}, {len(rows):,} entries", fontsize=10)
    _draw.tidy(axes, "both")
    return _draw.save(figure, path)


def weight_map(pixels: np.ndarray, weight: np.ndarray, facts: Mapping[str, Any], path: Path) -> Path:
    """An image (H, W, 3) and the weights (3, h, w) of its logit, summed over the colours."""
    figure = _draw.canvas(4.2)
    left, right = figure.subplots(1, 2)
    left.imshow(pixels)
    left.set_title(Path(facts["image"]).name, fontsize=9)
    summed = weight.sum(0)
    most = float(np.abs(summed).max()) or 1.0
    shown = right.imshow(summed, cmap="RdBu_r", vmin=-most, vmax=most)
    right.set_title(f"W of {facts['class']}, summed over colours", fontsize=9)
    figure.colorbar(shown, ax=right, shrink=0.8)
    for axes in (left, right):
        axes.set_axis_off()
    kink = f"{facts['kink']:.3g}" if math.isfinite(facts["kink"]) else "none"
    figure.suptitle(
        f"logit {facts['logit']:.3f} = W x ({facts['w_x']:.3f}) + b ({facts['b']:.3f}); next kink {kink}", fontsize=10
    )
    return _draw.save(figure, path)


def graded(scores: Sequence[Any]) -> list[str]:
    """Kinds of changed images that come in several strengths, in order."""
    kinds = [score.kind for score in scores]
    return [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]


def severities(scores: Sequence[Any], conflict: Any, title: str, path: Path) -> Path:
    """Accuracy against strength for the graded kinds, and the others as bars."""
    curves = graded(scores)
    figure = _draw.canvas(7.2)
    grid = figure.add_gridspec(2, max(len(curves), 1), height_ratios=(1.1, 1))
    top = figure.add_subplot(grid[0, :])
    single = [score for score in scores if score.kind not in curves]
    names = [score.kind for score in single] + ["shape bias in conflicts"]
    middle = [score.accuracy for score in single] + [conflict.bias]
    ends = [
        [m - score.low for m, score in zip(middle, [*single, conflict])],
        [score.high - m for m, score in zip(middle, [*single, conflict])],
    ]
    colours = [_draw.BLUE] * len(single) + [_draw.ORANGE]
    top.barh(
        range(len(names)), [100 * share for share in middle], xerr=np.maximum(100 * np.array(ends), 0), color=colours, capsize=2
    )
    top.set_yticks(range(len(names)), names, fontsize=8)
    top.invert_yaxis()
    top.set_xlim(0, 101)
    top.set_xlabel("accuracy (%); shape bias: shape decisions among shape and texture decisions (%)", fontsize=8)
    _draw.tidy(top, "x")
    first = None
    for at, kind in enumerate(curves):
        axes = figure.add_subplot(grid[1, at], sharey=first)
        first = first or axes
        part = [score for score in scores if score.kind == kind]
        shares = np.array([(score.accuracy, score.low, score.high) for score in part]) * 100
        axes.plot(range(len(part)), shares[:, 0], "o-", color=_draw.BLUE, markersize=3)
        axes.fill_between(range(len(part)), shares[:, 1], shares[:, 2], color=_draw.SKY, alpha=0.4, linewidth=0)
        axes.axhline(100 * scores[0].accuracy, color=_draw.GREY, linestyle="--", linewidth=0.8)
        axes.set_xticks(range(len(part)), [f"{score.strength:g}" for score in part])
        axes.set_title(kind.replace(" (", "\n("), fontsize=8)  # on two lines: the panels are narrow
        axes.set_ylim(0, 101)
        axes.tick_params(labelleft=at == 0)
        axes.set_ylabel("accuracy (%)" if at == 0 else "", fontsize=8)
        _draw.tidy(axes)
    figure.suptitle(f"{title}\nwhisker, band: 95 % Wilson interval; dashed: unchanged images", fontsize=10)
    return _draw.save(figure, path)


def samples(images: Mapping[str, np.ndarray], path: Path) -> Path:
    """A row of images of each kind."""
    figure = _draw.canvas(0.9 * len(images))
    every = figure.subplots(len(images), len(next(iter(images.values()))), squeeze=False)
    for row, (kind, part) in zip(every, images.items()):
        for axes, image in zip(row, part):
            axes.imshow(image)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(kind, fontsize=7, rotation=0, ha="right", va="center")
    return _draw.save(figure, path)


def causes(rows: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of one line per setting: the share of dead units after each epoch over all layers, and the number of revived units."""
    epochs = sorted({row.epoch for row in rows})
    cells = []
    for name in dict.fromkeys(row.setting for row in rows):
        part = [row for row in rows if row.setting == name]
        shares = dict(_course(part))
        lost = not math.isfinite(part[-1].loss)
        line = [f"{shares[epoch]:.1f}" if epoch in shares and not (lost and epoch) else "" for epoch in epochs]
        revived, loss = sum(row.revived for row in part), part[-1].loss
        cells.append([name, *line, f"{revived:,}", "diverged" if lost else f"{loss:.2f}"])
    heads = [">dead %: start", *(f">epoch {epoch}" for epoch in epochs[1:])]
    return ["setting", *heads, ">revived units", ">last loss"], cells


def _course(part: Sequence[Any]) -> list[tuple[int, float]]:
    """Epoch and share of dead units in per cent, all layers together."""
    found = []
    for epoch in sorted({row.epoch for row in part}):
        now = [row for row in part if row.epoch == epoch]
        found.append((epoch, 100 * sum(row.dead for row in now) / sum(row.units for row in now)))
    return found


def dead_units(rows: Sequence[Any], images: int, path: Path) -> Path:
    """Share of units that are 0 for every image against the epoch, one line per setting, one panel per layer."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    figure = _draw.canvas(4.6)
    every = figure.subplots(1, len(layers), sharey=True)
    palette = (_draw.BLUE, _draw.SKY, _draw.RED, _draw.ORANGE, _draw.PINK, _draw.GREEN)
    for axes, layer in zip(every, layers):
        for at, name in enumerate(dict.fromkeys(row.setting for row in rows)):
            part = [
                row for row in rows if row.setting == name and row.layer == layer and (math.isfinite(row.loss) or not row.epoch)
            ]
            label = name if layer == layers[0] else None
            axes.plot(*zip(*_course(part)), "o-", color=palette[at % len(palette)], markersize=3, label=label)
        units = next(row.units for row in rows if row.layer == layer)
        axes.set_title(f"{layer}, {units:,} units", fontsize=9)
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylim(-3, 103)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _draw.tidy(axes)
    every[0].set_ylabel(f"units that are 0 for all {images:,} images (%)", fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle("What makes ReLU units dead: a small CNN on the built-in images", fontsize=10)
    return _draw.save(figure, path)
