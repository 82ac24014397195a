"""List the models."""

from __future__ import annotations

import click

from zoo.cli._listing import listing
from zoo.cli._shared import as_json


@click.command("models")
@click.argument("pattern", default="")
@as_json
def command(pattern: str, as_json: bool) -> None:
    """List the models.

    PATTERN selects names (default: all). The columns are input size, parameters, multiply-accumulates per image, suitable data
    sets, paper and weights to download. Any model of timm is available as timm/NAME.

    \b
    zoo models
    zoo models 'resnet*'
    """
    listing("models", pattern, as_json)
