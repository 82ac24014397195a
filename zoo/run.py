"""Where everything meets: a recipe becomes data, model, loss and optimizer, is trained, and leaves a run folder."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import checkpoint, files, host, lint, metrics, objective, optim, parallel, registry, report, runs, sampling
from zoo import recipe as recipes
from zoo.console import say
from zoo.data import _augment
from zoo.data._folders import square
from zoo.data._image import read_image
from zoo.data.folder import stored_side
from zoo.files import publish, publish_text
from zoo.recipe import Recipe
from zoo.spec import BusyError, DataError, DataSet, DiskError, FileError, ModelSpec, Split, UsageError
from zoo.stop import signals
from zoo.train import DTYPES, Batches, Step, autocast, predict
from zoo.trainer import Trainer, check_frozen, describe, epochs, load_into, predicted, restore, say_frozen
from zoo.weights import load_weights, statistics

RESUMABLE = ("epochs", "patience", "data.dir", "device", "save_every", "on_full")
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
        return stored_side(self.input[1]) if self.recipe.data.name in ("folder", "caltech101") else self.input[1]

    def dataset(self) -> DataSet:
        """The data set of the run, split as it was; DataError if it isn't here."""
        return build_data(self.recipe, self.input[1])


def model_spec(name: str) -> ModelSpec:
    """The spec of a registered model, or of any timm model as ``timm/<name>``."""
    if name.startswith("timm/"):
        from zoo.models import timm_nets

        return timm_nets.timm_spec(name)
    return registry.find("models", name)


def create_model(name: str, classes: int | None = None, weights: str = "none", freeze: str = "none") -> nn.Module:
    """Build a registered model, ``weights`` being ``none``, ``default``, a file or a run, ``freeze`` a role (:func:`zoo.optim.freeze`).

    Raises:
        UsageError: unknown name. FileError: weights that cannot be had or don't fit.
    """
    spec = model_spec(name)
    model, fresh = _weighted(name, spec, classes or spec.classes, weights)
    optim.freeze(model, freeze, spec, fresh=fresh)
    return model


def build_data(recipe: Recipe, size: int) -> DataSet:
    """Read the data set of a recipe at ``size`` pixels and carve its validation split."""
    spec = registry.find("data", recipe.data.name)
    folder = Path(recipe.data.dir).expanduser() if recipe.data.dir else None
    return spec.build(folder, size=size, val=recipe.data.val, seed=recipe.seed)


def load(name: str | Path | None = None) -> Run:
    """A run by folder, name, unique prefix, or the latest, with its best weights.

    Raises:
        FileError: no such run, or weights that are missing or damaged.
    """
    path = runs.find(name)
    recipe = recipes.read(path / "recipe.toml")
    tensors, meta = checkpoint.load_tensors(path / "weights.safetensors")
    if meta["model"] != recipe.model:
        raise FileError(f"weights are of {meta['model']}, the recipe says {recipe.model} ({path}); they are of two runs")
    model = model_spec(recipe.model).build(len(meta["classes"]))
    load_into(model, tensors, path)
    env = json.loads((path / "env.json").read_text(encoding="utf-8")) if (path / "env.json").is_file() else {}
    shape = tuple(meta["input"])
    mean, std = tuple(meta["mean"]), tuple(meta["std"])
    return Run(path, model.eval(), recipe, tuple(meta["classes"]), shape, mean, std, checkpoint.read_rows(path), env)


def evaluate(run: Run, split: str = "test", data: DataSet | None = None) -> tuple[metrics.Result, Tensor, Tensor]:
    """Result, logits (N, C) and targets (N,) of a run's best weights on one split of its data."""
    data = data or run.dataset()
    if data.classes != run.classes:
        raise FileError(
            f"classes differ (model {len(run.classes)}, data {len(data.classes)}); use the data the run was trained on"
        )
    part: Split = getattr(data, split)
    if not len(part):
        raise DataError(f"the {split} split is empty ({data.name}, data.val {run.recipe.data.val}); choose another --split")
    where = host.device(run.recipe.device if run.recipe.device != "cuda" else "auto")
    how = host.precision(run.recipe.precision, where)
    batches = _eval_batches(part, replace(data, mean=run.mean, std=run.std), where, run.input[1], how)
    logits, targets = predict(run.model.to(where).to(memory_format=torch.channels_last), batches, how)
    run.model.to("cpu")
    return metrics.evaluate(logits, targets), logits, targets


