"""List the data sets; verify the files of one."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zoo.cli._listing import listing
from zoo.cli._shared import Name, UserPath, as_json, registered


class _Listing(click.Group):
    """``zoo data`` and ``zoo data PATTERN`` list; a word that names a command runs it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not any(word in self.commands or word in ctx.help_option_names for word in args):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("data", cls=_Listing)
def command() -> None:
    """List the data sets, or verify one.

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
@click.option("--data-dir", type=UserPath(), help="Folder of the data set (default: the cache).")
@click.option(
    "--layout",
    type=click.Choice(["auto", "splits", "classes"]),
    default="auto",
    show_default=True,
    help="Meaning of the subfolders: splits or classes.",
)
@as_json
def _verify(name: str, data_dir: Path | None, layout: str, as_json: bool) -> None:
    """Read every file of a data set and report bad files.

    NAME is a data set, a folder, a CSV or Parquet list or an .npz file. Each unreadable file is listed with the reason, and the exit
    code is 3. The command also checks classes, lists and checksums, and finds images that are in both train and test.

    \b
    zoo data verify cifar10 --data-dir FOLDER
    zoo data verify my_images/ --json
    """
    from zoo import console, registry, tables
    from zoo.data._parts import UnreadableImages
    from zoo.data._read import read
    from zoo.errors import DataError, did_you_mean
    from zoo.files import expanded

    registry.check_place(name, data_dir or "")
    name, place = registry.data_source(name)
    if name.partition(":")[0] not in registry.table("data") or (place and not expanded(place).exists()):
        wanted = place or name
        named = [each for each in registry.names("data") if each not in ("list", "folder", "npz")]
        raise click.UsageError(f"no data set or folder {wanted!r}{did_you_mean(wanted, named)}; list them with: zoo data")
    failed = None
    try:
        size = registry.entry("data", name)["shape"][1]
        data = read(name, place or data_dir or "", size=size, val=0.0, seed=0, layout=layout)
    except UnreadableImages as error:
        failed, data = error, error.data
    bad = list(failed.bad) if failed else []
    if as_json:
        counts = {split: len(getattr(data, split)) for split in ("train", "val", "test")}
        click.echo(json.dumps({"data": data.name, "digest": data.digest, **counts, "bad": bad, "notes": list(data.notes)}))
    else:
        for note in data.notes:
            console.note("data", note)
        for fault in bad:
            click.echo(fault)
        tables.checked(data)
    if failed:  # this command has no --skip-bad
        raise DataError(str(failed).replace("use --skip-bad", "train with --skip-bad")) from failed
