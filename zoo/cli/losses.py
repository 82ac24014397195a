"""List the losses."""

from __future__ import annotations

import click

from zoo.cli._listing import listing
from zoo.cli._shared import as_json


@click.command("losses")
@click.argument("pattern", default="")
@as_json
def command(pattern: str, as_json: bool) -> None:
    """List the losses.

    \b
    zoo losses
    zoo losses focal
    """
    listing("losses", pattern, as_json)
