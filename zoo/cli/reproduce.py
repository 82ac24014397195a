"""Repeat reported experiments."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import click

from zoo.cli._shared import Name, as_json, echo_line, headline, recipe_names


@click.command("reproduce")
@click.argument("experiments", nargs=-1, type=Name(recipe_names))
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs per experiment.")
@click.option("--data-dir", help="Folder of the data set (default: the cache, or a download).")
@click.option("--device", help="auto, cpu, cuda or cuda:N (default: auto).")
@click.option("--compile", is_flag=True, default=None, help="Train with torch.compile: slower start, faster steps.")
@as_json
def command(experiments: tuple[str, ...], seeds: int, as_json: bool, **place: Any) -> None:
    """Repeat reported experiments and compare the results.

    EXPERIMENTS are names or patterns of recipes; without an argument, the experiments are listed. Finished runs are kept,
    interrupted runs are resumed, and several processes can share the work.

    \b
    zoo reproduce
    zoo reproduce s0_5 --seeds 3
    zoo reproduce "s0_*" "s1_*"
    """
    from zoo import reproduce

    if not experiments:
        _list(as_json)
        return
    names = reproduce.chosen(experiments)
    headline()
    keys = {"data_dir": "data.dir", "device": "device", "compile": "compile"}
    fixed = {keys[key]: value for key, value in place.items() if value is not None}
    diverged = reproduce.repeat(names, seeds=seeds, fixed=fixed, command=shlex.join(["zoo", *sys.argv[1:]]))
    _compare(names, diverged, as_json)


def _list(as_json: bool) -> None:
    """The experiments, with reported and measured results."""
    from zoo import recipe, reproduce, tables

    rows: list[dict[str, Any]] = []
    for name, found in reproduce.experiments().items():
        needs, analogue = reproduce.download(found), found.reported.analogue
        what = recipe.shipped()[name].read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        rows.append({
            "experiment": name, "reported": found.reported.accuracy or None, "here": reproduce.accuracies(name), "needs": needs,
            "analogue": analogue, "analogue_here": reproduce.accuracies(analogue, any_weights=True) if analogue else [], "what": what,
        })  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows))
        return
    cells = [(r["experiment"], tables.percent(r["reported"]), _mean(r["here"]), _about(r)) for r in rows]
    tables.out().print(tables.make(("experiment", ">reported %", ">measured %", "what"), cells))


def _about(row: dict[str, Any]) -> str:
    """What an experiment is, what it needs, and what its analogue reached here."""
    parts = [row["what"]]
    if row["needs"]:
        parts.append(f"Needs the download {row['needs']}.")
    if row["analogue"]:
        parts.append(f"Analogue: {row['analogue']}, {_mean(row['analogue_here']) or 'not trained here'}.")
    return " ".join(parts)


def _mean(shares: list[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.1f} (n = {len(shares)})" if shares else ""


def _compare(names: list[str], diverged: list[str], as_json: bool) -> None:
    """Print the table, its notes and the classes of a single experiment; write CSV and picture to the runs folder."""
    from zoo import reproduce, run_folders
    from zoo.bench import _timing
    from zoo.bench import recipes as bench
    from zoo.errors import BusyError, DivergedError
    from zoo.report import _draw

    rows = bench.rows_of([path for name in names for path in reproduce.finished(name)])
    if not rows and not diverged:
        raise BusyError(f"no finished run ({', '.join(names)}: training in other processes); try again later")
    if not rows:
        raise DivergedError("; ".join(diverged))
    path = _timing.write_csv(run_folders.root() / "reproduce.csv", rows)
    _draw.save(bench.picture(rows), path.with_suffix(".png"))
    if as_json:
        click.echo(json.dumps(rows))
    else:
        _print(names, rows)
        echo_line(f"picture   {path.with_suffix('.png')}   table  {path}")
    if diverged:
        raise DivergedError("; ".join(diverged))


def _print(names: list[str], rows: list[dict[str, Any]]) -> None:
    from zoo import recipe, reproduce, tables
    from zoo.bench import _course
    from zoo.bench import recipes as bench

    tables.out().print(bench.table(rows))
    if len(names) == 1 and (course := bench.course_of(reproduce.finished(names[0]))):
        tables.out().print(_course.table(course))
    if len(names) == 1 and (classes := bench.classes(reproduce.finished(names[0]), recipe.resolve(names[0], {}).reported)):
        tables.out().print(classes)
    for line in [bench.DIFFERENCE, *bench.notes(rows)]:
        echo_line(line)
