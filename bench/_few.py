"""Accuracy against the number of training images of each class (``data.per_class``), drawn from the rows of finished runs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from zoo.bench import _timing
from zoo.report import _draw

Row = Mapping[str, Any]
SETTING = re.compile(r" data\.per_class=(\d+)")
LEAST = 3
"""Numbers of images that make a curve."""
MEASURES = {"macro": ("mean per class", _draw.BLUE, "D"), "accuracy": ("overall", _draw.ORANGE, "o")}


def curves(rows: Sequence[Row]) -> dict[str, dict[int, list[Row]]]:
    """Rows of each recipe by its number of images per class, 0 being all; recipes with :data:`LEAST` numbers or more."""
    found: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        number = SETTING.search(row["recipe"])
        found.setdefault(SETTING.sub("", row["recipe"]), {}).setdefault(int(number[1]) if number else 0, []).append(row)
    return {name: by for name, by in found.items() if len(by.keys() - {0}) >= LEAST}


def picture(name: str, by: Mapping[int, Sequence[Row]]) -> Figure:
    """One recipe: a dot per seed, a line through the means, and a dashed line where all training images were used."""
    figure = _draw.canvas(3.6)
    axes = figure.subplots()
    numbers = sorted(by.keys() - {0})
    for key, (label, colour, marker) in MEASURES.items():
        values = {number: [100 * float(row[key]) for row in group] for number, group in by.items()}
        for number in numbers:
            axes.plot([number] * len(values[number]), values[number], ".", color=colour, alpha=0.4)
        means = [statistics.mean(values[number]) for number in numbers]
        inside = "none" if marker == "o" else colour  # hollow circles do not hide the diamonds
        axes.plot(numbers, means, marker + "-", color=colour, label=label, markersize=7, markerfacecolor=inside)
        if 0 in by:
            axes.axhline(statistics.mean(values[0]), color=colour, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training images per class", fontsize=9)
    axes.set_ylabel("test accuracy (%)", fontsize=9)
    first = by[numbers[0]][0]
    seeds = sorted({len(group) for group in by.values()})
    runs = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    axes.set_title(f"{name.split()[0]} on {first['data']}, {int(first['n']):,} test images, n = {runs} seeds", fontsize=10)
    figure.supxlabel(_timing.trained_on(row for group in by.values() for row in group), fontsize=8)
    axes.legend(
        fontsize=8, frameon=False, loc="lower right", title="dashed: all training images" if 0 in by else None, title_fontsize=8
    )
    _draw.tidy(axes)
    return figure
