"""What recipes reach: the finished runs of this machine, one row each, and the mean of each recipe over its seeds.

``zoo bench recipes`` trains nothing: it reads the run folders that ``zoo train`` left. ``--quick`` trains one epoch first.
"""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from zoo import checkpoint, run, runs, show
from zoo import recipe as recipes
from zoo.bench import _timing
from zoo.spec import FileError


def main(quick: bool = False, *, out: Path | None = None) -> Path:
    """Write a row for each finished run; FileError if there is none."""
    if quick:
        run.train(recipes.resolve("demo", {"epochs": 1, "data.imbalance": "none"}))
    rows = [row for folder in runs.all_runs() if (row := _row(folder))]
    if not rows:
        raise FileError(f"no finished run ({runs.root().absolute()}); make one with: zoo train")
    return _timing.write_csv(out or _timing.default_out("recipes", quick=quick), sorted(rows, key=_key))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("data", "imbalance", "model", "loss", "epochs", "seed", "run"))


def _row(folder: Path) -> dict[str, Any] | None:
    if not (folder / "result.json").is_file():
        return None
    recipe = recipes.read(folder / "recipe.toml")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    finished = datetime.datetime.fromtimestamp((folder / "result.json").stat().st_mtime, datetime.UTC)
    facts = env | {"cores": env["threads"], "date": f"{finished:%Y-%m-%d}", "command": f"zoo train {folder.name}/recipe.toml"}
    train = [row for row in checkpoint.read_rows(folder) if row["split"] == "train"]
    return {
        "run": folder.name,
        "data": recipe.data.name,
        "imbalance": recipe.data.imbalance,
        "model": recipe.model,
        "loss": recipe.loss.name,
        "class_weights": recipe.loss.class_weights,
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "n": result["n"],
        "accuracy": round(result["accuracy"], 5),
        "low": round(result["low"], 5),
        "high": round(result["high"], 5),
        "macro": round(result["macro"], 5),
        "kept_epoch": result["epoch"],
        "images_per_s": round(statistics.median(row["images_per_s"] for row in train), 1),
        "minutes": round(result["seconds"] / 60, 1),
        "precision": env["precision"],
        "threads": env["threads"],
        **{name: facts[name] for name in _timing.ENVIRONMENT},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a recipe: mean and standard deviation over seeds, and the interval of the images where there is one seed."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(
            tuple(row[key] for key in ("data", "imbalance", "model", "loss", "class_weights", "epochs")), []
        ).append(row)
    columns = (
        "data",
        "imbalance",
        "model",
        "loss",
        "class weights",
        ">epochs",
        ">seeds",
        ">test %",
        "spread",
        ">images/s",
        ">minutes",
    )
    return show.make(columns, [(*key, len(group), *_spread(group)) for key, group in groups.items()])


def _spread(group: Iterable[Mapping[str, Any]]) -> tuple[str, str, str, str]:
    group = list(group)
    shares = [100 * float(row["accuracy"]) for row in group]
    if len(shares) > 1:
        spread = f"sd {statistics.stdev(shares):.2f}"
    else:
        spread = f"95 % of images {100 * float(group[0]['low']):.1f} to {100 * float(group[0]['high']):.1f}"
    speed = statistics.median(float(row["images_per_s"]) for row in group)
    minutes = statistics.median(float(row["minutes"]) for row in group)
    return f"{statistics.mean(shares):.2f}", spread, f"{speed:,.0f}", f"{minutes:,.1f}"
