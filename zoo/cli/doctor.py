"""Say what is live."""

from __future__ import annotations

import click


@click.command("doctor")
def command() -> None:
    """Say what is live on this machine, what is not, why, and the line that mends it.

    \b
    zoo doctor
    zoo --debug doctor
    """
    from zoo import doctor, show

    show.doctor(doctor.report())
