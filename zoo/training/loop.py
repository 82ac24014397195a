"""The training loop: from model, loss, batches and optimizer to the totals of an epoch.

Sample order, augmentation and dropout are functions of (seed, epoch, sample) and (seed, step), so a run that stops after
any step continues with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import ops
from zoo.console import counted, print_line
from zoo.errors import DivergedError, UsageError
from zoo.training.batches import Batch, Batches
from zoo.training.distil import Distillation
from zoo.training.processes import Team
from zoo.training.profile import LOAD, Part, unmeasured

INITIAL_PIXELS = 5000 * 32**2
"""Most pixels of the training images that a model is initialised from (5,000 images in Jordan 2024)."""
SKIPS = 50
"""Steps in a row without finite gradients after which fp16 training has diverged."""

ALONE = Team()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Totals:
    """Running sums over the samples seen so far in an epoch."""

    loss: float = 0.0
    correct: int = 0
    samples_seen: int = 0

    def add(self, loss: float, correct: int, samples: int) -> None:
        """Add a sum of losses over samples, and the number of correct predictions."""
        self.loss += loss
        self.correct += correct
        self.samples_seen += samples

    @property
    def row(self) -> dict[str, float]:
        """Mean loss and accuracy in [0, 1]."""
        return {"loss": self.loss / max(self.samples_seen, 1), "accuracy": self.correct / max(self.samples_seen, 1)}


@dataclass(frozen=True)
class Step:
    """Settings of a step besides model, loss and data."""

    optimizer: torch.optim.Optimizer
    lr: Callable[[int], float]
    """Learning rate of a global step, counted from 0."""
    device: torch.device
    precision: str = "fp32"
    clip: float = 0.0
    seed: int = 0
    after: Callable[[], None] | None = None
    """Called after each update (weight averaging)."""
    mix: Callable[[Batch], tuple[Tensor, Tensor]] | None = None
    """Inputs (N, 3, H, W) and soft targets (N, C) of a batch blended with its partners (mixup, cutmix)."""
    distil: Distillation | None = None
    scaler: Any = None
    see: Callable[[np.ndarray, np.ndarray], None] | None = None
    """Receives the positions (N,) of a batch and p_t (N,) of each sample (focal sampler)."""
    team: Team = field(default_factory=Team)
    skipped: list[int] = field(default_factory=lambda: [0])
    """Consecutive steps skipped by the gradient scaler."""
    part: Part = unmeasured
    """Context of a part of a step, to measure its time."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The autocast context of a precision; fp32 has none."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=DTYPES[precision])


