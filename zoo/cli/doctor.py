"""Report active and missing components."""

from __future__ import annotations

import json

import click

from zoo.cli._shared import as_json


@click.command("doctor")
@as_json
def command(as_json: bool) -> None:
    """Report active and missing components and how to fix them.

    \b
    zoo doctor
    zoo --debug doctor
    """
    from zoo import doctor, tables

    rows = doctor.report()
    if as_json:
        click.echo(json.dumps([dict(zip(("part", "state", "detail"), row)) for row in rows]))
    else:
        tables.doctor(rows)
