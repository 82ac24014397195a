"""Where everything meets: a recipe becomes data, model, loss and optimizer, is trained, and leaves a run folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import csv_files, files, machine, metrics, registry, report, run_folders, tensor_files
from zoo import recipe as recipes
from zoo.console import print_line
from zoo.data import _augment
from zoo.data._folders import square, stored_side
from zoo.data._image import read_image
from zoo.errors import BusyError, DataError, DiskError, FileError, UsageError
from zoo.files import publish, publish_text
from zoo.recipe import Recipe
from zoo.spec import DataSet, Split
from zoo.training import checkpoint, features, freezing, processes
from zoo.training.build import build, build_data, check_deterministic, eval_batches, model_spec, weighted
from zoo.training.loop import predict
from zoo.training.session import Trainer, describe, epochs, predicted
from zoo.training.signals import signals
from zoo.training.state import restore

RESUMABLE = ("epochs", "patience", "data.dir", "device", "compile", "save_every", "on_full")
"""Settings that may differ between the parts of one run."""


@dataclass(frozen=True)
class Run:
    """A finished or stopped run, read back: ``model`` is in eval mode, float32, on the CPU."""

    path: Path
    model: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    input: tuple[int, int, int]
    """Channels, height and width of the model's input."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    metrics: list[dict[str, Any]]
    env: dict[str, Any]

    @property
    def stored(self) -> int:
        """Side in pixels of the images as the run's data set keeps them: the model's input, or more, cut at the centre."""
        size = self.input[1]
        return stored_side(size) if registry.entry("data", self.recipe.data.name).get("margin") else size

    def dataset(self) -> DataSet:
        """The data set of the run, split as it was; DataError if it isn't here."""
        return build_data(self.recipe, self.input[1])


def create_model(name: str, classes: int | None = None, weights: str = "none", freeze: str = "none") -> nn.Module:
    """Build a registered model, ``weights`` being ``none``, ``default``, a file or a run, ``freeze`` a role (:func:`zoo.training.freezing.freeze`).

    Raises:
        UsageError: unknown name. FileError: weights that cannot be had or don't fit.
    """
    spec = model_spec(name)
    model = spec.build(classes or spec.classes)
    fresh = weighted(model, spec, weights)
    freezing.freeze(model, freeze, spec, fresh=fresh)
    return model


def load(name: str | Path | None = None) -> Run:
    """A run by folder, name, unique prefix, or the latest, with its best weights.

    Raises:
        FileError: no such run, or weights that are missing or damaged.
    """
    path = run_folders.find(name)
    recipe = recipes.read(path / "recipe.toml")
    tensors, header = tensor_files.load_weights(path / "weights.safetensors")
    if header.model != recipe.model:
        raise FileError(f"weights are of {header.model}, the recipe says {recipe.model} ({path}); they are of two runs")
    model = model_spec(recipe.model).build(len(header.classes))
    tensor_files.load_into(model, tensors, path)
    env = files.read_facts(path / "env.json")
    rows = checkpoint.read_rows(path)
    return Run(path, model.eval(), recipe, header.classes, header.input, header.mean, header.std, rows, env)


def evaluate(run: Run, split: str = "test", data: DataSet | None = None) -> tuple[metrics.Result, Tensor, Tensor]:
    """Result, logits (N, C) and targets (N,) of a run's best weights on one split of its data."""
    data = data or run.dataset()
    check_classes(run, data)
    part: Split = getattr(data, split)
    if not len(part):
        raise DataError(f"the {split} split is empty ({data.name}, data.val {run.recipe.data.val}); choose another --split")
    device = machine.device(run.recipe.device if run.recipe.device != "cuda" else "auto")
    precision = machine.precision(run.recipe.precision, device)
    batches = eval_batches(part, replace(data, mean=run.mean, std=run.std), device, run.input[1], precision)
    logits, targets = predict(run.model.to(device).to(memory_format=torch.channels_last), batches, precision)
    run.model.to("cpu")
    return metrics.evaluate(logits, targets), logits, targets


def check_classes(run: Run, data: DataSet) -> None:
    """FileError with the first difference unless a data set has the classes of a run, under whatever locale either was listed."""
    mine, theirs = (tuple(map(files.as_utf8, names)) for names in (run.classes, data.classes))
    for number, (own, other) in enumerate(itertools.zip_longest(mine, theirs, fillvalue="none")):
        if own != other:
            raise FileError(
                f"classes differ (model {len(mine)}, data {len(theirs)}; number {number}: model {own!r}, data {other!r}); "
                "use the data the run was trained on"
            )


