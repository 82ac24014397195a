"""How a run is trained. From the top:

start        a recipe becomes a finished folder: check, build, fit, test, report
build        reads the recipe: data, model, loss, batches and optimizer with plain keyword arguments
session      what changes while a run trains: fit, save, restore, release what is frozen
loop         train_epoch and predict: model, loss, batches, optimizer in; numbers out
batches      which samples, in which order, augmented how: a function of (seed, epoch, sample)
freezing     what is frozen: selection by role, the plan of unfreezing, the table, the proof
features     what a frozen part gives its head, computed once; feature_cache keeps it on disk, feature_runtimes computes it faster
optim        parameter groups, optimizers, learning rate of a step, moving average
checkpoint   the files of a run: states, rows;  processes, signals, describe, lint
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from zoo.recipe import Recipe
    from zoo.spec import DataSet


def train(
    recipe: Recipe, *, out: Path | None = None, resume: bool = False, force: bool = False, command: str = "",
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
    data: DataSet | None = None, loss: nn.Module | None = None,
) -> Path:  # fmt: skip
    """Train what the recipe says and return the run folder: ``out``, or a new one in the folder of all runs.

    ``resume`` continues from the newest state in ``out``; ``force`` replaces a run that is there. ``on_epoch`` receives the
    rows of ``metrics.jsonl`` of each epoch. ``data`` and ``loss`` replace those that the recipe names.

    Raises:
        UsageError, DataError, FileError, DivergedError, DiskError, BusyError: see their exit codes; all of them have the
            folder as ``run`` once there is one. zoo.training.signals.Interrupted: after a signal, with the state saved.
    """
    from zoo import run_folders
    from zoo.console import leading

    more: dict[str, Any] = {"resume": resume, "force": force, "command": command, "on_epoch": on_epoch}
    if not leading():  # the first process takes the folder, the others learn it from that one
        from zoo.training import start

        return start.train_in(None, recipe, data=data, loss=loss, **more)
    with run_folders.taken(recipe, out, resume=resume, force=force) as folder:
        from zoo.training import start  # torch is imported when the folder is held

        try:
            return start.train_in(folder, recipe, data=data, loss=loss, **more)
        except Exception as error:
            error.run = folder  # type: ignore[attr-defined]
            raise
