"""The picture of a run's profile: shares of the parts of training, and of the slowest operators of some steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo import csv_files
from zoo.report._draw import BLUE, ORANGE, canvas, tidy
from zoo.report._read import Folder, percent, shown
from zoo.tables import amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SLOWEST = 10
"""Most operators that are drawn."""


def picture(run: Folder) -> Figure:
    """Two bar charts of ``profile.csv``."""
    rows = csv_files.read(run.path / "profile.csv")
    parts = [row for row in rows if row["kind"] == "part"]
    operators = [row for row in rows if row["kind"] == "operator"][:SLOWEST]
    figure = canvas(1.6 + 0.24 * (len(parts) + len(operators)))
    axes = figure.subplots(
        2 if operators else 1, 1, squeeze=False, height_ratios=[len(parts), len(operators)][: 2 if operators else 1]
    )[:, 0]
    _bars(axes[0], parts, BLUE, "share of the training time (%)")
    if operators:
        _bars(axes[1], operators, ORANGE, "share of the operators' own time in the traced steps (%)")
    threads = run.env.get("threads", 0)
    place = (
        f"{run.env.get('cpu')} · {run.env.get('device')} · {threads} thread{'s' * (threads != 1)} · {run.env.get('precision')}"
    )
    figure.suptitle(f"{shown(run.headline, 90)}\n{shown(place, 90)}", fontsize=10)
    return figure


def _bars(axes: Axes, rows: Sequence[dict[str, str]], colour: str, label: str) -> None:
    shares = [100 * float(row["share"]) for row in rows]
    places = range(len(rows))
    axes.barh(places, shares, color=colour, height=0.7)
    axes.set_yticks(places, [shown(row["name"].removeprefix("aten::"), 40) for row in rows], fontsize=8)
    axes.invert_yaxis()
    for at, (row, share) in enumerate(zip(rows, shares)):
        axes.annotate(
            f"{percent(share / 100)}   {int(row['calls']):,} x {amount(row['ms_per_call'])} ms", (share, at), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.set_xlim(0, 1.35 * max(shares))
    axes.set_xlabel(label, fontsize=9)
    tidy(axes, "x")
