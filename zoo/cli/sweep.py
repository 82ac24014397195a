"""Train several settings and select one."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click

from zoo.cli._shared import Name, UserPath, as_json, echo_line, headline, recipe_names, registered


@click.command("sweep")
@click.argument("what", type=Name(registered("models"), recipe_names))
@click.argument("settings", nargs=-1)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs per setting.")
@click.option("--trials", type=click.IntRange(1), help="Number of settings to try when a range is searched (default: 20).")
@click.option("--storage", default="", help="SQLAlchemy URL of a shared database (default: study.db in the sweep's folder).")
@click.option(
    "--select-on",
    type=click.Choice(["val", "test"]),
    help="Split that selects the setting (default: val); the result is marked if it is test.",
)
@click.option("--out", type=UserPath(), help="Folder of the sweep (default: in runs/sweeps).")
@as_json
def command(
    what: str,
    settings: tuple[str, ...],
    seeds: int,
    trials: int | None,
    storage: str,
    select_on: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Train one recipe with several settings and seeds.

    WHAT is a model or a recipe. SETTINGS are key=a,b,c (every value), key=log:LOW:HIGH or key=lin:LOW:HIGH (range to search), or
    key=a (fixed). The setting with the highest validation accuracy, averaged over seeds, is selected. Running the same command again
    resumes the sweep: finished runs are kept, interrupted runs are resumed.

    \b
    zoo sweep demo loss.beta=0,0.9,0.99,0.999 --seeds 3
    zoo sweep demo lr=log:1e-3:1e-1 epochs=10 --trials 12
    zoo sweep cnn_small data=my_images/ loss=focal,balanced_softmax
    """
    headline()
    from zoo import csv_files, recipe, report, run_folders, sweep, tables

    axes, fixed = sweep.parse([*settings, *([f"select_on={select_on}"] if select_on else [])])
    name = "-".join([Path(what).stem, *(axis.key.rpartition(".")[2] for axis in axes)])
    out = out or run_folders.sweeps() / name
    points = sweep.search(
        what, axes, fixed, seeds=seeds, trials=trials, out=out, storage=storage, command=shlex.join(["zoo", *sys.argv[1:]])
    )
    if as_json:
        rows = csv_files.read(out / "sweep.csv")
        click.echo(json.dumps([{key: tables.value(cell) for key, cell in row.items()} for row in rows]))
        return
    chosen_on = sweep.measure(recipe.resolve(what, fixed))
    table = report.sweep_table(points, chosen_on)
    tables.out().print(tables.make(table.columns, table.rows))
    echo_line(report.sweep_choice(points, chosen_on))
    echo_line(f"pictures  {out}/sweep.png   table  {out}/sweep.csv   report  {out}/report.html")
