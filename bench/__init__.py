"""Benchmarks: one file one question, ``main(quick, ...)`` each, all by the clock in :mod:`zoo.bench._timing`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from zoo.spec import UsageError

BUSY = 0.25
"""Cores in use by others above which a benchmark warns: threads that wait for each other then wait for the scheduler."""


def names() -> list[str]:
    """The benchmarks of zoo's own parts, ``inference`` aside, which is what a run or model gets."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "inference")


def command(
    what: str | None = None,
    *,
    quick: bool = False,
    batches: str | None = None,
    device: str | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> Path:
    """``zoo bench``: measure a run (None: the latest), a model, or a part of zoo by name; print the table, say where the files are."""
    from zoo import report, runs, show
    from zoo.bench import _timing, inference
    from zoo.console import say

    if (taken := _timing.busy()) > BUSY:
        say(f"warning  other processes keep {taken:.1f} cores busy: figures will be off, by 10 times or more at small batches")
    if what in names():
        if batches or device:
            raise UsageError(f"bench {what} takes neither --batches nor --device; leave them out")
        module = importlib.import_module(f"zoo.bench.{what}")
        path = module.main(quick, out=out or _timing.default_out(what, quick=quick))
    else:
        module = inference
        if what is None:
            what = str(runs.find(None))
            say(f"run      {what}")
        path = inference.main(quick, what, out=out, batches=_numbers(batches), device=device or "auto")
    if (path.parent / "recipe.toml").is_file():
        report.summary(path.parent)
        report.page(path.parent)
    rows = _timing.read_csv(path)
    if as_json:
        json.dump(rows, sys.stdout, indent=1)
        print()
    else:
        show.out().print(module.table(rows))
        picture = path.with_suffix(".png")
        say(f"bench    {path}" + (f"  {picture.name}" if picture.is_file() else ""))
    return path


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"cannot read --batches {text!r}; give numbers with commas, e.g. --batches 1,8,64") from error
