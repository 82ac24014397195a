"""One run while it trains: epochs, rows of metrics, the best weights, the state to resume from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import machine, metrics, ops, registry, sampling, tensor_files
from zoo.console import Progress, first_ten, print_line
from zoo.errors import DiskError, DivergedError
from zoo.files import own_folder, publish_text
from zoo.recipe import Recipe
from zoo.spec import DataSet, ModelSpec
from zoo.training import checkpoint, features, freezing, optim, state
from zoo.training.batches import Batches
from zoo.training.loop import Step, Totals, predict, train_epoch
from zoo.training.processes import Team
from zoo.training.signals import Interrupted, Stop


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
    frozen: freezing.FreezeTable
    """What is frozen now."""
    ema: optim.Ema | None = None
    weight: Tensor | None = None
    """Class weights (C,), which the loss has from ``loss.drw_epoch`` on."""
    sampler: sampling.Sampler | None = None
    lint: tuple[str, ...] = ()
    """What may surprise in the recipe, one line each."""
    team: Team = field(default_factory=Team)
    plan: Sequence[tuple[int, str]] = ()
    """What is frozen from which epoch on (:func:`zoo.training.freezing.plan`)."""
    wrapped: nn.Module | None = None
    """The model as it is called in training, where several processes train it or it is compiled."""
    tail: str = ""
    """The module that is trained on stored features of the frozen part before it; empty: the whole model."""
    epoch: int = 0
    skip: int = 0
    totals: Totals | None = None
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    proof: dict[str, str] = field(default_factory=dict)
    """Digest of each frozen tensor before training."""
    unwritten: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics.jsonl that a full disk did not take."""

    @property
    def at(self) -> int:
        """Steps taken since the run began."""
        return self.epoch * len(self.batches) + self.skip

    @property
    def complete(self) -> bool:
        """All epochs are done, or validation has been no better for long enough."""
        patience = self.recipe.patience
        idle = bool(patience and self.best_epoch and self.epoch - self.best_epoch >= patience)
        return idle or self.epoch >= self.recipe.epochs


def describe(parts: Trainer, allocator: str, command: str) -> None:
    """Say each choice in one line and keep it in env.json."""
    recipe, data = parts.recipe, parts.data
    params = sum(p.numel() for p in parts.model.parameters())
    kernel = ops.kernel() if registry.entry("losses", recipe.loss.name).get("fused") else "PyTorch"
    env = machine.facts(parts.device) | {
        "precision": parts.precision,
        "layout": "channels_last",
        "compiled": recipe.compile,
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
        "processes": parts.team.size,
        "command": command,
        "lint": list(parts.lint),
    }
    publish_text(parts.folder / "env.json", json.dumps(env, indent=1) + "\n")
    tail = f" · long tail {recipe.data.imbalance} ({first_ten(parts.counts.tolist())})"
    imbalance = tail if recipe.data.imbalance != "none" else ""
    print_line(
        f"data     {data.name} · {parts.counts.sum():,} train · {len(data.val):,} val · {len(data.test):,} test · "
        f"{len(data.classes)} classes{imbalance}"
    )
    macs = f" · {parts.spec.macs / 1e6:,.3g} MMAC at {'x'.join(map(str, parts.spec.input))}" if parts.spec.macs else ""
    print_line(f"model    {recipe.model} · {params:,} parameters{macs}")
    weights = f" · class weights {recipe.loss.class_weights}" if recipe.loss.class_weights != "none" else ""
    weights += f" after {recipe.loss.drw_epoch} epochs" if weights and recipe.loss.drw_epoch else ""
    print_line(f"loss     {recipe.loss.name}{weights} · {kernel}")
    if parts.sampler:
        bounds = f"easy from p_t {sampling.EASY}, hard below {sampling.HARD}"
        print_line(f"sampler  {recipe.sampler.name}, {len(parts.sampler.index):,} draws with replacement an epoch · {bounds}")
    if recipe.select_on == "test":
        print_line(
            "warning  the epoch to keep is chosen on the test images: the test result will be too good, and is marked as such"
        )
    together = f"{parts.team.size} processes, each " if parts.team.size > 1 else ""
    compiled = " · compiled in the first steps" if recipe.compile else ""
    print_line(
        f"run      {together}{parts.device} · {env['threads']} threads · {parts.precision} · channels_last{compiled} · memory: {allocator} · {parts.folder}"
    )
    for finding in parts.lint:
        print_line(f"warning  {finding}")