def initialise(model: nn.Module, batches: Batches) -> None:
    """Call ``model.initialise_from_images``, if there is one, with evenly spaced training images (n, 3, H, W), only normalised."""
    if callable(initialise := getattr(model, "initialise_from_images", None)):
        count = min(len(batches.index), max(1, INITIAL_PIXELS // batches.size**2))
        chosen = batches.index[np.arange(count) * len(batches.index) // count]
        plain = replace(batches, augment=None, dtype=torch.float32)
        initialise(plain.inputs(chosen, np.zeros((count, 0), np.float32)))
        print_line(f"model    {count:,} training images set initial weights")


def train_epoch(
    model: nn.Module,
    loss: nn.Module,
    batches: Batches,
    step: Step,
    *,
    epoch: int,
    skip: int = 0,
    totals: Totals | None = None,
    watch: Callable[[int, Totals], None] = lambda done, totals: None,
) -> Totals:
    """Train for the steps ``skip`` .. of one epoch (counted from 0); ``watch(steps done, totals)`` runs after each.

    Raises:
        DivergedError: the loss is not finite, and the weights are those before that step; or the gradient scaler found no scale
            with finite gradients. Its ``position`` has the samples of the batch in the split.
        IndexError: the loss is not finite because a label is out of range (:func:`zoo.ops.raise_wrong_label`).
    """
    totals = totals or Totals()
    model.train()
    groups = batches.per_step(epoch, skip)
    for number in range(skip, batches.steps):
        with step.part(LOAD):
            group = next(groups)
        at = epoch * batches.steps + number
        found = _update(model, loss, step, at, group)
        if found is None or step.skipped[0] >= SKIPS:
            what = "loss is not finite" if found is None else f"gradients are not finite {SKIPS} times in a row"
            raise _diverged(what, epoch, number, step.lr(at), np.concatenate([batch.chosen for batch in group]))
        totals.add(found.loss, found.correct, found.samples_seen)
        watch(number + 1, totals)
    return totals


def _update(model: nn.Module, loss: nn.Module, step: Step, at: int, batches: Sequence[Batch]) -> Totals | None:
    """Take step ``at`` with the gradients of all its batches; returns its totals, None if a loss is not finite."""
    rate = step.lr(at)
    for group in step.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    # dropout depends on the step only
    torch.manual_seed(step.seed * 1_000_003 + at + (step.team.rank << 48))
    step.optimizer.zero_grad(set_to_none=True)
    found, samples, total = Totals(), sum(len(batch.targets) for batch in batches), 0.0
    for batch in batches:
        value, correct, amount = _gradients(model, loss, step, batch, samples)
        if value is None:
            return None
        found.add(value * amount, correct, len(batch.targets))
        total += amount
    if total != samples:  # each batch was divided by its own sum of weights
        found.loss *= samples / total
        for parameter in _trained(step):
            if parameter.grad is not None:
                parameter.grad.mul_(samples / total)
    with step.part("update"):
        _apply(step)
        if step.after is not None:
            step.after()
    return found


def _gradients(model: nn.Module, loss: nn.Module, step: Step, batch: Batch, samples: int) -> tuple[float | None, int, float]:
    """Add the gradients of a batch, one of a step of ``samples`` samples, times amount / ``samples``.

    Returns its loss, None if not finite, the number of correct answers, and its amount: the divisor of the loss if there are several
    batches, else the number of samples.
    """
    inputs, targets, chosen = batch.inputs, batch.targets, batch.chosen
    n, wanted = len(targets), targets
    if step.mix is not None:
        with step.part("mix"):
            inputs, wanted = step.mix(batch)
            inputs = inputs[step.team.share(n)]
    with step.part("forward"), autocast(step.device, step.precision):
        logits = model(inputs)
    with step.part("loss"):
        logits = step.team.whole(logits.float(), n)
        value, p = _loss(loss, logits, wanted, targets) if step.see else (loss(logits, wanted), None)
        if step.distil is not None:
            value = step.distil.blend(value, logits, _taught(step.distil, step, inputs, n))
        if not hasattr(value, "numel") or value.numel() != 1 or not value.requires_grad:
            what = f"the type {type(value).__name__}"
            if hasattr(value, "numel"):
                what = "no gradient" if value.numel() == 1 else f"shape {tuple(value.shape)}"
            raise UsageError(
                f"the loss has {what}; return the mean over the batch, computed from the logits by differentiable operations"
            )
        number = value.item()
    if not np.isfinite(number):
        if value.is_cuda:
            ops.raise_wrong_label()
        return None, 0, 0.0
    divisor: Any = getattr(loss, "divisor", None) if step.distil is None else None  # the teachers' distance is a plain mean
    amount = divisor(wanted) if n < samples and callable(divisor) else float(n)
    with step.part("backward"):
        value = step.team.scaled(value if n == samples else value * (amount / samples), n)
        (value if step.scaler is None else step.scaler.scale(value)).backward()
    with step.part("metrics"):
        if step.see is not None and p is not None:
            step.see(chosen, p.cpu().numpy())
        return number, int((logits.detach().argmax(1) == targets).sum()), amount


def _taught(distil: Distillation, step: Step, inputs: Tensor, n: int) -> Tensor:
    """Targets (n, C) of the teachers for the whole batch, from this process's inputs of it."""
    with autocast(step.device, step.precision):
        return step.team.whole(distil.targets(inputs), n)


def _loss(loss: Any, logits: Tensor, wanted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and p_t (N,) of the labels: from the same pass if the loss supports it, else from the same logits."""
    if wanted is targets and hasattr(loss, "with_stats"):
        stats = loss.with_stats(logits, targets)
        return stats.loss, stats.p
    return loss(logits, wanted), logits.detach().softmax(1).gather(1, targets[:, None]).squeeze(1)


def _trained(step: Step) -> list[Tensor]:
    """All parameters of the optimizer: those of the model, and of a loss that has some."""
    return [parameter for group in step.optimizer.param_groups for parameter in group["params"]]


def _apply(step: Step) -> None:
    """Update the weights with the gradients."""
    if step.scaler is not None:
        step.scaler.unscale_(step.optimizer)
    if step.clip > 0:
        nn.utils.clip_grad_norm_(_trained(step), step.clip)
    if step.scaler is None:
        step.optimizer.step()
    else:
        scale = step.scaler.get_scale()
        step.scaler.step(step.optimizer)
        step.scaler.update()
        step.skipped[0] = step.skipped[0] + 1 if step.scaler.get_scale() < scale else 0


def _diverged(what: str, epoch: int, number: int, rate: float, chosen: np.ndarray) -> DivergedError:
    error = DivergedError(f"{what} (epoch {epoch + 1}, step {number + 1}, lr {rate:.3g}); lower optim.lr or set optim.clip=1")
    error.position = chosen  # type: ignore[attr-defined]
    return error


def predict(
    model: nn.Module,
    batches: Batches,
    precision: str = "fp32",
    *,
    team: Team = ALONE,
    poll: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) float32 and targets (N,) of a whole split, on the CPU, in order; ``poll`` runs after each batch.

    Each process of a team computes its share of the split; all receive the whole result.
    """
    n = len(batches.index)
    if team.size == 1 or n < team.size:
        return _predict(model, batches, precision, poll)
    mine = _predict(model, replace(batches, index=batches.index[team.share(n)]), precision, poll)
    logits, targets = zip(*team.gathered(mine))
    return torch.cat(logits), torch.cat(targets)


@torch.inference_mode()
def _predict(model: nn.Module, batches: Batches, precision: str, poll: Callable[[], None]) -> tuple[Tensor, Tensor]:
    model.eval()
    logits, targets = [], []
    for batch in counted(batches.epoch(0), len(batches.index), "eval     evaluated", batches.batch_size):
        with autocast(batches.device, precision):
            logits.append(model(batch.inputs).float().cpu())
        targets.append(batch.targets.cpu())
        poll()
    return torch.cat(logits), torch.cat(targets)
