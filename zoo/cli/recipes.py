"""List the recipes."""

from __future__ import annotations

import json

import click

from zoo.cli._listing import options
from zoo.cli._shared import as_json


@click.command("recipes")
@click.argument("pattern", default="")
@click.option("--show", is_flag=True, help="Print the text of the recipes.")
@click.option("--keys", is_flag=True, help="List every setting: type, default, range, description.")
@as_json
def command(pattern: str, show: bool, keys: bool, as_json: bool) -> None:
    """List the recipes, or the settings of a recipe.

    PATTERN selects names of recipes (default: all) or, with --keys, of settings.

    \b
    zoo recipes
    zoo recipes demo --show
    zoo recipes --keys
    zoo recipes --keys loss.
    """
    import tomllib
    from fnmatch import fnmatch

    from zoo import recipe

    if keys:
        _keys(pattern, as_json)
        return
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


def _keys(pattern: str, as_json: bool) -> None:
    from dataclasses import asdict
    from fnmatch import fnmatch

    from zoo import recipe

    found = {key: option for key, option in recipe.options().items() if fnmatch(key, f"*{pattern}*")}
    if as_json:
        click.echo(json.dumps({key: asdict(option) for key, option in found.items()}))
        return
    click.echo("\n".join(options(found)) if found else "nothing matches; see zoo recipes --keys")