def epochs(parts: Trainer, stop: Stop) -> None:
    """Train what is left of the run; Interrupted after a signal, with the state saved."""
    recipe = parts.recipe
    parts.proof = parts.proof or freezing.frozen_digest(parts.model, parts.frozen.names)
    if parts.at == 0:
        _save_state(parts)
    stop.saved = True
    began = time.monotonic() - parts.seconds
    with Progress(recipe.epochs, len(parts.batches), len(parts.batches.index), recipe.select_on) as progress:
        while not parts.complete:
            started, before = time.monotonic(), parts.totals.seen if parts.totals else 0
            _one_epoch(parts, stop, progress)
            took = time.monotonic() - started
            parts.seconds = time.monotonic() - began
            _record(parts, took, before, progress, stop)
    if parts.epoch < recipe.epochs:
        print_line(f"stop     no better validation accuracy for {recipe.patience} epochs (best: epoch {parts.best_epoch})")


def _halt(parts: Trainer, stop: Stop, *, save: bool = True) -> None:
    """After a step, if any process got a signal: save, wait for all, stop."""
    if number := parts.team.agreed(stop()):
        if save:
            _save_state(parts)
        parts.team.wait()
        raise Interrupted(number)


def _one_epoch(parts: Trainer, stop: Stop, progress: Progress) -> None:
    every = parts.recipe.save_every

    def watch(done: int, totals: Totals) -> None:
        progress.step(parts.epoch + 1, done, totals.row["loss"])
        parts.skip, parts.totals = done, totals
        _halt(parts, stop)
        if every and parts.at % every == 0:
            _save_state(parts)

    _set_loss(parts)
    try:
        parts.totals = train_epoch(
            parts.model.get_submodule(parts.tail) if parts.tail or parts.wrapped is None else parts.wrapped,
            parts.loss,
            parts.batches,
            parts.step,
            epoch=parts.epoch,
            skip=parts.skip,
            totals=parts.totals,
            watch=watch,
        )
    except DivergedError as error:
        if parts.team.leads:
            _bad_batch(parts, error)
        raise


def _set_loss(parts: Trainer) -> None:
    """Put the loss into the state it has in this epoch: deferred re-weighting, and what it does by itself."""
    loss: Any = parts.loss
    start = parts.recipe.loss.drw_epoch
    if start and parts.weight is not None:
        loss.weight = parts.weight if parts.epoch >= start else None
        if parts.epoch == start and parts.skip == 0:
            print_line(f"loss     class weights act from epoch {start + 1} on")
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(parts.epoch)


def _end_epoch(parts: Trainer) -> dict[str, float]:
    """Let the loss and the sampler learn from the epoch; their numbers for its row."""
    loss: Any = parts.loss
    told = loss.end_epoch(parts.epoch) if hasattr(loss, "end_epoch") else {}
    return told | (parts.sampler.end_epoch() if parts.sampler else {})


def _bad_batch(parts: Trainer, error: DivergedError) -> None:
    """Keep what made the loss non-finite."""
    files = [parts.data.train.files[i] for i in getattr(error, "position", [])]
    told = {
        "epoch": parts.epoch + 1,
        "step": parts.skip + 1,
        "lr": parts.step.lr(parts.at),
        "message": str(error),
        "files": files,
    }
    publish_text(parts.folder / "bad_batch.json", json.dumps(told, indent=1))


