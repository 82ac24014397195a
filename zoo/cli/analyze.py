"""Inspect convolutions and networks: the tools in ``zoo/analysis``, one file each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

FOLDER = Path(__file__).parent.parent / "analysis"


class Tools(click.Group):
    """The files of the folder, ``dead_relu.py`` as ``dead-relu``; a file is imported when its tool is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(path.stem.replace("_", "-") for path in FOLDER.glob("[!_]*.py"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return import_module(f"zoo.analysis.{cmd_name.replace('-', '_')}").command


@click.group("analyze", cls=Tools)
def command() -> None:
    """Inspect convolutions and networks.

    \b
    zoo analyze conv-matrix --size 3 --kernel 3 --stride 4 --padding 2
    zoo analyze local-affine RUN --image cat.png
    """
