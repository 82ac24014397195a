"""Reported experiments next to recipes for the same question with other weights (``reported.analogue``)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo import recipe as recipes
from zoo.bench import _timing
from zoo.report import _draw

Row = Mapping[str, Any]
ALONE = ("weights", "data.views")
"""Settings in which runs of one comparison may differ."""


def compared(rows: Sequence[Row]) -> tuple[str, dict[str, list[Row]]]:
    """The changed settings that the most recipes with a reported counterpart share, and the rows of each of these recipes."""
    theirs = reported()
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        name, *changes = row["recipe"].split()
        if name in theirs:
            common = " ".join(change for change in changes if change.partition("=")[0] not in ALONE)
            found.setdefault(common, {}).setdefault(name, []).append(row)
    if not found:
        return "", {}
    best = max(found, key=lambda key: (len(found[key]), sum(map(len, found[key].values()))))
    return best, {name: found[best][name] for name in theirs if name in found[best]}


def reported() -> dict[str, tuple[str, float]]:
    """For each recipe that is an analogue, the reported recipe that differs least from it, and its accuracy in per cent."""
    found: dict[str, list[str]] = {}
    known = {name: recipes.read(path) for name, path in recipes.shipped().items()}
    for name, recipe in known.items():
        if recipe.reported.analogue:
            found.setdefault(recipe.reported.analogue, []).append(name)
    nearest = {
        ours: min(theirs, key=lambda name: len(recipes.differences(known[name], known[ours]))) for ours, theirs in found.items()
    }
    return {ours: (theirs, 100 * known[theirs].reported.accuracy) for ours, theirs in nearest.items()}


def picture(common: str, ours: Mapping[str, Sequence[Row]]) -> Figure:
    """Two bars per question: the reported accuracy, and the mean of our runs with a dot per seed."""
    theirs = reported()
    figure = _draw.canvas(3.6)
    axes = figure.subplots()
    for at, (name, group) in enumerate(ours.items()):
        shares = [100 * float(row["accuracy"]) for row in group]
        bars = [(theirs[name][1], _draw.ORANGE, "reported, one run"), (statistics.mean(shares), _draw.SKY, "ours, mean")]
        for side, (value, colour, label) in zip((-0.2, 0.2), bars):
            axes.bar(at + side, value, 0.36, color=colour, label=label if not at else None)
            axes.annotate(f"{value:.1f}", (at + side, 1), ha="center", fontsize=8)
        axes.plot([at + 0.2] * len(shares), shares, ".", color=_draw.BLUE, label=None if at else "ours, one seed")
    axes.set_xticks(range(len(ours)), [_label(name, theirs[name][0]) for name in ours], fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylim(0, 100)
    axes.set_ylabel("test accuracy (%)", fontsize=9)
    seeds = sorted({len(group) for group in ours.values()})
    row = next(iter(ours.values()))[0]
    runs = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    axes.set_title(
        f"{row['data']}, {int(row['n']):,} test images, n = {runs} seeds{f' ({common})' if common else ''}", fontsize=10
    )
    note = _timing.trained_on(each for group in ours.values() for each in group)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False, title=note, title_fontsize=8)
    _draw.tidy(axes)
    return figure


def _label(ours: str, theirs: str) -> str:
    recipe = recipes.resolve(ours, {})
    frozen = {"none": "nothing frozen", "conv": "convolutions frozen", "fc:all": "classifier frozen"}.get(
        recipe.freeze, recipe.freeze
    )
    start = "random" if recipe.weights == "none" else "ImageNet"
    return f"{frozen}\n{start} weights\n{theirs}"
