"""Plot and compare runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from zoo.cli._shared import RUN, UserPath, as_json
from zoo.errors import UsageError

MOST = 20
"""Largest number of pairs of runs to print; the page lists all."""


@click.command("report")
@click.argument("runs", nargs=-1, type=RUN)
@click.option("--out", type=UserPath(), help="HTML file of the comparison of several runs (default: compare.html).")
@as_json
def command(runs: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Plot a run, or compare several runs.

    For one run (default: the latest), regenerate its figures and report page. For several runs, write one page with the results,
    the means over seeds and paired tests.

    \b
    zoo report
    zoo report cifar10-resnet32-focal cifar10-resnet32-cross --out compare.html
    """
    from zoo import report as reports
    from zoo import run_folders as folders
    from zoo import tables
    from zoo.console import print_line, print_lines

    if out is not None and len(runs) < 2:
        raise UsageError("--out names the page of several runs; that of one run is report.html in its folder: omit --out")
    found = [folders.find(name) for name in runs or (None,)]
    print_line("run      " + "  ".join(map(str, found)))
    if len(found) > 1:
        page, parts, remarks = reports.compare(found, out or Path("compare.html"))
        _compared(parts, as_json)
        print_lines(f"note     {text}" for text in remarks)
    else:
        reports.figures(found[0])
        reports.summary(found[0])
        page, result = reports.page(found[0]), found[0] / "result.json"
        if as_json:
            click.echo(result.read_text(encoding="utf-8") if result.is_file() else "{}", nl=False)
        else:
            tables.result(found[0])
    (print_line if as_json else click.echo)(f"report    {page}")


def _compared(parts: dict[str, Any], as_json: bool) -> None:
    from zoo import tables

    if as_json:
        rows = {
            name if at == 0 else "tests": tables.records(table.columns, table.rows)
            for name, part in parts.items()
            for at, table in enumerate(part)  # the second table of the methods has the tests between them
        }
        click.echo(json.dumps(rows))
        return
    for name, part in parts.items():
        for table in part:
            tables.out().print(tables.make(table.columns, table.rows[:MOST] if name == "pairs" else table.rows))
            if name == "pairs" and len(table.rows) > MOST:
                click.echo(f"{MOST} of {len(table.rows)} pairs of runs; all are in the report")
