"""List the data sets; look through one for files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zoo.cli._listing import listing
from zoo.cli._shared import Name, as_json, registered


class _Listing(click.Group):
    """``zoo data`` and ``zoo data PATTERN`` list; a word that is a command is that command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not any(word in self.commands or word in ctx.help_option_names for word in args):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("data", cls=_Listing)
def command() -> None:
    """List the data sets (zoo data PATTERN), or verify one.

    \b
    zoo data
    zoo data cifar --json
    zoo data verify cifar10 --data-dir FOLDER
    zoo data verify my_images/
    """


@command.command("list")
@click.argument("pattern", default="")
@as_json
def _list(pattern: str, as_json: bool) -> None:
    """List the data sets.

    \b
    zoo data list
    zoo data list cifar --json
    """
    listing("data", pattern, as_json)


@command.command("verify")
@click.argument("name", type=Name(registered("data")))
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the data set lies.")
@as_json
def _verify(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Read every file of a data set, or of a folder of class folders; name all that are bad, with the reason.

    The exit code is 3 if any is. Classes, lists, checksums and images that are in both train and test are looked at too.

    \b
    zoo data verify cifar10 --data-dir FOLDER
    zoo data verify my_images/ --json
    """
    from zoo import console, registry, tables
    from zoo.data._parts import UnreadableImages
    from zoo.errors import did_you_mean

    if name not in registry.table("data"):
        if not Path(name).exists():
            raise click.UsageError(
                f"no data set or folder {name!r}{did_you_mean(name, registry.names('data'))}; list: zoo data"
            )
        name, data_dir = "folder", Path(name)
    spec = registry.find("data", name)
    failed = None
    try:
        data = spec.build(data_dir, size=spec.shape[1], val=0.0, seed=0)
    except UnreadableImages as error:
        failed, data = error, error.data
    bad = list(failed.bad) if failed else []
    if as_json:
        counts = {"train": len(data.train), "test": len(data.test)}
        click.echo(json.dumps({"data": data.name, "digest": data.digest, **counts, "bad": bad, "notes": list(data.notes)}))
    else:
        for note in data.notes:
            console.note("data", note)
        for fault in bad:
            click.echo(fault)
        tables.checked(data)
    if failed:
        raise failed
