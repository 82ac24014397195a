"""List the losses."""

from __future__ import annotations

from fnmatch import fnmatch

import click

from zoo.cli._listing import listing, options
from zoo.cli._shared import as_json


@click.command("losses")
@click.argument("pattern", default="")
@as_json
def command(pattern: str, as_json: bool) -> None:
    """List the losses and their options.

    PATTERN selects names (default: all) and adds the type, default and range of each option.

    \b
    zoo losses
    zoo losses focal
    """
    from zoo import registry

    listing("losses", pattern, as_json)
    if as_json or not pattern:
        return
    for name, entry in registry.table("losses").items():
        if fnmatch(name, f"*{pattern}*") and entry["options"]:
            click.echo(f"\n[loss] with name = {name!r}")
            click.echo("\n".join(options(entry["options"])))
