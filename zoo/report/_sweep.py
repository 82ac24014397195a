"""Report of a sweep: a table and a CSV of its settings, a picture per parameter, a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo import csv_files
from zoo.files import publish_text
from zoo.report import _blocks, _draw
from zoo.report._blocks import Block, Heading, Picture, Table, Text
from zoo.report._read import percent, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


ROUNDING = 1e-11
"""Standard deviation up to which shares are equal: accuracies are whole numbers of images."""


@dataclass(frozen=True)
class Point:
    """One setting: its values by key, the selecting accuracy of each run folder, and the error of a diverged one."""

    values: Mapping[str, Any]
    scores: Mapping[str, float]
    diverged: str = ""
    tested: Sequence[float] = ()
    """Test accuracy of each run; shown for the selected setting only."""
    lint: Sequence[str] = ()
    """Warnings of the linter for the setting."""

    @property
    def mean(self) -> float:
        """Over the seeds; -1 for a setting that diverged."""
        return mean(self.scores.values()) if self.scores else -1.0


def spread(values: Sequence[float]) -> str:
    """``84.13 \u00b1 0.25 (n = 3)`` in per cent: mean and standard deviation over seeds.

    >>> spread([0.5, 0.52]), spread([0.5])
    ('51.00 \u00b1 1.41 (n = 2)', '50.00 (n = 1)')
    """
    deviation = f" \u00b1 {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{deviation} (n = {len(values)})"


def interval(values: Sequence[float]) -> str:
    """95 % interval of the mean over seeds by Student's t, in per cent; nothing for one seed, or without variation."""
    if len(values) < 2 or stdev(values) <= ROUNDING:
        return ""
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{percent(max(mean(values) - half, 0.0))} to {percent(min(mean(values) + half, 1.0))}"


def common(points: Sequence[Point]) -> list[str]:
    """Warnings of the linter common to all settings with a result."""
    linted = [point.lint for point in points if point.scores]
    return [line for line in linted[0] if all(line in each for each in linted)] if linted else []


def table(points: Sequence[Point], select_on: str) -> Table:
    """One row per setting, the best (selected) first, with the linter's warnings that are not common to all."""
    keys, shared = list(points[0].values), common(points)
    rows = []
    for point in sorted(points, key=lambda point: -point.mean):
        scores = list(point.scores.values())
        cells = (spread(scores), interval(scores)) if scores else ("diverged", "")
        own = "; ".join(line for line in point.lint if line not in shared)
        rows.append([*(_value(point.values[key]) for key in keys), *cells, own])
    head = [*(f">{key}" for key in keys), f">{select_on} accuracy %, mean \u00b1 sd", "95 % interval", "linter"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return Table(head, rows, frozenset({(0, len(keys))}))


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def chosen(points: Sequence[Point], select_on: str) -> str:
    """The line of the selected setting, with its test accuracy, which is not shown for other settings."""
    best = max(points, key=lambda point: point.mean)
    named = " ".join(f"{key}={_value(value)}" for key, value in best.values.items())
    warning = "; SELECTED ON THE TEST IMAGES: optimistic" if select_on.startswith("test") else ""
    return f"selected by {select_on} accuracy: {named}: test {spread(best.tested)} %{warning}"


def write(out: Path, points: Sequence[Point], *, select_on: str, what: str) -> None:
    """sweep.csv, sweep.png, README.md and report.html of a sweep's folder."""
    keys = list(points[0].values)
    best = max(points, key=lambda point: point.mean)

    rows = (
        [*point.values.values(), name, score, "yes" if point is best else "", point.diverged, "; ".join(point.lint)]
        for point in points
        for name, score in point.scores.items() or [("", "")]
    )
    csv_files.write(
        out / "sweep.csv", [*keys, "run", f"{select_on.replace(' ', '_')}_accuracy", "chosen", "diverged", "lint"], rows
    )
    _draw.save(_picture(points, keys, select_on, what), out / "sweep.png")
    blocks: list[Block] = [Text(chosen(points, select_on) + ".", strong=True), table(points, select_on)]
    blocks += [Text(f"Linter, for every setting: {line}.") for line in common(points)]
    blocks += [
        Text(f"The settings are compared by {select_on} accuracy; the test accuracy is shown for the selected one only."),
        Heading("Pictures"),
        Picture(out / "sweep.png", "accuracy against each parameter"),
    ]
    title = f"Sweep of {what}: {', '.join(keys)}"
    publish_text(out / "README.md", _blocks.markdown(title, blocks))
    publish_text(out / "report.html", _blocks.page(title, blocks))


def _picture(points: Sequence[Point], keys: Sequence[str], select_on: str, what: str) -> Figure:
    """One panel per parameter: mean and range over the seeds of each setting, a line through the best per value, a star at the selected one."""
    done = [point for point in points if point.scores]
    figure = _draw.canvas(0.9 + 3.0 * len(keys))
    for axes, key in zip(np.atleast_1d(figure.subplots(len(keys), 1)), keys):
        _panel(axes, done, key)
        axes.set_ylabel(f"{select_on} accuracy (%)", fontsize=9)
        _draw.tidy(axes)
    runs = sum(len(point.scores) for point in done)
    figure.axes[0].legend(fontsize=8, frameon=False, loc="best")
    lost = f", {len(points) - len(done)} diverged" if len(done) < len(points) else ""
    figure.suptitle(f"{shown(what, 60)}: {len(points)} settings, n = {runs} runs{lost}", fontsize=10)
    return figure


def _panel(axes: Axes, points: Sequence[Point], key: str) -> None:
    values = [point.values[key] for point in points]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    ticks: list[Any] = sorted(set(values)) if numbers else list(dict.fromkeys(map(str, values)))
    few = not numbers or len(ticks) <= 8
    at = [ticks.index(value if numbers else str(value)) if few else value for value in values]
    means = np.array([100 * point.mean for point in points])
    if few:  # settings of one value side by side
        at = [x + min(0.06, 0.7 / at.count(x)) * (at[:number].count(x) - (at.count(x) - 1) / 2) for number, x in enumerate(at)]
    ends = [(100 * min(point.scores.values()), 100 * max(point.scores.values())) for point in points]
    whiskers = np.abs(np.array(ends).T - means)
    look: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2, "linestyle": "", "color": _draw.BLUE}
    axes.errorbar(at, means, whiskers, label="setting: mean over seeds, bar: minimum to maximum", **look)
    if few:
        axes.plot(
            range(len(ticks)),
            [means[[round(x) == n for x in at]].max() for n in range(len(ticks))],
            color=_draw.SKY,
            linewidth=1.2,
            label="best setting per value",
        )
        axes.set_xticks(range(len(ticks)), [_value(tick) for tick in ticks])
    elif min(ticks) > 0 and max(ticks) > _draw.WIDE * min(ticks):
        axes.set_xscale("log")
    best = int(means.argmax())
    axes.plot([at[best]], [means[best]], marker="*", markersize=13, color=_draw.RED, linestyle="", label="chosen")
    axes.set_xlabel(key, fontsize=9)
