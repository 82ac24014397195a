"""Training of a run. From the top:

start        a recipe becomes a finished folder: check, build, fit, test, report
build        reads the recipe: data, model, loss, batches and optimizer with plain keyword arguments
session      the state of a run while it trains: fit, save, restore, release frozen layers
loop         train_epoch and predict: from model, loss, batches and optimizer to numbers
batches      samples, order and augmentation as a function of (seed, epoch, sample)
freezing     selection by role, the plan of unfreezing, the table, the digest check
features     features of frozen layers, computed once; feature_cache stores them, feature_runtimes computes them faster
losses       the loss of a recipe, by name, or given in Python;  distil  finished runs as teachers;  model_specs  a model's spec by name and image size
optim        parameter groups, optimizers, learning rate of a step, moving average
checks       what can be checked before the first step
checkpoint   the files of a run: states, rows;  processes, profile, signals, describe, lint
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.recipe import Recipe
    from zoo.spec import Given


def train(
    recipe: Recipe, *, out: Path | None = None, resume: bool = False, force: bool = False, command: str = "",
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None, given: Given | None = None, profile: bool = False,
) -> Path:  # fmt: skip
    """Train a recipe and return the run folder: ``out``, or a new one in the runs folder.

    ``resume`` continues from the newest state in ``out``; ``force`` replaces an existing run. ``on_epoch`` receives the
    rows of ``metrics.jsonl`` of each epoch. ``given`` replaces what the recipe names. ``profile`` also writes ``profile.csv``,
    ``profile.png`` and ``profile_trace.json`` (:class:`zoo.training.profile.Profile`).

    Raises:
        UsageError, DataError, FileError, DivergedError, DiskError, BusyError: see their exit codes; once the run has a folder,
            it is their attribute ``run``. zoo.training.signals.Interrupted: after a signal, with the state saved.
    """
    from msgspec import structs

    from zoo import model_files, run_folders
    from zoo.console import leading
    from zoo.spec import Given

    given = given or Given()
    more: dict[str, Any] = {"resume": resume, "force": force, "command": command, "on_epoch": on_epoch, "profile": profile}
    if given.model is not None:
        recipe = structs.replace(recipe, model=model_files.object_name(given.model))
    if not leading():  # the first process takes the folder and broadcasts it
        from zoo.training import start

        return start.train_in(None, recipe, given=given, **more)
    named = recipe  # for the name of the folder
    if given.data is not None:
        named = structs.replace(named, data=structs.replace(named.data, name=str(given.data.name)))
    if given.loss is not None:
        named = structs.replace(named, loss=structs.replace(named.loss, name=given.loss._get_name()))
    with run_folders.taken(named, out, resume=resume, force=force) as folder:
        from zoo.training import start  # torch is imported after the folder is locked

        try:
            return start.train_in(folder, recipe, given=given, **more)
        except BaseException as error:  # also a signal's
            error.run = folder  # type: ignore[attr-defined]
            raise