def predict_files(run: Run, paths: Sequence[Path], *, top: int = 3) -> list[dict[str, Any]]:
    """For each image file ``{"file", "top": [(class, probability), ...]}``, or ``{"file", "error"}`` if it can't be read."""
    size = run.input[1]
    answers: list[dict[str, Any]] = []
    for path in paths:
        try:
            image = square(read_image(path), run.stored)
        except DataError as error:
            answers.append({"file": str(path), "error": str(error)})
            continue
        with torch.inference_mode():
            inputs = _augment.normalise(torch.tensor(image)[None], run.mean, run.std, torch.float32, size=size)
            shares = run.model(inputs).float().softmax(1)[0]
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
    with parallel.joined() as team, signals() as stop, host.deterministic(recipe.deterministic), _telling_memory(recipe):
        where = team.device(host.device(recipe.device))
        how = host.precision(recipe.precision, where)
        allocator = host.keep_memory()
        torch.set_num_threads(max(1, host.cores() // team.local_size))
        folder = team.told(lambda: _folder(recipe, out, resume=resume, force=force))
        if resume:
            _check_same(recipe, folder)
            stop.saved = True
        with team.leader_first():
            parts = _build(recipe, folder, where, how, team)
        if recipe.deterministic:
            _check_deterministic(parts)
        parts.wrapped = team.wrapped(parts.model) if team.size > 1 else None
        with contextlib.ExitStack() as held:
            team.told(lambda: _open(parts, held, force=force and not resume))
            if resume and not restore(parts):
                say(f"run      {folder} is complete: nothing to do")
                return folder
            team.told(lambda: _begin(parts, allocator, command))
            with stop.after_the_step():
                epochs(parts, stop)
            logits, targets = _tested(parts)
            team.told(lambda: _finish(parts, logits, targets))
    return folder


@contextlib.contextmanager
def _telling_memory(recipe: Recipe) -> Iterator[None]:
    """DiskError for a device, or a machine, that has not enough memory."""
    try:
        yield
    except RuntimeError as error:
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
    with files.telling_disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(runs.locked(folder))
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
    say_frozen(parts)


def _folder(recipe: Recipe, out: Path | None, *, resume: bool, force: bool) -> Path:
    folder = out or runs.root() / runs.new_name(recipe)
    if folder.exists() and not folder.is_dir():
        raise DiskError(f"output is a file ({folder.absolute()}); choose another --out")
    runs.check_free(folder)
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
        "model.onnx",
        "bench.csv",
        "result.json",
        "predictions.csv",
        "bad_batch.json",
        "env.json",
    ):
        (folder / name).unlink(missing_ok=True)
    for name in ("last", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _build(recipe: Recipe, folder: Path, where: torch.device, how: str, team: parallel.Team) -> Trainer:
    spec = model_spec(recipe.model)
    objective.check(recipe)
    data = build_data(recipe, spec.input[1])
    for note in data.notes:
        say(f"data     {note}")
    _check_labels(data)
    index = sampling.long_tail(data.train.targets, recipe.data.imbalance, recipe.seed)
    counts = sampling.class_counts(data.train.targets[index], len(data.classes))
    _check_classes(data, counts, allow_empty=recipe.allow_empty_class)
    data = _normalised(data, statistics(recipe.weights, spec))
    torch.manual_seed(recipe.seed)
    model, frozen, random = _frozen(recipe, spec, len(data.classes))
    model = model.to(where).to(memory_format=torch.channels_last)
    dtype = DTYPES[how]
    sampler = objective.build_sampler(recipe, data.train.targets, index)
    batches = Batches(
        data.train,
        index,
        recipe.batch_size,
        where,
        data.mean,
        data.std,
        spec.input[1],
        dtype,
        recipe.seed,
        tuple(recipe.data.augment),
        sampler.order if sampler else None,
        team.share if team.size > 1 and not (recipe.mixup or recipe.cutmix) else None,
    )
    choosing = data.test if recipe.select_on == "test" else data.val
    val = _eval_batches(choosing, data, where, spec.input[1], how) if len(choosing) else None
    test = _eval_batches(data.test, data, where, spec.input[1], how)
    ema = optim.Ema(model, recipe.ema) if recipe.ema else None
    step = replace(_step(recipe, model, len(batches), where, how, len(data.classes), ema, sampler), team=team)
    loss, weight = objective.build_loss(recipe, counts)
    weight = weight.to(where) if weight is not None else None
    told = tuple(lint.check(recipe, counts, random))
    return Trainer(
        recipe, folder, data, spec, model, loss.to(where), batches, val, test, step, where, how, counts, frozen, ema, weight,
        sampler, told, team,
    )  # fmt: skip


def _check_labels(data: DataSet) -> None:
    for part in (data.train, data.val, data.test):
        if len(wrong := np.flatnonzero((part.targets < 0) | (part.targets >= len(data.classes)))):
            file, label = part.files[wrong[0]], part.targets[wrong[0]]
            raise DataError(f"label out of range ({file}, label {label}, {len(data.classes)} classes); correct the data set")


def _check_classes(data: DataSet, counts: np.ndarray, *, allow_empty: bool) -> None:
    empty = [data.classes[i] for i in np.flatnonzero(counts == 0)]
    if empty and not allow_empty:
        raise DataError(
            f"{len(empty)} classes have no training image ({data.name}, {', '.join(empty[:3])}); "
            "lower the imbalance, remove them, or go on with --allow-empty-class"
        )
    if empty:
        say(f"warning  {len(empty)} classes have no training image and won't be learned ({', '.join(empty[:3])})")


def _check_deterministic(parts: Trainer) -> None:
    """Take one step with a copy of the model; UsageError naming the operation that has no deterministic way."""
    model, loss = copy.deepcopy(parts.model), copy.deepcopy(parts.loss)
    inputs = torch.zeros(2, *parts.spec.input, device=parts.device, dtype=DTYPES[parts.precision])
    try:
        with autocast(parts.device, parts.precision):
            logits = model(inputs)
        loss(logits.float(), torch.zeros(2, dtype=torch.int64, device=parts.device)).backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        name = str(error).split(" ")[0]
        raise UsageError(
            f"{name} has no deterministic way (deterministic = true, {parts.device.type}); leave --deterministic out"
        ) from error


def _normalised(data: DataSet, statistics: tuple[Any, Any] | None) -> DataSet:
    """The data set, its images to be normalised as those were that the weights come from."""
    if statistics is None or statistics == (data.mean, data.std):
        return data
    say(f"data     normalised as the weights were trained: mean {statistics[0]}, std {statistics[1]}")
    return replace(data, mean=statistics[0], std=statistics[1])


def _frozen(recipe: Recipe, spec: ModelSpec, classes: int) -> tuple[nn.Module, optim.FreezeTable, list[str]]:
    """The model with its weights loaded and frozen as the recipe says, what was frozen, and what of that is random."""
    model, fresh = _weighted(recipe.model, spec, classes, recipe.weights)
    table = optim.freeze(model, recipe.freeze, spec, fresh=() if recipe.allow_random_frozen else fresh)
    return model, table, [name for name in table.names if name in set(fresh)]


def _weighted(name: str, spec: ModelSpec, classes: int, weights: str) -> tuple[nn.Module, tuple[str, ...]]:
    """A model and the names of its tensors that are random."""
    model = spec.build(classes)
    if weights == "none":
        return model, tuple(model.state_dict())
    notes = load_weights(model, weights, spec)
    for note in notes:
        say(f"weights  {note}")
    return model, notes.fresh


def _eval_batches(part: Split, data: DataSet, where: torch.device, size: int, how: str) -> Batches:
    return Batches(part, np.arange(len(part)), 256, where, data.mean, data.std, size, DTYPES[how])


def _step(
    recipe: Recipe, model: nn.Module, steps: int, where: torch.device, how: str, classes: int, ema: optim.Ema | None,
    sampler: sampling.Sampler | None,
) -> Step:  # fmt: skip
    o, s = recipe.optim, recipe.schedule
    scales = optim.lr_scales(model, model_spec(recipe.model), head=o.lr_head, layer_decay=o.layer_decay)
    optimizer = optim.make(
        model,
        name=o.name,
        lr=o.lr,
        momentum=o.momentum,
        nesterov=o.nesterov and o.momentum > 0,
        weight_decay=o.weight_decay,
        scales=scales,
    )
    rate = partial(
        optim.lr_at, steps_per_epoch=steps, epochs=recipe.epochs, lr=o.lr, schedule=s.name,
        warmup=s.warmup, steps=s.steps, step_size=s.step_size, lr_gamma=s.lr_gamma,
    )  # fmt: skip
    mix = None
    if recipe.mixup or recipe.cutmix:
        if not registry.find("losses", recipe.loss.name).soft:
            soft = ", ".join(name for name, fields in registry.table("losses").items() if fields.get("soft"))
            raise UsageError(
                f"mixup and cutmix need soft targets, which loss {recipe.loss.name!r} has not; losses with: {soft}"
            )

        def mix(inputs: Tensor, targets: Tensor, draws: np.ndarray) -> tuple[Tensor, Tensor]:
            return _augment.mix(
                inputs, targets, classes, torch.from_numpy(draws).to(where), mixup=recipe.mixup, cutmix=recipe.cutmix
            )

    scaler = torch.amp.GradScaler("cuda") if how == "fp16" else None
    see = sampler.see if sampler else None
    return Step(optimizer, rate, where, how, o.clip, recipe.seed, ema.update if ema else None, mix, scaler, see)


def _tested(parts: Trainer) -> tuple[Tensor, Tensor]:
    """Logits and targets of the test split by the kept weights, the one time that it is touched."""
    tensors, meta = checkpoint.load_tensors(parts.folder / "weights.safetensors")
    load_into(parts.model, tensors, parts.folder)
    check_frozen(parts, meta["frozen"])
    parts.best_epoch = meta["epoch"]
    return predicted(parts, parts.model, parts.test)


def _finish(parts: Trainer, logits: Tensor, targets: Tensor) -> None:
    """Write the test result, the tables and pictures."""
    result = metrics.evaluate(logits, targets)
    summary = result.summary(parts.data.classes, parts.counts.tolist())
    row = {"epoch": parts.best_epoch, "split": "test"} | {
        key: summary[key] for key in summary if key not in ("shots", "worst_pairs")
    }
    checkpoint.keep_rows(parts.folder, parts.epoch)  # a run that was stopped while drawing has its test row already
    checkpoint.append_rows(parts.folder, [row])
    write_tables(parts.folder, result, logits, targets, parts.data.test.files, parts.data.classes)
    _, meta = checkpoint.load_tensors(parts.folder / "weights.safetensors")
    chosen = {key: meta[key] for key in ("chosen_on", "chosen_accuracy")}
    story = row | chosen | {"seconds": round(parts.seconds, 1)} | summary
    publish_text(parts.folder / "result.json", json.dumps(story, indent=1) + "\n")
    report.figures(parts.folder)
    report.summary(parts.folder)
    report.page(parts.folder)


def write_tables(
    folder: Path, result: metrics.Result, logits: Tensor, targets: Tensor, files: Any, classes: tuple[str, ...]
) -> None:
    """``per_class.csv``, ``confusion.csv`` and ``predictions.csv`` of one evaluation."""
    _csv(
        folder / "per_class.csv",
        ["class", "n", "correct", "accuracy", "low", "high"],
        ([name, *row] for name, row in zip(classes, result.per_class)),
    )
    _csv(
        folder / "confusion.csv",
        ["true\\pred", *classes],
        ([name, *map(int, row)] for name, row in zip(classes, result.confusion)),
    )
    probability, predicted = logits.softmax(1).max(1)
    rows = zip(files, targets.tolist(), predicted.tolist(), probability.tolist())
    _csv(
        folder / "predictions.csv",
        ["file", "target", "predicted", "probability"],
        ([f, classes[t], classes[p], round(q, 6)] for f, t, p, q in rows),
    )


def _csv(path: Path, header: list[str], rows: Any) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    publish(path, write)
