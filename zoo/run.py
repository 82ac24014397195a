"""Where everything meets: a recipe becomes data, model, loss and optimizer, is trained, and leaves a run folder."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import checkpoint, host, metrics, ops, optim, registry, report, runs, sampling
from zoo import recipe as recipes
from zoo.console import Progress, say
from zoo.data import _augment
from zoo.files import publish, publish_text
from zoo.recipe import Recipe
from zoo.spec import BusyError, DataError, DataSet, DivergedError, FileError, ModelSpec, Split, UsageError
from zoo.train import DTYPES, Batches, Step, Totals, predict, train_epoch

RESUMABLE = ("epochs", "patience", "data.dir", "device")
"""Settings that may differ between the parts of one run."""


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved. ``code`` is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + (number if number == signal.SIGINT else signal.SIGTERM)


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

    def dataset(self) -> DataSet:
        """The data set of the run, split as it was; DataError if it isn't here."""
        return build_data(self.recipe, self.input[1])


def model_spec(name: str) -> ModelSpec:
    """The spec of a registered model, or of any timm model as ``timm/<name>``."""
    if name.startswith("timm/"):
        from zoo.models import timm_nets

        return timm_nets.timm_spec(name)
    return registry.find("models", name)


def create_model(name: str, classes: int | None = None, weights: str = "none") -> nn.Module:
    """Build a registered model, ``weights`` being ``none``, ``default`` or a file.

    Raises:
        UsageError: unknown name. FileError: weights that cannot be had or don't fit.
    """
    from zoo.weights import load_weights

    spec = model_spec(name)
    model = spec.build(classes or spec.classes)
    if weights != "none":
        for note in load_weights(model, weights, spec):
            say(f"weights {note}")
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
    _load_into(model, tensors, path)
    env = json.loads((path / "env.json").read_text(encoding="utf-8")) if (path / "env.json").is_file() else {}
    shape = tuple(meta["input"])
    mean, std = tuple(meta["mean"]), tuple(meta["std"])
    return Run(path, model.eval(), recipe, tuple(meta["classes"]), shape, mean, std, checkpoint.read_rows(path), env)  # type: ignore[arg-type]


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
    batches = _eval_batches(part, data, where, run.input[1], how)
    logits, targets = predict(run.model.to(where).to(memory_format=torch.channels_last), batches, how)
    run.model.to("cpu")
    return metrics.evaluate(logits, targets), logits, targets


