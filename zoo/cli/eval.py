"""Evaluate a run."""

from __future__ import annotations

import json

import click

from zoo.cli._shared import RUN, as_json


@click.command("eval")
@click.argument("run", required=False, type=RUN)
@click.option("--split", type=click.Choice(["val", "test", "train"]), default="test", show_default=True)
@as_json
def command(run: str | None, split: str, as_json: bool) -> None:
    """Evaluate a run's best weights: overall, macro and per class, with 95 % intervals.

    \b
    zoo eval
    zoo eval cifar10-resnet32 --split val --json
    """
    from zoo import console, runs, show

    folder = runs.find(run)
    console.say(f"run      {folder}")
    from zoo import run as engine

    loaded = engine.load(folder)
    result, _, _ = engine.evaluate(loaded, split)
    if as_json:
        per_class = {
            name: dict(zip(("n", "correct", "accuracy", "low", "high"), row))
            for name, row in zip(loaded.classes, result.per_class)
        }
        overall = {key: getattr(result, key) for key in ("n", "accuracy", "low", "high", "macro", "loss", "ece")}
        click.echo(json.dumps({"run": str(folder), "split": split, **overall, "classes": per_class}))
    else:
        show.evaluation(split, loaded.classes, result)
