"""One run while it trains: epochs, rows of metrics, the best weights, the state to resume from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import checkpoint, host, metrics, ops, optim, registry, sampling
from zoo.console import Progress, say
from zoo.files import publish_text
from zoo.recipe import Recipe
from zoo.spec import DataError, DataSet, DisagreeError, DiskError, DivergedError, FileError, ModelSpec
from zoo.stop import Interrupted
from zoo.train import Batches, Step, Totals, predict, train_epoch

SAMPLER_STATE = ("p", "next_p", "seen")


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
    """What chooses the epoch to keep: the validation images, or the test images where the recipe says so."""
    test: Batches
    step: Step
    device: torch.device
    precision: str
    counts: np.ndarray
    frozen: optim.FreezeTable
    ema: optim.Ema | None = None
    weight: Tensor | None = None
    """Class weights (C,), which the loss has from ``loss.drw_epoch`` on."""
    sampler: sampling.Sampler | None = None
    lint: tuple[str, ...] = ()
    """What may surprise in the recipe, one line each."""
    epoch: int = 0
    skip: int = 0
    totals: Totals | None = None
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    proof: dict[str, str] = field(default_factory=dict)
    """Digest of each frozen tensor before training."""


def describe(parts: Trainer, allocator: str, command: str) -> None:
    """Say each choice in one line and keep it in env.json."""
    recipe, data = parts.recipe, parts.data
    params = sum(p.numel() for p in parts.model.parameters())
    kernel = ops.kernel() if registry.entry("losses", recipe.loss.name).get("fused") else "PyTorch"
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
        "lint": list(parts.lint),
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
    weights += f" after {recipe.loss.drw_epoch} epochs" if weights and recipe.loss.drw_epoch else ""
    say(f"loss     {recipe.loss.name}{weights} · {kernel}")
    if parts.sampler:
        bounds = f"easy from p_t {sampling.EASY}, hard below {sampling.HARD}"
        say(f"sampler  {recipe.sampler.name}, {len(parts.sampler.index):,} draws with replacement an epoch · {bounds}")
    if recipe.select_on == "test":
        say("warning  the epoch to keep is chosen on the test images: the test result will be too good, and is marked as such")
    say(
        f"run      {parts.device} · {env['threads']} threads · {parts.precision} · channels_last · memory: {allocator} · {parts.folder}"
    )
    for finding in parts.lint:
        say(f"warning  {finding}")


def say_frozen(parts: Trainer) -> None:
    """The freeze table, part by part, if anything is frozen."""
    table = parts.frozen
    if not table.names:
        return
    say(
        f"freeze   {table.selector}: {table.frozen:,} parameters frozen, {table.trained:,} trained, {table.held} BatchNorms held"
    )
    for name, frozen, trained, held, moving in table.rows:
        norms = f" · BatchNorms {held} held, {moving} moving" if held or moving else ""
        say(f"freeze     {name:16} {frozen:>12,} frozen {trained:>12,} trained{norms}")


def check_frozen(parts: Trainer, before: dict[str, str]) -> None:
    """DisagreeError naming the first frozen tensor whose values differ from those ``before`` training."""
    after = optim.frozen_digest(parts.model, before)
    if moved := [name for name, digest in before.items() if after[name] != digest]:
        raise DisagreeError(f"frozen tensors changed in training ({len(moved)}, {moved[0]} first); report this as a bug of zoo")


def epochs(parts: Trainer, stop: Callable[[], int]) -> None:
    recipe = parts.recipe
    parts.proof = parts.proof or optim.frozen_digest(parts.model, parts.frozen.names)
    if parts.epoch == 0 and parts.skip == 0:
        _save_state(parts)
    began = time.monotonic() - parts.seconds
    with Progress(recipe.epochs, len(parts.batches), len(parts.batches.index), recipe.select_on) as progress:
        while parts.epoch < recipe.epochs:
            started = time.monotonic()
            _one_epoch(parts, stop, progress)
            took = time.monotonic() - started
            parts.seconds = time.monotonic() - began
            _record(parts, took, progress, stop)
            if recipe.patience and parts.best_epoch and parts.epoch - parts.best_epoch >= recipe.patience:
                say(f"stop     no better validation accuracy for {recipe.patience} epochs (best: epoch {parts.best_epoch})")
                break


def _one_epoch(parts: Trainer, stop: Callable[[], int], progress: Progress) -> None:
    def watch(done: int, totals: Totals) -> None:
        progress.step(parts.epoch + 1, done, totals.row["loss"])
        if number := stop():
            parts.skip, parts.totals = done, totals
            _save_state(parts)
            raise Interrupted(number)

    _set_loss(parts)
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
        raise DiskError(
            f"out of GPU memory (batch_size {parts.recipe.batch_size}); lower it, e.g. --batch-size {parts.recipe.batch_size // 2}"
        ) from error


def _set_loss(parts: Trainer) -> None:
    """Put the loss into the state it has in this epoch: deferred re-weighting, and what it does by itself."""
    loss: Any = parts.loss
    start = parts.recipe.loss.drw_epoch
    if start and parts.weight is not None:
        loss.weight = parts.weight if parts.epoch >= start else None
        if parts.epoch == start and parts.skip == 0:
            say(f"loss     class weights act from epoch {start + 1} on")
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(parts.epoch)


def _end_epoch(parts: Trainer) -> dict[str, float]:
    """Let the loss and the sampler learn from the epoch; their numbers for its row."""
    loss: Any = parts.loss
    told = loss.end_epoch(parts.epoch) if hasattr(loss, "end_epoch") else {}
    return told | (parts.sampler.end_epoch() if parts.sampler else {})


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
    row |= _end_epoch(parts)
    rows = [row]
    shown = parts.ema.averaged(parts.model) if parts.ema else parts.model
    score = float(parts.epoch + 1)  # without a validation split the last epoch's weights are the ones kept
    if parts.val:
        result = metrics.evaluate(*predict(shown, parts.val, parts.precision))
        score = result.accuracy
        split = checkpoint.CHOOSING[parts.recipe.select_on]
        rows.append(
            {"epoch": parts.epoch + 1, "split": split, "loss": result.loss, "accuracy": result.accuracy, "macro": result.macro}
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
    from torch.utils.tensorboard import SummaryWriter

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
        "chosen_on": parts.recipe.select_on if parts.val else "last epoch",
        "chosen_accuracy": parts.best if parts.val else None,
        "frozen": parts.proof,
    }
    checkpoint.save_tensors(parts.folder / "weights.safetensors", model.state_dict(), meta)


def _save_state(parts: Trainer) -> None:
    tensors = {f"model.{name}": value for name, value in parts.model.state_dict().items()}
    packed, scalars = checkpoint.pack_optimizer(parts.step.optimizer)
    tensors |= {f"optim.{name}": value for name, value in packed.items()}
    if parts.ema:
        tensors |= {f"ema.{name}": value for name, value in parts.ema.state_dict().items()}
    # the class weights come from the recipe and the epoch
    tensors |= {f"loss.{name}": value for name, value in parts.loss.state_dict().items() if name != "weight"}
    if parts.sampler:
        tensors |= {f"sampler.{name}": torch.from_numpy(getattr(parts.sampler, name)) for name in SAMPLER_STATE}
    totals = parts.totals or Totals()
    meta = {
        "epoch": parts.epoch, "skip": parts.skip, "totals": [totals.loss, totals.correct, totals.seen], "best": parts.best,
        "best_epoch": parts.best_epoch, "seconds": parts.seconds, "optim": scalars, "model": parts.recipe.model,
        "classes": len(parts.data.classes), "data_digest": parts.data.digest, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "device": parts.device.type, "precision": parts.precision, "frozen": parts.proof,
        "scaler": parts.step.scaler.state_dict() if parts.step.scaler else None,
    }  # fmt: skip
    checkpoint.save_state(parts.folder, parts.epoch * len(parts.batches) + parts.skip, tensors, meta)


def restore(parts: Trainer) -> bool:
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
    load_into(parts.model, _part(tensors, "model"), parts.folder)
    checkpoint.unpack_optimizer(parts.step.optimizer, _part(tensors, "optim"), meta["optim"])
    if parts.ema:
        parts.ema.load_state_dict(_part(tensors, "ema"))
    parts.loss.load_state_dict(_part(tensors, "loss"), strict=False)  # not strict: "weight" is not in it
    if parts.sampler:
        for name, value in _part(tensors, "sampler").items():
            getattr(parts.sampler, name)[:] = value.numpy()
    if parts.step.scaler and meta["scaler"]:
        parts.step.scaler.load_state_dict(meta["scaler"])
    parts.epoch, parts.skip, parts.totals = meta["epoch"], meta["skip"], Totals(*meta["totals"])
    parts.proof = meta["frozen"]
    parts.best, parts.best_epoch, parts.seconds = meta["best"], meta["best_epoch"], meta["seconds"]
    done = parts.epoch >= parts.recipe.epochs and (parts.folder / "result.json").is_file()
    if not done:
        checkpoint.keep_rows(parts.folder, parts.epoch)
        say(f"resume   epoch {parts.epoch + 1}, step {parts.skip + 1} of {len(parts.batches)}")
    return not done


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def load_into(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise FileError(f"weights do not fit the model ({where}, {first[:90]}); use the run they are of") from error
