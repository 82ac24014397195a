"""Sigmoid focal loss: one binary classification per class (Lin et al. 2017, eq. 4; class-balanced: Cui et al. 2019, section 4.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.losses._inputs import IGNORED, finite, one_hot, prepared
from zoo.spec import LossSpec, Option


class SigmoidFocal(nn.Module):
    """l = -w_y sum_c (1 - p_c)^gamma log p_c, averaged over the rows that are not ignored; p_c = sigmoid(z_c) for the label, sigmoid(-z_c) for the rest."""

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        wide, target, weight = prepared(logits, target, self.weight)
        if target.is_floating_point():
            raise TypeError("target must be labels (N,): this loss has no form for class shares")
        hot = one_hot(target, logits.shape[1])
        counts = target != IGNORED
        signed = finite(torch.where(hot, wide, -wide))  # (N, C)
        # (1 - p)^gamma as exp(gamma log(1 - p)): its slope is finite for gamma < 1 where p rounds to 1
        terms = -(self.gamma * F.logsigmoid(-signed)).exp() * F.logsigmoid(signed)
        F.nll_loss(terms.detach(), target)  # for its IndexError: a label out of range matches no class
        rows = terms.sum(1) if weight is None else terms.sum(1) * weight[target.where(counts, 0)]
        return rows.where(counts, 0).sum() / counts.sum()


def build(weight: Tensor | None = None, focal_gamma: float = 2.0) -> SigmoidFocal:
    """The module from a recipe's options; ``weight`` (C,)."""
    return SigmoidFocal(focal_gamma, weight)


def reference(logits: Tensor, target: Tensor, weight: Tensor | None = None, focal_gamma: float = 2.0) -> Tensor:
    """The formula as in the paper, for moderate logits."""
    p = logits.sigmoid()
    hot = F.one_hot(target, logits.shape[1])
    p_t = p * hot + (1 - p) * (1 - hot)
    w = logits.new_ones(logits.shape[1]) if weight is None else weight
    return -(w[target][:, None] * (1 - p_t) ** focal_gamma * p_t.log()).sum() / len(target)


SPECS = {
    "sigmoid_focal": LossSpec(
        build=build,
        reference=reference,
        paper="Lin et al. 2017, arXiv:1708.02002; class-balanced: Cui et al. 2019, arXiv:1901.05555",
        options={"focal_gamma": Option("float", 2.0, "exponent of the modulating factor (1 - p_t)", ge=0, le=100)},
    ),
}
