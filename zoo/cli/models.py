"""List the models."""

from __future__ import annotations

import click

from zoo.cli._shared import as_json, listing


@click.command("models")
@click.argument("pattern", default="")
@as_json
def command(pattern: str, as_json: bool) -> None:
    """List the models: input, parameters, multiply-accumulates, paper.

    \b
    zoo models
    zoo models 'resnet*'
    """
    listing("models", pattern, as_json)