def read_input(run: Run, path: Path) -> tuple[np.ndarray, Tensor]:
    """An image file as the run's data set would keep it, (H, W, 3) uint8, and as its model takes it, (3, h, w) normalised.

    Raises:
        DataError: a file that is no image.
    """
    image = square(read_image(path), run.stored)
    return image, _augment.normalise(torch.tensor(image)[None], run.mean, run.std, torch.float32, size=run.input[1])[0]


def predict_files(run: Run, paths: Sequence[Path], *, top: int = 3) -> list[dict[str, Any]]:
    """For each image file ``{"file", "top": [(class, probability), ...]}``, or ``{"file", "error"}`` if it can't be read."""
    answers: list[dict[str, Any]] = []
    for path in paths:
        try:
            _, image = read_input(run, path)
        except DataError as error:
            answers.append({"file": str(path), "error": str(error)})
            continue
        with torch.inference_mode():
            shares = run.model(image[None]).float().softmax(1)[0]
        best = shares.topk(min(top, len(run.classes)))
        answers.append(
            {
                "file": str(path),
                "top": [(run.classes[i], round(p, 6)) for p, i in zip(best.values.tolist(), best.indices.tolist())],
            }
        )
    return answers


def train(recipe: Recipe, *, out: Path | None = None, resume: bool = False, force: bool = False, command: str = "") -> Path:
    """Train what the recipe says and return the run folder.

    ``resume`` goes on with the state in ``out``; ``force`` replaces a run that is there.

    Raises:
        UsageError, DataError, FileError, DivergedError, DiskError, BusyError: see their exit codes; Interrupted after a
        signal, with the state saved.
    """
    with processes.joined() as team, signals() as stop, machine.deterministic(recipe.deterministic), _telling(recipe):
        device = team.device(machine.device(recipe.device))
        precision = machine.precision(recipe.precision, device)
        allocator = machine.keep_memory()
        torch.set_num_threads(max(1, machine.cores() // team.local_size))
        folder = team.broadcast(lambda: _folder(recipe, out, resume=resume, force=force))
        if resume:
            _check_same(recipe, folder)
            stop.saved = True
        with team.leader_first():
            parts = build(recipe, folder, device, precision, team)
        if recipe.deterministic:
            check_deterministic(parts)
        features.wrap(parts)
        with contextlib.ExitStack() as held:
            team.broadcast(lambda: _open(parts, held, force=force and not resume))
            if resume and not restore(parts):
                print_line(f"run      {folder} is complete: nothing to do")
                return folder
            team.broadcast(lambda: _begin(parts, allocator, command))
            features.shorten(parts)
            with stop.after_the_step():
                epochs(parts, stop)
            logits, targets, proof = _tested(parts)
            team.broadcast(lambda: _finish(parts, logits, targets, proof))
    return folder


@contextlib.contextmanager
def _telling(recipe: Recipe) -> Iterator[None]:
    """DiskError for a device, or a machine, that has not enough memory; UsageError for a model that torch cannot compile."""
    try:
        yield
    except RuntimeError as error:
        if recipe.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            why = str(error.__cause__ or error).strip().splitlines()[0]
            raise UsageError(f"torch.compile failed ({recipe.model}: {why}); leave --compile out") from error
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        half = max(1, recipe.batch_size // 2)
        raise DiskError(
            f"out of memory (batch_size {recipe.batch_size}); lower it, e.g. --batch-size {half}; what is saved stays whole"
        ) from error


def _open(parts: Trainer, held: contextlib.ExitStack, *, force: bool) -> None:
    """Make the folder, or take the one that is there, and hold it until ``held`` ends."""
    folder = parts.folder
    files.check_room(folder, checkpoint.room(parts.model, parts.step.optimizer, averaged=parts.ema is not None))
    with files.as_disk_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(run_folders.locked(folder))
    if force:
        _clear(folder)


def _begin(parts: Trainer, allocator: str, command: str) -> None:
    """Write down what the run is and say it."""
    folder, recipe = parts.folder, parts.recipe
    if (folder / "metrics.jsonl").is_file():
        checkpoint.keep_rows(folder, parts.epoch)
    publish_text(folder / "recipe.toml", f"# repeat with: zoo train {folder / 'recipe.toml'}\n" + recipes.dump(recipe))
    if (manifest := parts.data.manifest) is not None:
        publish(folder / "last" / "manifest.npy", lambda temporary: np.save(temporary, manifest))
    describe(parts, allocator, command)
    features.tell(parts)


def _folder(recipe: Recipe, out: Path | None, *, resume: bool, force: bool) -> Path:
    folder = out or run_folders.root() / run_folders.new_name(recipe)
    if folder.exists() and not folder.is_dir():
        raise DiskError(f"output is a file ({folder.absolute()}); choose another --out")
    run_folders.check_free(folder)
    if resume:
        if not (folder / "recipe.toml").is_file():
            raise FileError(f"no run to resume ({folder.absolute()}); name its folder with --out")
    elif folder.is_dir() and any(folder.iterdir()) and not force:
        raise BusyError(
            f"output folder is not empty ({folder}); use --resume to go on, --force to replace it, or another --out"
        )
    return folder


def _check_same(recipe: Recipe, folder: Path) -> None:
    old = recipes.read(folder / "recipe.toml")
    changed = [line for line in recipes.differences(old, recipe) if line.partition(":")[0] not in RESUMABLE]
    if changed:
        raise UsageError(f"settings differ from the run's ({'; '.join(changed[:3])}); resume without them, or train a new run")


def _clear(folder: Path) -> None:
    """Empty a run folder that --force replaces; only what zoo writes is removed."""
    for name in (
        "weights.safetensors",
        "metrics.jsonl",
        "bench.csv",
        "result.json",
        "predictions.csv",
        "bad_batch.json",
        "env.json",
    ):
        (folder / name).unlink(missing_ok=True)
    suffixes = {".onnx", ".data"}
    for target in registry.formats().values():
        suffixes |= {target["suffix"], *target.get("beside", ())}
    for exported in folder.glob("model.*"):  # of the old weights, in any precision and format
        if exported.suffix in suffixes:
            exported.unlink()
    for name in ("last", "tensorboard"):
        if (folder / name).is_symlink():  # what it leads to is not the run's
            (folder / name).unlink()
        shutil.rmtree(folder / name, ignore_errors=True)


def _tested(parts: Trainer) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits and targets of the test split by the kept weights, the one time that it is touched, and the freeze proof."""
    tensors, header = tensor_files.load_weights(parts.folder / "weights.safetensors")
    tensor_files.load_into(parts.model, tensors, parts.folder)
    proof = features.proven(parts, header.frozen)
    parts.best_epoch = header.epoch
    return *predicted(parts, parts.model, parts.test), proof


def _finish(parts: Trainer, logits: Tensor, targets: Tensor, proof: dict[str, Any]) -> None:
    """Write the test result, the tables and pictures."""
    result = metrics.evaluate(logits, targets)
    summary = result.summary(parts.data.classes, parts.counts.tolist())
    row = {"epoch": parts.best_epoch, "split": "test"} | {
        key: summary[key] for key in summary if key not in ("shots", "worst_pairs")
    }
    checkpoint.keep_rows(parts.folder, parts.epoch)  # a run that was stopped while drawing has its test row already
    checkpoint.append_rows(parts.folder, [row])
    write_tables(parts.folder, result, logits, targets, parts.data.test.files, parts.data.classes)
    _, meta = tensor_files.load_tensors(parts.folder / "weights.safetensors")
    chosen = {key: meta[key] for key in ("chosen_on", "chosen_accuracy")}
    story = row | chosen | {"seconds": round(parts.seconds, 1)} | summary | {"frozen": proof}
    publish_text(parts.folder / "result.json", json.dumps(story, indent=1) + "\n")
    report.figures(parts.folder)
    report.summary(parts.folder)
    report.page(parts.folder)


def write_tables(
    folder: Path, result: metrics.Result, logits: Tensor, targets: Tensor, files: Any, classes: tuple[str, ...]
) -> None:
    """``per_class.csv``, ``confusion.csv`` and ``predictions.csv`` of one evaluation."""
    csv_files.write(
        folder / "per_class.csv",
        ["class", "n", "correct", "accuracy", "low", "high"],
        ([name, *row] for name, row in zip(classes, result.per_class)),
    )
    csv_files.write(
        folder / "confusion.csv",
        ["true\\pred", *classes],
        ([name, *map(int, row)] for name, row in zip(classes, result.confusion)),
    )
    probability, predicted = logits.softmax(1).max(1)
    rows = zip(files, targets.tolist(), predicted.tolist(), probability.tolist())
    csv_files.write(
        folder / "predictions.csv",
        ["file", "target", "predicted", "probability"],
        ([f, classes[t], classes[p], round(q, 6)] for f, t, p, q in rows),
    )
