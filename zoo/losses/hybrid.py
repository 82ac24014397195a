"""Cross entropy and focal loss together: a fixed share of each, or one after the other (reported experiments, no paper)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import ops
from zoo.losses._inputs import prepared
from zoo.spec import LossSpec, Option


class Hybrid(nn.Module):
    """alpha CE + (1 - alpha) focal over logits (N, C), each reduced as in the loss of that name.

    With ``switch_epoch``, alpha is 1 for that number of epochs. The target can be class shares (N, C), from mixup or cutmix: both
    terms are linear in the shares, and so is their sum. The cross entropy of shares is divided by the number of rows.
    If gradients are accumulated, each batch divides its own cross entropy, so that the step differs from that of a large batch.
    """

    weight: Tensor | None

    def __init__(self, alpha: float, gamma: float = 2.0, weight: Tensor | None = None, switch_epoch: int = 0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.final, self.gamma, self.switch_epoch = alpha, gamma, switch_epoch
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the weight of cross entropy for an epoch, counted from 0."""
        self.alpha = self.final if epoch >= self.switch_epoch else 1.0

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        parts = []
        if self.alpha > 0:
            parts.append(self.alpha * F.cross_entropy(*prepared(logits, target, self.weight)))
        if self.alpha < 1:
            parts.append((1 - self.alpha) * ops.focal_loss(logits, target, self.gamma, self.weight))
        return sum(parts[1:], parts[0])

    def extra_repr(self) -> str:
        return f"alpha={self.final}, gamma={self.gamma}, switch_epoch={self.switch_epoch}"


def build(weight: Tensor | None = None, focal_gamma: float = 2.0, alpha: float = 0.5) -> Hybrid:
    """The fixed mixture from a recipe's options; ``weight`` (C,)."""
    return Hybrid(alpha, focal_gamma, weight)


def build_switch(weight: Tensor | None = None, focal_gamma: float = 2.0, switch_epoch: int = 0) -> Hybrid:
    """Cross entropy for ``switch_epoch`` epochs, then the focal loss; ``weight`` (C,)."""
    return Hybrid(0.0, focal_gamma, weight, switch_epoch)


def reference(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, focal_gamma: float = 2.0, alpha: float = 0.5
) -> Tensor:
    """Both formulas, from the same log p_t."""
    log_p = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)  # (N,)
    w = (logits.new_ones(logits.shape[1]) if weight is None else weight)[target]
    focal = -(w * (-torch.expm1(log_p)) ** focal_gamma * log_p).mean()
    return alpha * -(w * log_p).sum() / w.sum() + (1 - alpha) * focal


def reference_switch(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, focal_gamma: float = 2.0, switch_epoch: int = 0
) -> Tensor:
    """The loss of the first epoch."""
    return reference(logits, target, weight, focal_gamma, alpha=1.0 if switch_epoch else 0.0)


PAPER = "reported experiment; focal loss: Lin et al. 2017, arXiv:1708.02002"

GAMMA = Option("float", 2.0, "exponent of the modulating factor (1 - p_t)", ge=0, le=100)

SPECS = {
    "hybrid": LossSpec(
        build=build,
        reference=reference,
        paper=PAPER,
        options={
            "focal_gamma": GAMMA,
            "alpha": Option("float", 0.5, "weight of cross entropy; that of the focal loss is 1 - alpha", ge=0, le=1),
        },
        soft=True,
        fused=True,
    ),
    "ce_then_focal": LossSpec(
        build=build_switch,
        reference=reference_switch,
        paper=PAPER,
        options={
            "focal_gamma": GAMMA,
            "switch_epoch": Option("int", 0, "epochs of cross entropy before the focal loss", ge=0, le=1_000_000),
        },
        soft=True,
        fused=True,
    ),
}
