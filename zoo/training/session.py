"""The state of a run while it trains, and its methods: fit, save, restore, release frozen layers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import machine, metrics, sampling, tensor_files
from zoo.console import Progress, print_line, print_lines
from zoo.errors import DiskError, DivergedError, FileError, UsageError
from zoo.files import publish_text
from zoo.spec import DataSet, ModelSpec
from zoo.training import checkpoint, features, freezing, optim
from zoo.training.batches import Batches
from zoo.training.loop import Step, Totals, predict, train_epoch
from zoo.training.processes import Team
from zoo.training.signals import Interrupted, Stop

SAMPLER_STATE = ("p", "next_p", "seen")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a session: length, selection, saving."""

    epochs: int
    patience: int = 0
    """Epochs without a better score before the run stops; 0: never."""
    select_on: str = "val"
    """Split of ``Session.val``: ``val`` or ``test``."""
    select_by: str = "accuracy"
    """Key of a validation row whose highest value selects the epoch: ``accuracy`` or ``macro``."""
    save_every: int = 0
    """Steps between saved states; 0: one per epoch."""
    keep_on_full: bool = False
    """Continue training if the disk is full, and retry at the next save."""
    drw_epoch: int = 0
    """Epochs before the class weights act (deferred re-weighting)."""
    compile: bool = False
    deterministic: bool = False
    features_with: str = "torch"
    """The runtime that computes features of a frozen part."""


