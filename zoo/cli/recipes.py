"""List the recipes."""

from __future__ import annotations

import json

import click

from zoo.cli._shared import as_json


@click.command("recipes")
@click.argument("pattern", default="")
@click.option("--show", is_flag=True, help="Print the text of the recipes.")
@as_json
def command(pattern: str, show: bool, as_json: bool) -> None:
    """List the recipes that come with zoo.

    \b
    zoo recipes
    zoo recipes demo --show
    """
    import tomllib
    from fnmatch import fnmatch

    from zoo import recipe

    found = {name: path for name, path in recipe.shipped().items() if fnmatch(name, f"*{pattern}*")}
    texts = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    about = {name: text.splitlines()[0].lstrip("# ") for name, text in texts.items()}
    if as_json:
        click.echo(json.dumps({name: {"about": about[name], "settings": tomllib.loads(text)} for name, text in texts.items()}))
        return
    if not found:
        click.echo("nothing matches; see zoo recipes")
    width = max(map(len, found), default=0)
    for name, text in texts.items():
        click.echo(text if show else f"{name:{width}} {about[name]}")
