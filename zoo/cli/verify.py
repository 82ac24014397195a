"""Repeat the checks recorded in an exported file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zoo.cli._shared import RUN, UserPath, as_json, data_dir, limited


@click.command("verify")
@click.argument("file", type=UserPath())
@click.option("--run", type=RUN, help="Run to compare with (default: the run folder that contains the file).")
@data_dir
@click.option("--partial", is_flag=True, help="Accept checks that could not run (otherwise exit 8).")
@limited("opening and running a model file once")
@as_json
def command(
    file: Path, run: str | None, data_dir: Path | None, partial: bool, max_memory: int, timeout: float, as_json: bool
) -> None:
    """Repeat the checks recorded in an exported file.

    The checks are structure, digests, agreement with PyTorch and accuracy. Exit code 4: FILE is damaged; 8: a result differs or a
    check could not run.

    \b
    zoo verify model.onnx
    zoo verify model.int8.onnx --run latest --data-dir ~/data --json
    """
    import dataclasses

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
            tables.make(("check", "state", "recorded", "found"), [(c.name, c.state, c.claimed, c.found) for c in checks])
        )
    for check in checks:
        if check.code == 4:
            raise FileError(
                f"file is damaged or was changed ({file}, {check.name}); export it again: zoo export --onnx --force"
            )
        if check.code:
            raise DisagreeError(
                f"result differs from the recorded result ({file}, {check.name}: recorded {check.claimed}, found {check.found}); export it again: zoo export --onnx --force"
            )
    if not partial and (left := [check for check in checks if check.state == "not run"]):
        raise DisagreeError(
            f"not verified ({file}, {left[0].name} could not run: {left[0].found}), or accept it with --partial"
        )
