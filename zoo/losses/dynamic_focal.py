"""Dynamic focal loss: a focal loss with a scale that keeps the mean modulating factor at one (a reported experiment, no paper)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo import ops
from zoo.losses._inputs import IGNORED
from zoo.spec import LossSpec, Option

SUMS = ("total", "rows", "scale")


class DynamicFocal(nn.Module):
    """l = -s w_y (1 - p_t)^gamma log p_t; every ``rescale_every`` epochs, s becomes 1 / E[(1 - p_t)^gamma] of the epoch that has just ended.

    Without s, the focal loss and therefore its gradient shrink as the model learns. E is the mean over the rows of that epoch that
    are not ignored; the value of each row is from the pass that computed its loss in training mode. ``max_scale`` limits s; 0: no
    limit.

    For a target of class shares q, from mixup or cutmix, the loss is the focal loss of a distribution (see
    :func:`zoo.ops.focal_loss`), and E is the mean of sum_c q_c (1 - p_c)^gamma: the factor of a mixed sample is the mixture of the
    factors of its labels.
    """

    weight: Tensor | None
    scale: Tensor
    total: Tensor
    rows: Tensor

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        rescale_every: int = 5,
        max_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        for name in SUMS:
            self.register_buffer(name, torch.full((), float(name == "scale"), dtype=torch.float64))
        self.gamma, self.label_smoothing, self.rescale_every, self.max_scale = gamma, label_smoothing, rescale_every, max_scale

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.with_stats(logits, target).loss

    def with_stats(self, logits: Tensor, target: Tensor) -> ops.WithStats:
        """The loss, p_t of each row and the mean modulating factor."""
        stats = ops.focal_loss_with_stats(
            logits, target, self.gamma, self.weight, label_smoothing=self.label_smoothing, scale=float(self.scale)
        )
        if self.training:
            rows = _counted(target)
            self.total += stats.factor.double() * rows
            self.rows += rows
        return stats

    def _apply(self, fn: Any, recurse: bool = True) -> DynamicFocal:
        """Move the sums with the module, but keep them in float64: half precision cannot count the rows of an epoch."""
        kept = {name: getattr(self, name) for name in SUMS}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Update the scale if due (``epoch`` counts from 0); return the mean factor of this epoch and the new scale."""
        mean = float(self.total / self.rows.clamp(min=1))
        if (epoch + 1) % self.rescale_every == 0 and mean > 0:
            scale = 1 / mean
            self.scale.fill_(min(scale, self.max_scale) if self.max_scale else scale)
        self.total.zero_()
        self.rows.zero_()
        return {"mean_factor": mean, "focal_scale": float(self.scale)}


def _counted(target: ops.Target) -> Tensor | int:
    """The number of rows of a target that are not ignored."""
    labels = target[:2] if isinstance(target, (tuple, list)) else (target,)
    if labels[0].is_floating_point():
        return int(labels[0].numel() // labels[0].shape[min(1, labels[0].dim() - 1)])
    return torch.stack([each.long() != IGNORED for each in labels]).all(0).sum()


def build(
    weight: Tensor | None = None,
    focal_gamma: float = 2.0,
    label_smoothing: float = 0.0,
    rescale_every: int = 5,
    max_scale: float = 0.0,
) -> DynamicFocal:
    """The module from a recipe's options; ``weight`` (C,)."""
    return DynamicFocal(focal_gamma, weight, label_smoothing, rescale_every, max_scale)


def reference(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    focal_gamma: float = 2.0,
    label_smoothing: float = 0.0,
    scale: float = 1.0,
    **_: float,
) -> Tensor:
    """The focal loss times ``scale``, which is 1 until the first rescaling."""
    classes = logits.shape[1]
    log_p = logits.log_softmax(1)
    q = (1 - label_smoothing) * nn.functional.one_hot(target, classes) + label_smoothing / classes  # (N, C)
    w = logits.new_ones(classes) if weight is None else weight
    return -scale * (w * q * (-torch.expm1(log_p)) ** focal_gamma * log_p).sum(1).mean()


SPECS = {
    "dynamic_focal": LossSpec(
        build=build,
        reference=reference,
        paper="reported experiment; focal loss: Lin et al. 2017, arXiv:1708.02002",
        options={
            "focal_gamma": Option("float", 2.0, "exponent of the modulating factor (1 - p_t)", ge=0, le=100),
            "label_smoothing": Option("float", 0.0, "share of the target distribution spread over all classes", ge=0, lt=1),
            "rescale_every": Option("int", 5, "epochs between two updates of the scale", ge=1, le=1_000_000),
            "max_scale": Option("float", 0.0, "largest scale; 0: no limit", ge=0, le=1e6),
        },
        soft=True,
        fused=True,
    ),
}
