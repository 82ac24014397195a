"""Softmax focal loss (Lin et al. 2017, "Focal loss for dense object detection", eq. 4), class-balanced by a weight."""

from __future__ import annotations

from torch import Tensor, nn

from zoo import ops
from zoo.spec import LossSpec


class FocalLoss(nn.Module):
    """Mean of -w_y (1 - p_y)^gamma log p_y over logits (N, C) and target (N,)."""

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """A scalar."""
        return ops.focal_loss(logits, target, self.gamma, self.weight)  # type: ignore[arg-type]


def build(weight: Tensor | None = None, focal_gamma: float = 2.0) -> nn.Module:
    """From the recipe's options."""
    return FocalLoss(focal_gamma, weight)


SPECS = {"focal": LossSpec(build=build, reference=ops.focal_loss, paper="Lin et al. 2017, arXiv:1708.02002", options=("focal_gamma",))}
