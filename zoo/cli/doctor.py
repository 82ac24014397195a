"""Say what is live."""

from __future__ import annotations

import json

import click

from zoo.cli._shared import as_json


@click.command("doctor")
@as_json
def command(as_json: bool) -> None:
    """Report what works on this machine, what does not, why, and the command that fixes it.

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