def predict_files(run: Run, paths: Sequence[Path], *, top: int = 3) -> list[dict[str, Any]]:
    """For each image file ``{"file", "top": [(class, probability), ...]}``, or ``{"file", "error"}`` if it can't be read."""
    from zoo.data._image import read_image

    size = run.input[1]
    answers: list[dict[str, Any]] = []
    for path in paths:
        try:
            image = fit_image(read_image(path), size)
        except DataError as error:
            answers.append({"file": str(path), "error": str(error)})
            continue
        with torch.inference_mode():
            inputs = _augment.normalise(torch.from_numpy(image)[None], run.mean, run.std, torch.float32, size=size)
            shares = run.model(inputs).float().softmax(1)[0]
        best = shares.topk(min(top, len(run.classes)))
        answers.append(
            {
                "file": str(path),
                "top": [(run.classes[i], round(p, 6)) for p, i in zip(best.values.tolist(), best.indices.tolist())],
            }
        )
    return answers


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """An (H, W, 3) uint8 image with its shorter side resized to ``size`` (antialiased bilinear) and its centre cut out."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = size / min(height, width)
    picture = Image.fromarray(image).resize(
        (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BILINEAR
    )
    left, upper = (picture.width - size) // 2, (picture.height - size) // 2
    return np.array(picture.crop((left, upper, left + size, upper + size)))


@dataclass
class Trainer:
    """The parts of one run while it trains."""

    recipe: Recipe
    folder: Path
    data: DataSet
    spec: ModelSpec
    model: nn.Module
    loss: nn.Module
    batches: Batches
    val: Batches | None
    test: Batches
    step: Step
    device: torch.device
    precision: str
    counts: np.ndarray
    ema: optim.Ema | None = None
    epoch: int = 0
    skip: int = 0
    totals: Totals | None = None
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0


def train(recipe: Recipe, *, out: Path | None = None, resume: bool = False, force: bool = False, command: str = "") -> Path:
    """Train what the recipe says and return the run folder.

    ``resume`` goes on with the state in ``out``; ``force`` replaces a run that is there.

    Raises:
        UsageError, DataError, FileError, DivergedError, DiskError, BusyError: see their exit codes; Interrupted after a
        signal, with the state saved.
    """
    where = host.device(recipe.device)
    how = host.precision(recipe.precision, where)
    allocator = host.keep_memory()
    torch.set_num_threads(host.cores())
    folder = _folder(recipe, out, resume=resume, force=force)
    if resume:
        recipe = _resumed(recipe, folder)
    fresh = not folder.exists()
    parts = _build(recipe, folder, where, how)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    with checkpoint.locked(folder):
        if force and not fresh:
            _clear(folder)
        if resume and not _restore(parts):
            say(f"run      {folder} is complete: nothing to do")
            return folder
        publish_text(folder / "recipe.toml", f"# repeat with: zoo train {folder / 'recipe.toml'}\n" + recipes.dump(recipe))
        _describe(parts, allocator, command)
        with _signals() as stop:
            _epochs(parts, stop)
        _finish(parts)
    return folder


def _folder(recipe: Recipe, out: Path | None, *, resume: bool, force: bool) -> Path:
    folder = out or runs.root() / runs.new_name(recipe)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output is a file ({folder.absolute()}); choose another --out")
    if resume:
        if not (folder / "recipe.toml").is_file():
            raise FileError(f"no run to resume ({folder.absolute()}); name its folder with --out")
    elif folder.is_dir() and any(folder.iterdir()) and not force:
        raise BusyError(
            f"output folder is not empty ({folder}); use --resume to go on, --force to replace it, or another --out"
        )
    return folder


def _resumed(recipe: Recipe, folder: Path) -> Recipe:
    old = recipes.read(folder / "recipe.toml")
    changed = [line for line in recipes.differences(old, recipe) if line.partition(":")[0] not in RESUMABLE]
    if changed:
        raise UsageError(f"settings differ from the run's ({'; '.join(changed[:3])}); resume without them, or train a new run")
    return recipe


def _unwritable(folder: Path, error: OSError) -> Exception:
    from zoo.spec import DiskError

    return DiskError(f"cannot write ({folder.absolute()}, {error.strerror}); choose another --out")


def _clear(folder: Path) -> None:
    """Empty a run folder that --force replaces; only what zoo writes is removed."""
    for name in (
        "weights.safetensors",
        "metrics.jsonl",
        "model.onnx",
        "bench.csv",
        "result.json",
        "predictions.csv",
        "env.json",
    ):
        (folder / name).unlink(missing_ok=True)
    for name in ("last", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _build(recipe: Recipe, folder: Path, where: torch.device, how: str) -> Trainer:
    spec = model_spec(recipe.model)
    registry.entry("losses", recipe.loss.name)
    data = build_data(recipe, spec.input[1])
    for note in data.notes:
        say(f"data     {note}")
    index = sampling.long_tail(data.train.targets, recipe.data.imbalance, recipe.seed)
    counts = sampling.class_counts(data.train.targets[index], len(data.classes))
    if not counts.all():
        empty = [data.classes[i] for i in np.flatnonzero(counts == 0)]
        raise DataError(
            f"{len(empty)} classes have no training image ({data.name}, {', '.join(empty[:3])}); lower the imbalance or remove them"
        )
    torch.manual_seed(recipe.seed)
    model = create_model(recipe.model, len(data.classes), recipe.weights).to(where).to(memory_format=torch.channels_last)
    dtype = DTYPES[how]
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
    )
    val = _eval_batches(data.val, data, where, spec.input[1], how) if len(data.val) else None
    test = _eval_batches(data.test, data, where, spec.input[1], how)
    ema = optim.Ema(model, recipe.ema) if recipe.ema else None
    step = _step(recipe, model, len(batches), where, how, len(data.classes), ema)
    loss = _loss(recipe, counts).to(where)
    return Trainer(recipe, folder, data, spec, model, loss, batches, val, test, step, where, how, counts, ema)


def _eval_batches(part: Split, data: DataSet, where: torch.device, size: int, how: str) -> Batches:
    return Batches(part, np.arange(len(part)), 256, where, data.mean, data.std, size, DTYPES[how])


def _loss(recipe: Recipe, counts: np.ndarray) -> nn.Module:
    spec = registry.find("losses", recipe.loss.name)
    kind = recipe.loss.class_weights
    weights = None
    if kind == "effective":
        weights = sampling.effective_weights(counts, recipe.loss.beta)
    elif kind != "none":
        weights = sampling.inverse_weights(counts, 0.5 if kind == "sqrt_inverse" else 1.0)
    tensor = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    return spec.build(weight=tensor, **{key: getattr(recipe.loss, key) for key in spec.options})


def _step(
    recipe: Recipe, model: nn.Module, steps: int, where: torch.device, how: str, classes: int, ema: optim.Ema | None
) -> Step:
    o, s = recipe.optim, recipe.schedule
    optimizer = optim.make(
        model, name=o.name, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov and o.momentum > 0, weight_decay=o.weight_decay
    )
    rate = partial(
        optim.lr_at, steps_per_epoch=steps, epochs=recipe.epochs, lr=o.lr, schedule=s.name,
        warmup=s.warmup, steps=s.steps, step_size=s.step_size, lr_gamma=s.lr_gamma,
    )  # fmt: skip
    mix = None
    if recipe.mixup or recipe.cutmix:
        if recipe.loss.name != "cross_entropy":
            raise UsageError(
                f"mixup and cutmix need soft targets, which loss {recipe.loss.name!r} has not; use loss=cross_entropy"
            )

        def mix(inputs: Tensor, targets: Tensor, draws: np.ndarray) -> tuple[Tensor, Tensor]:
            return _augment.mix(
                inputs, targets, classes, torch.from_numpy(draws).to(where), mixup=recipe.mixup, cutmix=recipe.cutmix
            )

    scaler = torch.amp.GradScaler("cuda") if how == "fp16" else None
    return Step(optimizer, rate, where, how, o.clip, recipe.seed, ema.update if ema else None, mix, scaler)


def _describe(parts: Trainer, allocator: str, command: str) -> None:
    """Say each choice in one line and keep it in env.json."""
    recipe, data = parts.recipe, parts.data
    params = sum(p.numel() for p in parts.model.parameters())
    kernel = ops.kernel() if recipe.loss.name != "cross_entropy" else "PyTorch"
    env = host.facts(parts.device) | {
        "precision": parts.precision,
        "layout": "channels_last",
        "allocator": allocator,
        "kernel": kernel,
        "data": data.name,
        "data_digest": data.digest,
        "data_train": int(parts.counts.sum()),
        "data_val": len(data.val),
        "data_test": len(data.test),
        "counts": parts.counts.tolist(),
        "model": recipe.model,
        "parameters": params,
        "command": command,
    }
    publish_text(parts.folder / "env.json", json.dumps(env, indent=1) + "\n")
    tail = f" · long tail {recipe.data.imbalance} ({', '.join(f'{n:,}' for n in parts.counts[:10])}{' ...' if len(parts.counts) > 10 else ''})"
    imbalance = tail if recipe.data.imbalance != "none" else ""
    say(
        f"data     {data.name} · {parts.counts.sum():,} train · {len(data.val):,} val · {len(data.test):,} test · "
        f"{len(data.classes)} classes{imbalance}"
    )
    macs = f" · {parts.spec.macs / 1e6:,.3g} MMAC at {'x'.join(map(str, parts.spec.input))}" if parts.spec.macs else ""
    say(f"model    {recipe.model} · {params:,} parameters{macs}")
    weights = f" · class weights {recipe.loss.class_weights}" if recipe.loss.class_weights != "none" else ""
    say(f"loss     {recipe.loss.name}{weights} · {kernel}")
    say(
        f"run      {parts.device} · {env['threads']} threads · {parts.precision} · channels_last · memory: {allocator} · {parts.folder}"
    )


def _epochs(parts: Trainer, stop: Callable[[], int]) -> None:
    recipe = parts.recipe
    if parts.epoch == 0 and parts.skip == 0:
        _save_state(parts)
    began = time.monotonic() - parts.seconds
    with Progress(recipe.epochs, len(parts.batches), _epoch_images(parts)) as progress:
        while parts.epoch < recipe.epochs:
            started = time.monotonic()
            _one_epoch(parts, stop, progress)
            took = time.monotonic() - started
            parts.seconds = time.monotonic() - began
            _record(parts, took, progress, stop)
            if recipe.patience and parts.best_epoch and parts.epoch - parts.best_epoch >= recipe.patience:
                say(f"stop     no better validation accuracy for {recipe.patience} epochs (best: epoch {parts.best_epoch})")
                break


def _epoch_images(parts: Trainer) -> int:
    return len(parts.batches.index)


def _one_epoch(parts: Trainer, stop: Callable[[], int], progress: Progress) -> None:
    def watch(done: int, totals: Totals) -> None:
        progress.step(parts.epoch + 1, done, totals.row["loss"])
        if number := stop():
            parts.skip, parts.totals = done, totals
            _save_state(parts)
            raise Interrupted(number)

    try:
        parts.totals = train_epoch(
            parts.model,
            parts.loss,
            parts.batches,
            parts.step,
            epoch=parts.epoch,
            skip=parts.skip,
            totals=parts.totals,
            watch=watch,
        )
    except DivergedError as error:
        files = [parts.data.train.files[i] for i in getattr(error, "position", [])]
        rate = parts.step.lr(parts.epoch * len(parts.batches))
        publish_text(
            parts.folder / "bad_batch.json",
            json.dumps({"epoch": parts.epoch + 1, "lr": rate, "message": str(error), "files": files}, indent=1),
        )
        raise
    except torch.cuda.OutOfMemoryError as error:
        from zoo.spec import DiskError

        raise DiskError(
            f"out of GPU memory (batch_size {parts.recipe.batch_size}); lower it, e.g. --batch-size {parts.recipe.batch_size // 2}"
        ) from error


def _record(parts: Trainer, took: float, progress: Progress, stop: Callable[[], int]) -> None:
    """After an epoch: evaluate on validation, write rows, keep the best weights, save the state."""
    assert parts.totals is not None
    rate = parts.step.lr(parts.epoch * len(parts.batches))
    speed = parts.totals.seen / took
    row = {
        "epoch": parts.epoch + 1,
        "split": "train",
        **parts.totals.row,
        "lr": rate,
        "images_per_s": round(speed, 1),
        "seconds": round(took, 3),
    }
    rows = [row]
    shown = parts.ema.averaged(parts.model) if parts.ema else parts.model
    score = float(parts.epoch + 1)  # without a validation split the last epoch's weights are the ones kept
    if parts.val:
        result = metrics.evaluate(*predict(shown, parts.val, parts.precision))
        score = result.accuracy
        rows.append(
            {"epoch": parts.epoch + 1, "split": "val", "loss": result.loss, "accuracy": result.accuracy, "macro": result.macro}
        )
    for each in rows:
        checkpoint.append_row(parts.folder, each)
    _tensorboard(parts.folder, rows)
    progress.epoch(parts.epoch + 1, row, rows[-1] if parts.val else None)
    parts.epoch, parts.skip, parts.totals = parts.epoch + 1, 0, None
    if score > parts.best:
        parts.best, parts.best_epoch = score, parts.epoch
        _save_weights(parts, shown)
    _save_state(parts)
    if number := stop():
        raise Interrupted(number)


def _tensorboard(folder: Path, rows: list[dict[str, Any]]) -> None:
    from torch.utils.tensorboard import SummaryWriter  # type: ignore[attr-defined]

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for row in rows:
            for key in ("loss", "accuracy", "lr", "images_per_s"):
                if key in row:
                    writer.add_scalar(f"{row['split']}/{key}", row[key], row["epoch"])


def _save_weights(parts: Trainer, model: nn.Module) -> None:
    meta = {
        "model": parts.recipe.model,
        "classes": parts.data.classes,
        "input": parts.spec.input,
        "mean": parts.data.mean,
        "std": parts.data.std,
        "epoch": parts.epoch,
        "val_accuracy": parts.best if parts.val else None,
    }
    checkpoint.save_tensors(parts.folder / "weights.safetensors", model.state_dict(), meta)


def _save_state(parts: Trainer) -> None:
    tensors = {f"model.{name}": value for name, value in parts.model.state_dict().items()}
    packed, scalars = checkpoint.pack_optimizer(parts.step.optimizer)
    tensors |= {f"optim.{name}": value for name, value in packed.items()}
    if parts.ema:
        tensors |= {f"ema.{name}": value for name, value in parts.ema.state_dict().items()}
    totals = parts.totals or Totals()
    meta = {
        "epoch": parts.epoch, "skip": parts.skip, "totals": [totals.loss, totals.correct, totals.seen], "best": parts.best,
        "best_epoch": parts.best_epoch, "seconds": parts.seconds, "optim": scalars, "model": parts.recipe.model,
        "classes": len(parts.data.classes), "data_digest": parts.data.digest, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "device": parts.device.type, "precision": parts.precision,
        "scaler": parts.step.scaler.state_dict() if parts.step.scaler else None,
    }  # fmt: skip
    checkpoint.save_state(parts.folder, parts.epoch * len(parts.batches) + parts.skip, tensors, meta)


def _restore(parts: Trainer) -> bool:
    """Put the newest good state back; False if the run is already complete."""
    tensors, meta, warnings = checkpoint.load_state(parts.folder)
    for warning in warnings:
        say(f"warning  {warning}")
    mine = {"model": parts.recipe.model, "classes": len(parts.data.classes)}
    if wrong := [f"{key}: checkpoint {meta[key]}, run {value}" for key, value in mine.items() if meta[key] != value]:
        raise FileError(f"checkpoint does not fit ({'; '.join(wrong)}); resume the run it is of")
    if meta["data_digest"] != parts.data.digest:
        raise DataError(
            f"data changed since the run began ({parts.data.name}, digest {parts.data.digest[:12]}); restore it or train a new run"
        )
    here = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": parts.device.type,
        "precision": parts.precision,
    }
    if moved := [f"{key} {meta[key]} -> {value}" for key, value in here.items() if meta[key] != value]:
        say(f"resume   not bit-identical: {', '.join(moved)}")
    _load_into(parts.model, _part(tensors, "model"), parts.folder)
    checkpoint.unpack_optimizer(parts.step.optimizer, _part(tensors, "optim"), meta["optim"])
    if parts.ema:
        parts.ema.load_state_dict(_part(tensors, "ema"))
    if parts.step.scaler and meta["scaler"]:
        parts.step.scaler.load_state_dict(meta["scaler"])
    parts.epoch, parts.skip, parts.totals = meta["epoch"], meta["skip"], Totals(*meta["totals"])
    parts.best, parts.best_epoch, parts.seconds = meta["best"], meta["best_epoch"], meta["seconds"]
    done = parts.epoch >= parts.recipe.epochs and (parts.folder / "result.json").is_file()
    if not done:
        checkpoint.keep_rows(parts.folder, parts.epoch)
        say(f"resume   epoch {parts.epoch + 1}, step {parts.skip + 1} of {len(parts.batches)}")
    return not done


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _load_into(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise FileError(f"weights do not fit the model ({where}, {first[:90]}); use the run they are of") from error


def _finish(parts: Trainer) -> None:
    """Test the kept weights once, write the tables and pictures."""
    tensors, meta = checkpoint.load_tensors(parts.folder / "weights.safetensors")
    _load_into(parts.model, tensors, parts.folder)
    logits, targets = predict(parts.model, parts.test, parts.precision)
    result = metrics.evaluate(logits, targets)
    row = {
        "epoch": meta["epoch"], "split": "test", "loss": result.loss, "accuracy": result.accuracy, "n": result.n,
        "low": result.low, "high": result.high, "macro": result.macro, "ece": result.ece,
    }  # fmt: skip
    checkpoint.append_row(parts.folder, row)
    write_tables(parts.folder, result, logits, targets, parts.data.test.files, parts.data.classes)
    publish_text(parts.folder / "result.json", json.dumps(row | {"seconds": round(parts.seconds, 1)}, indent=1) + "\n")
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


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Yield a function that gives the number of the signal that asked to stop, or 0; a second Ctrl-C stops at once."""
    seen: list[int] = []

    def remember(number: int, frame: object) -> None:
        if seen and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(number)
        print(f"\n{signal.Signals(number).name}: saving after this step", file=sys.stderr, flush=True)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    try:
        old = {number: signal.signal(number, remember) for number in wanted}
    except ValueError:  # not the main thread: signals stay with whoever has them
        old = {}
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
