"""Check what an exported file says of itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from zoo.cli._shared import RUN, as_json


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", type=RUN, help="Run to compare with (default: the one in whose folder the file lies).")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set.")
@click.option(
    "--max-memory", default=0, metavar="MB", type=click.IntRange(0), help="Memory that the file may use (0: by its size)."
)
@click.option("--timeout", default=60.0, show_default=True, metavar="S", type=click.FloatRange(0, min_open=True),
              help="Seconds that the file may take to open and run once.")  # fmt: skip
@as_json
def command(file: Path, run: str | None, data_dir: Path | None, max_memory: int, timeout: float, as_json: bool) -> None:
    """Repeat the checks in an exported FILE's receipt: structure, digests, parity, accuracy. Exit 4 damaged, 8 differs.

    \b
    zoo verify model.onnx
    zoo verify model.int8.onnx --run latest --data-dir ~/data --json
    """
    from zoo import show
    from zoo.export import _guard
    from zoo.spec import DisagreeError, FileError

    _guard.check(file)  # before torch is imported
    from zoo.export import _verify

    checks = _verify.verify(file, run=_verify.at_hand(file, run), data_dir=data_dir, max_memory=max_memory, timeout=timeout)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks]))
    else:
        show.out().print(
            show.make(("check", "state", "file says", "found"), [(c.name, c.state, c.claimed, c.found) for c in checks])
        )
    for check in checks:
        if check.code == 4:
            raise FileError(
                f"file is damaged or was changed ({file}, {check.name}); export it again: zoo export --onnx --force"
            )
        if check.code:
            raise DisagreeError(f"file does not hold what it says ({file}, {check.name}: {check.claimed}, found {check.found})")
