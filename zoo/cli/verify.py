"""Check what an exported file says of itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from zoo.cli._shared import RUN, as_json, limited


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", type=RUN, help="Run to compare with (default: the run in whose folder the file is).")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set.")
@click.option("--partial", is_flag=True, help="Accept that a check could not run; otherwise that is exit 8 too.")
@limited("to open and run once")
@as_json
def command(
    file: Path, run: str | None, data_dir: Path | None, partial: bool, max_memory: int, timeout: float, as_json: bool
) -> None:
    """Repeat the checks in an exported FILE's receipt: structure, digests, parity, accuracy. Exit 4 damaged, 8 differs or not run.

    \b
    zoo verify model.onnx
    zoo verify model.int8.onnx --run latest --data-dir ~/data --json
    """
    from zoo import tables
    from zoo.errors import DisagreeError, FileError
    from zoo.export import _guard

    _guard.check(file)  # before torch is imported
    from zoo.export import _verify

    checks = _verify.verify(file, run=_verify.at_hand(file, run), data_dir=data_dir, max_memory=max_memory, timeout=timeout)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks]))
    else:
        tables.out().print(
            tables.make(("check", "state", "file says", "found"), [(c.name, c.state, c.claimed, c.found) for c in checks])
        )
    for check in checks:
        if check.code == 4:
            raise FileError(
                f"file is damaged or was changed ({file}, {check.name}); export it again: zoo export --onnx --force"
            )
        if check.code:
            raise DisagreeError(f"file does not hold what it says ({file}, {check.name}: {check.claimed}, found {check.found})")
    if not partial and (left := [check for check in checks if check.state == "not run"]):
        raise DisagreeError(
            f"not verified ({file}, {left[0].name} could not run: {left[0].found}), or accept that with --partial"
        )
