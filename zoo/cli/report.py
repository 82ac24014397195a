"""Draw and compare runs."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli._shared import RUN


@click.command("report")
@click.argument("runs", nargs=-1, type=RUN)
@click.option("--out", type=click.Path(path_type=Path), help="HTML file of a comparison (default: compare.html).")
def command(runs: tuple[str, ...], out: Path | None) -> None:
    """Draw a run's curves, confusion and classes again, or compare several runs on one page.

    \b
    zoo report
    zoo report cifar10-resnet32-focal cifar10-resnet32-cross --out compare.html
    """
    from zoo import report as reports
    from zoo import runs as folders
    from zoo.console import say

    found = [folders.find(name) for name in runs or (None,)]
    say("run      " + "  ".join(map(str, found)))
    if len(found) == 1:
        reports.figures(found[0])
        reports.summary(found[0])
        page = reports.page(found[0])
    else:
        page = reports.compare(found, out or Path("compare.html"))
    click.echo(f"report    {page}")
