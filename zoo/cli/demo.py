"""Train, export and benchmark once."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli._shared import UserPath, echo_line, echo_receipt, headline, start


@click.command("demo")
@click.option("--out", type=UserPath(), help="Run folder (default: a new folder in runs).")
def command(out: Path | None) -> None:
    """Train, export and benchmark a small CNN on built-in images.

    It takes a few minutes and downloads nothing.

    \b
    zoo demo
    zoo demo --out runs/first
    """
    from zoo import recipe as recipes
    from zoo import tables

    headline()
    folder = start(recipes.resolve("demo", {}), out, False, False)
    tables.result(folder)
    import zoo.bench
    import zoo.export
    from zoo.run import load

    echo_receipt(zoo.export.onnx(load(folder)))
    zoo.bench.command(str(folder), zoo.bench.Request(quick=True))
    echo_line(f"pictures  {folder}/curves.png  confusion.png  per_class.png  bench.png   report  {folder}/report.html")
    echo_line("next      zoo train resnet32 --data cifar10     zoo models     zoo doctor")
