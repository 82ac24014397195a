"""Benchmark a run, a model or a part of zoo."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli._shared import Name, as_json, registered, run_names


@click.command("bench")
@click.argument("what", required=False, type=Name(run_names, registered("models")))
@click.option("--quick", is_flag=True, help="Seconds instead of minutes: fewer rounds and sizes.")
@click.option("--batches", help="Batch sizes, e.g. 1,8,64.")
@click.option("--device", help="cpu or cuda; one that isn't there is an error, never a silent fallback.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="CSV file (default: bench.csv in the run folder, or bench/results)."
)
@as_json
def command(what: str | None, quick: bool, batches: str | None, device: str | None, out: Path | None, as_json: bool) -> None:
    """Benchmark a run, a model or one of zoo's own parts (focal_loss, startup, training).

    \b
    zoo bench --batches 1,64
    zoo bench focal_loss --quick
    """
    from zoo.bench import command

    command(what, quick=quick, batches=batches, device=device, out=out, as_json=as_json)
