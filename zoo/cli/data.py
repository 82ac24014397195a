"""List the data sets."""

from __future__ import annotations

import click

from zoo.cli._shared import as_json, listing


@click.command("data")
@click.argument("pattern", default="")
@as_json
def command(pattern: str, as_json: bool) -> None:
    """List the data sets.

    \b
    zoo data
    zoo data cifar --json
    """
    listing("data", pattern, as_json)
