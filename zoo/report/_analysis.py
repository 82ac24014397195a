"""Pictures of the tools that look into convolutions and networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.report import _draw


def spy(shape: tuple[int, int], rows: Sequence[int], columns: Sequence[int], path: Path) -> Path:
    """Where a sparse matrix has entries."""
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
    """An image (H, W, 3) and, beside it, the weights (3, h, w) that its logit is made with, summed over the colours."""
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
