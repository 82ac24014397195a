"""List the recipes."""

from __future__ import annotations

import click


@click.command("recipes")
@click.argument("pattern", default="")
@click.option("--show", is_flag=True, help="Print the text of the recipes.")
def command(pattern: str, show: bool) -> None:
    """List the recipes that come with zoo.

    \b
    zoo recipes
    zoo recipes demo --show
    """
    from fnmatch import fnmatch

    from zoo import recipe

    found = {name: path for name, path in recipe.shipped().items() if fnmatch(name, f"*{pattern}*")}
    if not found:
        click.echo("nothing matches; see zoo recipes")
    width = max(map(len, found), default=0)
    for name, path in found.items():
        text = path.read_text(encoding="utf-8")
        click.echo(text if show else f"{name:{width}} {text.splitlines()[0].lstrip('# ')}")
