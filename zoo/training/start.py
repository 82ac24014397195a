"""A recipe becomes a finished run folder: check, build, fit, test, report."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import files, machine, metrics, model_files, report, run_folders, tensor_files
from zoo import recipe as recipes
from zoo.console import plain, print_line, print_lines
from zoo.errors import DiskError, FileError, UsageError
from zoo.files import publish, publish_text
from zoo.recipe import Recipe
from zoo.spec import DataSet, Given
from zoo.training import build, checkpoint, describe, processes, signals
from zoo.training.loop import DTYPES, autocast
from zoo.training.profile import Profile
from zoo.training.session import Session

RESUMABLE = ("epochs", "patience", "data.dir", "device", "compile", "save_every", "on_full")
"""Settings that may differ between the parts of one run."""

IDENTITY = ("model", "optim.name")
"""Settings without which a checkpoint cannot be read into the run."""

OnEpoch = Callable[[list[dict[str, Any]]], None]


def train_in(
    folder: Path | None, recipe: Recipe, *, resume: bool = False, force: bool = False, command: str = "",
    on_epoch: OnEpoch | None = None, given: Given, profile: bool = False,
) -> Path:  # fmt: skip
    """Train in a folder that this process has locked (None in all processes but the first); see :func:`zoo.training.train`."""
    recipe = run_folders.located(recipe)
    with processes.joined() as team, signals.handled() as stop, conditions(recipe, stop):
        folder = team.broadcast(lambda: folder)
        assert folder is not None
        place = build.place(recipe, team, files.read_facts(folder / "env.json") if resume else None)
        objects = describe.objects(given)
        old = _resumable(recipe, folder, objects) if resume else recipe
        _check_continued(recipe, given.data)
        stop.saved = resume
        with team.leader_first():
            session, findings = build.session(recipe, folder, place, team, given=given, resume=resume)
        if session.settings.deterministic:
            _check_deterministic(session)
        session.wrap()
        team.broadcast(lambda: _make_room(session, clear=force and not resume))
        if resume and _restored(session):
            return folder
        print_lines(build.resumed_schedule(old, recipe, session))
        team.broadcast(lambda: _write_recipe(session, recipe, objects))
        choices = describe.choices(recipe, session, place) | objects
        team.broadcast(lambda: describe.announce(session, choices, findings, command))
        began = time.monotonic()
        session.store_features()
        session.at.seconds += time.monotonic() - began
        with stop.after_the_step(), _measured(session) if profile and team.leads else contextlib.nullcontext():
            session.fit(stop, on_epoch if team.leads else None)
        logits, targets, header = session.tested()
        team.broadcast(lambda: _finish(session, recipe, logits, targets, header))
    return folder


@contextlib.contextmanager
def conditions(recipe: Recipe, stop: signals.Stop) -> Iterator[None]:
    """Context in which a recipe is trained; converts errors of torch.

    Raises:
        DiskError: not enough memory on the device or machine.
        UsageError: a model that torch cannot compile. Interrupted: its compilation failed because of a signal, which the compiler's
            processes receive too.
    """
    try:
        with machine.torch_defaults(), machine.deterministic(recipe.deterministic):
            yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"BatchNorm needs at least 2 images per step (batch_size {recipe.batch_size}); raise batch_size"
        ) from error
    except RuntimeError as error:
        if recipe.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            if stop.number:
                raise signals.Interrupted(stop.number, saved=stop.saved) from error
            why = str(error.__cause__ or error).strip().splitlines()[0]
            raise UsageError(f"torch.compile failed ({recipe.model}: {why}); omit --compile") from error
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise DiskError(
            f"out of memory (batch_size {recipe.batch_size}); lower it, e.g. --batch-size {max(1, recipe.batch_size // 2)}; all files on disk are complete"
        ) from error


@contextlib.contextmanager
def _measured(session: Session) -> Iterator[None]:
    """Write where the time of training goes, also if it is interrupted."""
    profile = Profile(session.step.device)
    session.step = replace(session.step, part=profile.part)
    try:
        yield
    finally:
        profile.write(session.folder)


def _check_continued(recipe: Recipe, data: DataSet | None) -> None:
    """UsageError for a run that is to be trained on with its own data, if that was an object in Python."""
    run = Path(recipe.weights)
    given = files.read_facts(run / "env.json").get("data_given") if data is None else None
    if given and recipes.read(run / "recipe.toml").data == recipe.data:
        raise UsageError(
            f"the run was trained on a DataSet given in Python ({run}, {given}); name the data: zoo train MODEL --weights RUN --data FOLDER"
        )


def _check_resumed(folder: Path, now: Mapping[str, str]) -> None:
    """UsageError unless the run is resumed with the objects that it was started with, which only their names tell."""
    facts = files.read_facts(folder / "env.json")
    for name in ("data", "loss") if facts else ():  # the recipe names the model
        was, given = facts.get(f"{name}_given", ""), now.get(f"{name}_given", "")
        if was != given:
            how = f"resume with {name}=..., the same object" if was else f"resume without {name}="
            raise UsageError(
                f"the {name} of the run was {was or 'not'} given in Python ({folder}, now {given or 'none'}); {how}, or train a new run"
            )


def _resumable(recipe: Recipe, folder: Path, objects: Mapping[str, str]) -> Recipe:
    """The recipe that the run was started with; UsageError if the new one, or an object, differs in what may not change."""
    _check_resumed(folder, objects)
    old = run_folders.located(recipes.read(folder / "recipe.toml"))
    changed = [line for line in recipes.differences(old, recipe) if line.partition(":")[0] not in RESUMABLE]
    if other := [line for line in changed if line.partition(":")[0] in IDENTITY]:
        raise FileError(
            f"checkpoint belongs to another run ({folder}, {'; '.join(other)}); resume with its settings, or train a new run"
        )
    if changed:
        raise UsageError(f"settings differ from the run's ({'; '.join(changed[:3])}); resume without them, or train a new run")
    return old


def _check_deterministic(session: Session) -> None:
    """Take one step with a copy of the model; UsageError naming the operation that has no deterministic implementation."""
    step = session.step
    try:
        model, loss = copy.deepcopy(session.model), copy.deepcopy(session.loss)
    except Exception:  # a loss of the user may hold what cannot be copied; the first step then names the operation
        return
    inputs = torch.zeros(2, *session.spec.input, device=step.device, dtype=DTYPES[step.precision])
    targets = torch.zeros(2, dtype=torch.int64, device=step.device)
    if step.mix is not None:
        targets = torch.nn.functional.one_hot(targets, len(session.data.classes)).float()
    try:
        with autocast(step.device, step.precision):
            logits = model(inputs)
        loss(logits.float(), targets).backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        name = str(error).split(" ")[0]
        raise UsageError(
            f"{name} has no deterministic implementation (deterministic = true, {step.device.type}); omit --deterministic"
        ) from error


def _make_room(session: Session, *, clear: bool) -> None:
    """Check the disk space, and empty the folder of a run that is replaced."""
    files.check_room(session.folder, checkpoint.room(session.model, session.step.optimizer, averaged=session.ema is not None))
    if clear:
        run_folders.clear(session.folder)


def _restored(session: Session) -> bool:
    """Load the state to resume from; returns whether the run is complete."""
    session.restore()
    if session.complete and run_folders.is_finished(session.folder):
        print_line(f"run      {session.folder} is complete after {session.at.epoch} epochs: nothing to do")
        return True
    left = f", step {session.at.skip} of {session.batches.steps} of the next" if session.at.skip else ""
    print_line(f"resume   epoch {session.at.epoch} of {session.settings.epochs} done{left}")
    return False


def _write_recipe(session: Session, recipe: Recipe, objects: Mapping[str, str]) -> None:
    """Store what a later resume needs besides the states."""
    folder = session.folder
    if (folder / "metrics.jsonl").is_file():
        checkpoint.keep_rows(folder, session.at.epoch)
    note = f"repeat with: zoo train {plain(str(folder / 'recipe.toml'))}"
    if objects:
        given = ", ".join(objects[key] for key in ("model_given", "data_given", "loss_given") if key in objects)
        note = f"trained from Python with objects that this recipe does not name: {plain(given)}"
    publish_text(folder / "recipe.toml", f"# {note}\n" + recipes.dump(recipe))
    model_files.keep(recipe.model, folder)
    if (manifest := session.data.manifest) is not None:
        publish(folder / "last" / "manifest.npy", lambda temporary: np.save(temporary, manifest))


def _finish(session: Session, recipe: Recipe, logits: Tensor, targets: Tensor, header: tensor_files.WeightsHeader) -> None:
    """Write the test result, the tables and pictures; ``result.json`` comes last, as it marks the run as finished."""
    folder, data = session.folder, session.data
    frozen = _frozen_facts(session, header.frozen)
    result = metrics.evaluate(logits, targets)
    counts = np.bincount(data.train.targets[session.batches.index], minlength=len(data.classes)).tolist()
    summary = result.summary(data.classes, counts)
    row = {"epoch": header.epoch, "split": "test"} | {
        key: summary[key] for key in summary if key not in ("shots", "worst_pairs")
    }
    checkpoint.keep_rows(folder, session.at.epoch)  # a run interrupted while drawing already has its test row
    checkpoint.append_rows(folder, [row])
    report.write_tables(folder, result, logits, targets, data.test.files, data.classes)
    chosen = {"chosen_on": header.chosen_on, "chosen_accuracy": header.chosen_accuracy}
    facts = chosen | {"seconds": round(session.at.seconds, 1)}
    if data.skipped:
        facts |= {"skipped": len(data.skipped)}
    story = row | facts | summary | {"frozen": frozen, "trained": run_folders.wanted(recipe)}
    report.figures(folder)
    report.summary(folder)
    report.page(folder)
    publish_text(folder / "result.json", json.dumps(story, indent=1) + "\n")


def _frozen_facts(session: Session, digests: dict[str, str]) -> dict[str, Any]:
    """Record of the frozen tensors, whose digests :meth:`Session.tested` has compared."""
    size = sum(parameter.numel() for name, parameter in session.model.named_parameters() if name in digests)
    if digests:
        print_line(f"frozen   verified: {len(digests)} frozen tensors ({size:,} parameters) unchanged")
    return {"tensors": len(digests), "parameters": size, "unchanged": True, "sha256": digests}
