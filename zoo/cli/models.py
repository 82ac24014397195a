"""List the models."""

from __future__ import annotations

import click

from zoo.cli._listing import listing
from zoo.cli._shared import as_json


@click.command("models")
@click.argument("pattern", default="")
@as_json
def command(pattern: str, as_json: bool) -> None:
    """List the models: input, parameters, multiply-accumulates, data sets they suit, paper, weights to download.

    Any model of timm is there too, as timm/NAME.

    \b
    zoo models
    zoo models 'resnet*'
    """
    listing("models", pattern, as_json)
