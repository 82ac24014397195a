"""Evaluate a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from zoo.cli._shared import RUN, UserPath, as_json, data_dir, moved, threads

ROOM = 1_000_000
"""Bytes that the files of --out need at least."""


@click.command("eval")
@click.argument("run", required=False, type=RUN)
@click.option("--split", type=click.Choice(["val", "test", "train"]), default="test", show_default=True,
              help="Images to evaluate.")  # fmt: skip
@click.option(
    "--out",
    type=UserPath(),
    help="Folder for result.json and the tables as CSV (default: not written).",
)
@click.option("--skip-bad", is_flag=True, help="Skip images that cannot be read; the result reports their number.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Calibrate the probabilities: fit a softmax temperature on the validation images, which predict and export then use.",
)
@data_dir
@threads
@click.option(
    "--views", type=click.Choice(["none", "flip", "shift", "crops"]), default="none", show_default=True,
    help="Average the predictions for each image and its mirror image (flip), also shifted by one pixel (shift), or for five crops and their mirror images (crops).",
)  # fmt: skip
@as_json
def command(
    run: str | None, split: str, out: Path | None, skip_bad: bool, calibrate: bool, data_dir: Path | None, views: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Evaluate a run: overall, macro and per-class accuracy.

    RUN is a run folder, a run's name or a unique prefix of it (default: the latest run), or hf:OWNER/NAME. Overall and per-class
    accuracy have 95 % intervals. The output also has the accuracy by number of training images, the most confused pairs and the
    calibration error.

    \b
    zoo eval
    zoo eval cifar10-resnet32 --split val --json
    zoo eval --calibrate
    """
    from zoo import console, run_folders, tables
    from zoo.files import check_room, check_writable, publish_text

    if out is not None:
        check_writable(out / "result.json")
        check_room(out, ROOM)
    folder = run_folders.find(run)
    console.print_line(f"run      {folder}")
    from zoo import machine, report
    from zoo import run as engine
    from zoo.data._parts import UnreadableImages
    from zoo.training.views import KINDS

    machine.use_threads()
    loaded = moved(engine.load(folder), data_dir)
    skipped: dict[str, int] = {}
    try:
        data = loaded.dataset()
    except UnreadableImages as error:
        if not skip_bad or (split != "test" and error.carved):  # else the validation split could contain training images
            raise
        data, skipped = error.data, {"skipped": len(error.bad)}
        console.print_line(f"warning  {error} (skipped)")
    if data.skipped:
        skipped = {"skipped": len(data.skipped)}
    if calibrate:
        loaded = _calibrated(loaded, split, data)
    result, logits, targets = engine.evaluate(loaded, split, data, views=views)
    counts = loaded.env.get("counts", ())
    chosen: dict[str, Any] = {"chosen_on": loaded.recipe.select_on} if split == "test" else {}
    chosen |= {"temperature": loaded.temperature} if loaded.temperature != 1 else {}
    if views != "none":
        chosen["views"] = views
        console.print_line(f"views    probabilities averaged over {KINDS[views]} views of each image ({views})")
    story = {"run": str(folder), "split": split, **chosen, **skipped, **result.summary(loaded.classes, counts)}
    if as_json:
        click.echo(json.dumps(story | _classes(loaded.classes, result)))
    else:
        tables.evaluation(split, loaded.classes, result, counts, chosen)
    if out is not None:
        report.write_tables(out, result, logits, targets, getattr(data, split).files, loaded.classes)
        publish_text(out / "result.json", json.dumps(story, indent=1) + "\n")
        console.print_line(f"written  {out}/result.json  per_class.csv  confusion.csv  predictions.csv")


def _calibrated(loaded: Any, split: str, data: Any) -> Any:
    """The run with a temperature fitted on its validation images; prints the effect on ``split``."""
    from zoo import calibration, metrics
    from zoo import run as engine
    from zoo.console import print_line
    from zoo.files import near

    _, logits, targets = engine.evaluate(loaded, split, data)
    before = metrics.evaluate(logits * loaded.temperature, targets)  # without an earlier calibration
    loaded, found = engine.calibrate(loaded, data)
    after, _, _ = engine.evaluate(loaded, split, data)
    print_line(
        f"calibrate temperature {found.temperature:.3f} [{found.low:.3f}, {found.high:.3f}] from {found.n:,} validation images · {split}: "
        f"loss {before.loss:.4f} -> {after.loss:.4f}, calibration error {before.ece:.4f} -> {after.ece:.4f}"
    )
    if after.loss > before.loss:
        print_line(f"warning  the {split} loss rises; to undo the calibration, remove {near(loaded.path) / calibration.FILE}")
    return loaded


def _classes(names: Sequence[str], result: Any) -> dict[str, Any]:
    """The tables of an evaluation for JSON."""
    columns = ("n", "correct", "accuracy", "low", "high")
    rows = {name: dict(zip(columns, row)) for name, row in zip(names, result.per_class)}
    return {"classes": rows, "confusion": result.confusion.tolist()}
