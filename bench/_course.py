"""Rescaling losses and loss-dependent samplers by epoch, compared with reported values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from zoo import recipe, tables
from zoo.bench import _timing
from zoo.recipe_tables import Reported
from zoo.training import checkpoint

COLUMNS = ("mean_factor", "focal_scale", "easy", "hard")
"""Mean of (1 - p_t)^gamma over an epoch, the loss's scale from its end on, the shares of easy and hard samples among its draws."""
SHORT = {
    "mean_factor": "mean of (1-p)^gamma",
    "focal_scale": "new scale",
    "easy": "easy draws %",
    "hard": "hard draws %",
}


def rows(folder: Path, facts: Mapping[str, Any], reported: Reported) -> list[dict[str, Any]]:
    """Rows of a run at the epochs at which the loss rescales, at those with reported values, and at the last.

    ``facts`` are the run's row in the table of recipes. Empty if the run has no such loss or sampler.
    """
    train = [row for row in checkpoint.read_rows(folder) if row["split"] == "train"]
    if not train or not any(name in train[-1] for name in COLUMNS):
        return []
    every = recipe.read(folder / "recipe.toml").loss.options.get("rescale_every", 5)
    reported_at = {point.epoch: point for point in reported.course}
    made = []
    for row in train:
        if row["epoch"] % every and row["epoch"] not in reported_at and row is not train[-1]:
            continue
        point = reported_at.get(row["epoch"])
        made.append(
            {name: facts[name] for name in ("recipe", "digest", "run", "seed")}
            | {"epoch": row["epoch"]}
            | {name: round(row[name], 5) if name in row else "" for name in COLUMNS}
            | {f"reported_{name}": getattr(point, name) or "" if point else "" for name in COLUMNS}
            | {name: facts[name] for name in _timing.ENVIRONMENT}
        )
    return made


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per epoch: the mean over the seeds of one recipe, and the reported value."""
    shown = [name for name in COLUMNS if rows[0][name] != ""]
    columns = ["epoch", *(head for name in shown for head in (f">{SHORT[name]}", ">reported"))]
    cells = []
    for epoch in dict.fromkeys(row["epoch"] for row in rows):
        group = [row for row in rows if row["epoch"] == epoch]
        cells.append([epoch])
        for name in shown:
            published = group[0][f"reported_{name}"]
            cells[-1] += [
                _cell(name, statistics.fmean(float(row[name]) for row in group)),
                _cell(name, float(published)) if published else "",
            ]
    return tables.make(columns, cells)


def _cell(name: str, value: float) -> str:
    return tables.percent(value) if name in ("easy", "hard") else f"{value:.3g}"