@dataclass
class Position:
    """Progress of a run."""

    epoch: int = 0
    """Completed epochs."""
    skip: int = 0
    """Completed steps of the next epoch."""
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class Session:
    """One run while it trains."""

    folder: Path
    identity: dict[str, Any]
    """Settings that a saved state must match: model, classes, optimizer."""
    data: DataSet
    spec: ModelSpec
    model: nn.Module
    loss: nn.Module
    batches: Batches
    val: Batches | None
    """Images that select the epoch to keep: validation, or test (``Settings.select_on``)."""
    test: Batches
    step: Step
    make_optimizer: Callable[[], torch.optim.Optimizer]
    """Creates an optimizer over the parameters that are trained at the time of the call."""
    frozen: freezing.FreezeTable
    """Frozen layers at present."""
    plan: Sequence[tuple[int, str]]
    """Frozen layers by epoch (:func:`zoo.training.freezing.plan`)."""
    settings: Settings
    ema: optim.Ema | None = None
    plateau: optim.Plateau | None = None
    """Factor on the learning rate that depends on the score of each epoch."""
    weight: Tensor | None = None
    """Class weights (C,), which apply from ``settings.drw_epoch`` on."""
    sampler: sampling.Sampler | None = None
    team: Team = field(default_factory=Team)
    wrapped: nn.Module | None = None
    """The wrapped model for training, if several processes train it or it is compiled."""
    tail: str = ""
    """The module that is trained on stored features of the frozen layers before it; empty: the whole model."""
    at: Position = field(default_factory=Position)
    totals: Totals | None = None
    digests: dict[str, str] = field(default_factory=dict)
    """Digest of each frozen tensor before training."""
    unwritten: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics.jsonl that could not be written to a full disk."""

    @property
    def steps(self) -> int:
        """Steps since the start of the run."""
        return self.at.epoch * self.batches.steps + self.at.skip

    @property
    def complete(self) -> bool:
        """Whether all epochs are done or the score has not improved for ``settings.patience`` epochs."""
        patience = self.settings.patience
        idle = bool(patience and self.at.best_epoch and self.at.epoch - self.at.best_epoch >= patience)
        return idle or self.at.epoch >= self.settings.epochs

    def fit(self, stop: Stop, on_epoch: Callable[[list[dict[str, Any]]], None] | None = None) -> None:
        """Train the remaining epochs. ``on_epoch`` receives the rows of each epoch after they are saved.

        Raises:
            Interrupted: after a signal, with the state saved. DivergedError: the loss is not finite.
        """
        self.digests = self.digests or freezing.frozen_digest(self.model, self.frozen.names)
        if self.steps == 0:
            self.save()
        stop.saved = True
        began = time.monotonic() - self.at.seconds
        images, chosen_on = len(self.batches.index), self.settings.select_on
        with Progress(self.settings.epochs, self.batches.steps, images, chosen_on) as progress:
            while not self.complete:
                started, before = time.monotonic(), self.totals.samples_seen if self.totals else 0
                self._train_epoch(stop, progress)
                took = time.monotonic() - started
                self.at.seconds = time.monotonic() - began
                rows = self._record(took, before, progress, stop)
                if on_epoch:
                    on_epoch(rows)
                self._halt(stop, save=False)
        if self.at.epoch < self.settings.epochs:
            what = ("macro " if self.settings.select_by == "macro" else "") + ("test" if chosen_on == "test" else "validation")
            idle = f"for {self.settings.patience} epochs (best: epoch {self.at.best_epoch})"
            print_line(f"stop     no better {what} accuracy {idle}")

    def _halt(self, stop: Stop, *, save: bool = True) -> None:
        """After a step, if any process received a signal: save, synchronise, stop."""
        if number := self.team.agreed(stop()):
            if save:
                self.save()
            self.team.wait()
            raise Interrupted(number)

    def _train_epoch(self, stop: Stop, progress: Progress) -> None:
        every = self.settings.save_every

        def watch(done: int, totals: Totals) -> None:
            progress.step(self.at.epoch + 1, done, totals.row["loss"])
            self.at.skip, self.totals = done, totals
            self._halt(stop)
            if every and self.steps % every == 0:
                self.save()

        self._set_loss()
        model = self.model.get_submodule(self.tail) if self.tail or self.wrapped is None else self.wrapped
        try:
            self.totals = train_epoch(
                model, self.loss, self.batches, self.step,
                epoch=self.at.epoch, skip=self.at.skip, totals=self.totals, watch=watch,
            )  # fmt: skip
        except DivergedError as error:
            if self.team.leads:
                self._keep_bad_batch(error)
            raise

    def _set_loss(self) -> None:
        """Set the state of the loss for this epoch: deferred re-weighting and its own ``set_epoch``."""
        loss: Any = self.loss
        start = self.settings.drw_epoch
        if start and self.weight is not None:
            loss.weight = self.weight if self.at.epoch >= start else None
            if self.at.epoch == start and self.at.skip == 0:
                print_line(f"loss     class weights apply from epoch {start + 1} on")
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(self.at.epoch)

    def _end_epoch(self) -> dict[str, float]:
        """Update the loss and the sampler after an epoch; returns their numbers for its row."""
        loss: Any = self.loss
        numbers = loss.end_epoch(self.at.epoch) if hasattr(loss, "end_epoch") else {}
        return numbers | (self.sampler.end_epoch() if self.sampler else {})

    def _keep_bad_batch(self, error: DivergedError) -> None:
        """Record the batch whose loss was not finite."""
        facts = {
            "epoch": self.at.epoch + 1,
            "step": self.at.skip + 1,
            "lr": self.step.lr(self.steps),
            "message": str(error),
            "files": [self.data.train.files[i] for i in getattr(error, "position", [])],
        }
        publish_text(self.folder / "bad_batch.json", json.dumps(facts, indent=1))

    def _record(self, took: float, before: int, progress: Progress, stop: Stop) -> list[dict[str, Any]]:
        """After an epoch: evaluate on validation, write rows, keep the best weights, save the state; the rows."""
        assert self.totals is not None
        number = self.at.epoch + 1
        train = {
            "epoch": number,
            "split": "train",
            **self.totals.row,
            "lr": self.step.lr(self.at.epoch * self.batches.steps),
            "images_per_s": round((self.totals.samples_seen - before) / took, 1),
            "seconds": round(took, 3),
        }
        averaged = self.ema.averaged(self.model) if self.ema else self.model
        score = float(number)  # without a validation split the last epoch's weights are the ones kept
        rows: list[dict[str, Any]] = [train]
        if self.val:
            rows.append(self._validated(averaged, self.val, number, stop))
            score = rows[-1][self.settings.select_by]
        if self.plateau:
            self.plateau.update(score)
        train |= self._end_epoch()  # after validation: an interruption during it saves the loss and the sampler unchanged
        progress.epoch(number, train, rows[-1] if self.val else None)
        self.at.epoch, self.at.skip, self.totals = number, 0, None
        if score > self.at.best and self._written(lambda: self._save_weights(averaged, score)):
            self.at.best, self.at.best_epoch = score, self.at.epoch
        self._write_rows(rows)
        selector = freezing.in_force(self.plan, self.at.epoch)
        if not self.complete and selector != self.frozen.selector:
            self.release(selector)
            print_lines(freezing.lines(self.frozen, self.plan))
            self.store_features()
        self.save()
        return rows

    def _validated(self, model: nn.Module, val: Batches, number: int, stop: Stop) -> dict[str, Any]:
        """The row of the split that selects the epoch to keep."""
        poll = (lambda: self._halt(stop)) if self.team.size == 1 else (lambda: None)
        tail = model.get_submodule(self.tail)
        with self.step.part("validate"):
            result = metrics.evaluate(*predict(tail, val, self.step.precision, team=self.team, poll=poll))
        split = checkpoint.CHOOSING[self.settings.select_on]
        return {
            "epoch": number, "split": split, "loss": result.loss, "accuracy": result.accuracy, "macro": result.macro,
        }  # fmt: skip

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        self.unwritten += rows
        if self._written(lambda: checkpoint.append_rows(self.folder, self.unwritten)):
            written, self.unwritten = self.unwritten, []
            self._written(lambda: checkpoint.write_tensorboard(self.folder, written))

    def _written(self, write: Callable[[], None]) -> bool:
        """Whether it was written; a full disk ends the run, or with ``on_full=keep-training`` the next save retries."""
        try:
            with self.step.part("save"):
                self.team.broadcast(write)
        except DiskError as error:
            if not self.settings.keep_on_full:
                raise
            print_line(f"warning  not saved, training continues: {error}")
            return False
        return True

    def _save_weights(self, model: nn.Module, score: float) -> None:
        meta = {
            "model": self.identity["model"],
            "classes": self.data.classes,
            "input": self.spec.input,
            "mean": self.data.mean,
            "std": self.data.std,
            "epoch": self.at.epoch,
            "chosen_on": self.settings.select_on if self.val else "last epoch",
            "chosen_accuracy": score if self.val else None,
            "frozen": self.digests,
        }
        tensor_files.save_tensors(self.folder / "weights.safetensors", model.state_dict(), meta)

    def tested(self) -> tuple[Tensor, Tensor, tensor_files.WeightsHeader]:
        """Logits (N, C) and targets (N,) of the test split with the best weights, and the header of their file.

        Raises:
            DisagreeError: a frozen tensor changed in training.
        """
        tensors, header = tensor_files.load_weights(self.folder / "weights.safetensors")
        tensor_files.load_into(self.model, tensors, self.folder)
        freezing.check_unchanged(self.model, header.frozen)
        return *predict(self.model, self.test, self.step.precision, team=self.team), header

    def save(self) -> None:
        """Publish the state to resume from."""
        self._written(lambda: checkpoint.save_state(self.folder, self.steps, *self._state()))

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name and JSON-able facts."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        packed, scalars = checkpoint.pack_optimizer(self.step.optimizer)
        tensors |= {f"optim.{name}": value for name, value in packed.items()}
        if self.ema:
            tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        # class weights come from the recipe and the epoch; a loss given in Python may have anything in "weight"
        state, kept = self.loss.state_dict(), self.weight is None
        tensors |= {f"loss.{key}": value for key, value in state.items() if kept or key != "weight"}
        if self.sampler:
            tensors |= {f"sampler.{name}": torch.from_numpy(getattr(self.sampler, name)) for name in SAMPLER_STATE}
        totals = self.totals or Totals()
        meta = {
            **asdict(self.at), "totals": [totals.loss, totals.correct, totals.samples_seen], "optim": scalars,
            **self.identity, **self._setting(), "data_digest": self.data.digest, "frozen": self.digests,
            "scaler": self.step.scaler.state_dict() if self.step.scaler else None,
            "plateau": self.plateau.state_dict() if self.plateau else None,
        }  # fmt: skip
        return tensors, meta

    def _setting(self) -> dict[str, Any]:
        """Values that must match for a bit-identical continuation."""
        return {
            "threads": torch.get_num_threads(), "torch": torch.__version__, "device": self.step.device.type,
            "precision": self.step.precision, "processes": self.team.size,
        }  # fmt: skip

    def restore(self) -> None:
        """Load the newest good state of the folder.

        Raises:
            FileError: no state that can be read, or one of another model, class count or optimizer. DataError: the data
                changed since the run began.
        """
        tensors, header, warnings = checkpoint.load_state(self.folder)
        for warning in warnings:
            print_line(f"warning  {warning}")
        checkpoint.check_same(self.folder, header, self.identity, self.data)
        if changed := checkpoint.changes(header, self._setting()):
            print_line(f"resume   not bit-identical: {', '.join(changed)}")
        if (selector := freezing.in_force(self.plan, header.epoch)) != self.frozen.selector:
            self.release(selector)
        tensor_files.load_into(self.model, checkpoint.part(tensors, "model"), self.folder)
        try:
            self._put_back(tensors, header)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:  # torch raises many types
            why = (str(error) or type(error).__name__).splitlines()[0][:90]
            raise FileError(f"state does not fit the run ({self.folder}, {why}); start again with --force") from error

    def _put_back(self, tensors: dict[str, Tensor], header: checkpoint.StateHeader) -> None:
        """Content of a state besides the model."""
        checkpoint.unpack_optimizer(self.step.optimizer, checkpoint.part(tensors, "optim"), header.optim)
        if self.ema:
            self.ema.load_state_dict(checkpoint.part(tensors, "ema"))
        self.loss.load_state_dict(checkpoint.part(tensors, "loss"), strict=False)  # not strict: "weight" is not in it
        if self.sampler:
            for name, value in checkpoint.part(tensors, "sampler").items():
                getattr(self.sampler, name)[:] = value.numpy()
        if self.step.scaler and header.scaler:
            self.step.scaler.load_state_dict(header.scaler)
        if self.plateau and header.plateau:
            self.plateau.load_state_dict(header.plateau)
        self.at = Position(**{key: getattr(header, key) for key in asdict(self.at)})
        self.totals, self.digests = Totals(*header.totals), header.frozen

    def release(self, selector: str) -> None:
        """Freeze only ``selector`` from now on; parameters that were trained keep their momentum.

        Raises:
            DisagreeError: a frozen tensor has changed.
        """
        freezing.check_unchanged(self.model, self.digests)
        self.frozen = freezing.unfreeze(self.model, self.frozen, selector, self.spec)
        self.digests = {name: self.digests[name] for name in self.frozen.names if name in self.digests}
        self.step = replace(self.step, optimizer=optim.carry_over(self.step.optimizer, self.make_optimizer()))
        self.wrap()

    def wrap(self) -> None:
        """Wrap the model for training, depending on the frozen layers.

        Each shape is compiled separately, so that a step is bit-identical whatever shapes came before it.

        Raises:
            UsageError: ``compile`` with several processes, whose joint BatchNorm it would split.
        """
        self.wrapped = None  # drop the old wrapper's hooks
        if self.team.size > 1:
            if self.settings.compile:
                raise UsageError(f"compile = true supports one process (found {self.team.size}); omit --compile")
            self.wrapped = self.team.wrapped(self.model.train())
        elif self.settings.compile:
            torch.compiler.reset()  # earlier models count towards the limit of recompilations, after which nothing is compiled
            self.wrapped = machine.compiled(self.model)

    def store_features(self) -> None:
        """Train on stored features if all layers before the head are frozen and the images are the same in every epoch; print the decision."""
        obstacle = "several processes train" if self.team.size > 1 else ""
        if self.step.distil:
            obstacle = "the teachers need images"
        elif self.step.mix or (self.batches.augment and not self.batches.views):
            obstacle = features.CHANGING
        self.tail, self.batches, self.val = features.stored(
            self.model, (self.spec.new_head, self.spec.head), self.frozen.names, self.batches, self.val,
            precision=self.step.precision, name=self.identity["model"], obstacle=obstacle, runtime=self.settings.features_with,
        )  # fmt: skip