def predicted(
    parts: Trainer, model: nn.Module, batches: Batches, poll: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """:func:`zoo.training.loop.predict`, each process taking its share of the split; all have the whole result."""
    n, team = len(batches.index), parts.team
    if team.size == 1 or n < team.size:
        return predict(model, batches, parts.precision, poll)
    mine = predict(model, replace(batches, index=batches.index[team.share(n)]), parts.precision)
    logits, targets = zip(*team.gathered(mine))
    return torch.cat(logits), torch.cat(targets)


def _record(parts: Trainer, took: float, before: int, progress: Progress, stop: Stop) -> None:
    """After an epoch: evaluate on validation, write rows, keep the best weights, save the state."""
    assert parts.totals is not None
    number = parts.epoch + 1
    train = {
        "epoch": number,
        "split": "train",
        **parts.totals.row,
        "lr": parts.step.lr(parts.epoch * len(parts.batches)),
        "images_per_s": round((parts.totals.seen - before) / took, 1),
        "seconds": round(took, 3),
    }
    rows = [train]
    shown = parts.ema.averaged(parts.model) if parts.ema else parts.model
    score = float(number)  # without a validation split the last epoch's weights are the ones kept
    if parts.val:
        alone = parts.team.size == 1
        result = metrics.evaluate(
            *predicted(parts, shown.get_submodule(parts.tail), parts.val, lambda: _halt(parts, stop) if alone else None)
        )
        score = result.accuracy
        split = checkpoint.CHOOSING[parts.recipe.select_on]
        rows.append({"epoch": number, "split": split, "loss": result.loss, "accuracy": score, "macro": result.macro})
    train |= _end_epoch(parts)  # after validation: a stop in there saves the loss and the sampler as they were
    progress.epoch(number, train, rows[-1] if parts.val else None)
    parts.epoch, parts.skip, parts.totals = number, 0, None
    better = score > parts.best
    if better and _written(parts, lambda: _save_weights(parts, shown, score)):
        parts.best, parts.best_epoch = score, parts.epoch
    _write_rows(parts, rows)
    if not parts.complete and (selector := features.due(parts, parts.epoch)):
        features.release(parts, selector)
        features.tell(parts)
        features.shorten(parts)
    _save_state(parts)
    _halt(parts, stop, save=False)


def _write_rows(parts: Trainer, rows: list[dict[str, Any]]) -> None:
    parts.unwritten += rows

    def write() -> None:
        checkpoint.append_rows(parts.folder, parts.unwritten)
        _tensorboard(parts.folder, parts.unwritten)

    if _written(parts, write):
        parts.unwritten = []


def _written(parts: Trainer, write: Callable[[], None]) -> bool:
    """Whether it was written; a full disk ends the run unless ``on_full`` says to go on, and the next save tries again."""
    try:
        parts.team.broadcast(write)
    except DiskError as error:
        if parts.recipe.on_full == "stop":
            raise
        print_line(f"warning  not saved, going on: {error}")
        return False
    return True


def _tensorboard(folder: Path, rows: list[dict[str, Any]]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(own_folder(folder / "tensorboard"))) as writer:
        for row in rows:
            for key in ("loss", "accuracy", "lr", "images_per_s"):
                if key in row:
                    writer.add_scalar(f"{row['split']}/{key}", row[key], row["epoch"])


def _save_weights(parts: Trainer, model: nn.Module, score: float) -> None:
    meta = {
        "model": parts.recipe.model,
        "classes": parts.data.classes,
        "input": parts.spec.input,
        "mean": parts.data.mean,
        "std": parts.data.std,
        "epoch": parts.epoch,
        "chosen_on": parts.recipe.select_on if parts.val else "last epoch",
        "chosen_accuracy": score if parts.val else None,
        "frozen": parts.proof,
    }
    tensor_files.save_tensors(parts.folder / "weights.safetensors", model.state_dict(), meta)


def _save_state(parts: Trainer) -> None:
    _written(parts, lambda: checkpoint.save_state(parts.folder, parts.at, *state.pack(parts)))
