"""Difficulty-aware balancing margin (Son et al. 2025, arXiv:2412.15477): angular margins for rare classes and misclassified samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.focal_formula import logarithms
from zoo.losses._inputs import divisor, one_hot, per_class, prepared
from zoo.spec import LossSpec, Option

SMALLEST = 1e-12
"""Lower bound of sin^2: the gradient of its square root is not finite at 0."""


class Dbm(nn.Module):
    """Cross entropy after the label's angle is enlarged: s cos(theta_y) becomes s cos(theta_y + m_C + m_I).

    m_C = angle n_min / n_y is the margin of the class, with n = ``counts`` (C,) (the paper raises the ratio to a power; here it is 1). m_I = m_C (1 - cos theta_y) / 2 is the additional
    margin of a sample if its largest logit is not the label's, and 0 otherwise. The logits (N, C) are s cos(theta), as returned by
    the ``_cosine`` models, with s = ``margin_scale``; a logit outside of [-s, s] is shifted like the nearest bound. The paper combines
    the margin with balanced softmax (Ren et al. 2020): ``tau`` log n_c is added to the logits; ``tau`` 0 omits this term.

    For a target of class shares q (N, C), the loss is sum_c q_c l_c, where l_c is the loss of label c with its own margin, as in
    :class:`zoo.losses.ldam.Ldam`. With class weights, it is divided by sum_c q_c w_c.
    """

    weight: Tensor | None
    margin: Tensor
    prior: Tensor

    def __init__(
        self,
        counts: Sequence[int],
        weight: Tensor | None = None,
        angle: float = 0.1,
        tau: float = 1.0,
        margin_scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.margin_scale = margin_scale
        number = torch.tensor(counts, dtype=torch.float64)
        least = number[number > 0].min()  # a class without samples is never a label
        self.register_buffer("margin", angle * least / number.clamp(min=least), persistent=False)
        self.register_buffer("prior", tau * number.clamp(min=least).log(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        wide, target, weight = prepared(logits, target, self.weight)
        adjusted = wide + per_class(wide, self.prior)
        if not target.is_floating_point():
            lowered = one_hot(target, logits.shape[1]) * self._lowered(wide)
            return F.cross_entropy(adjusted - lowered, target, weight)
        log_p, log_rest = logarithms(adjusted)
        own = log_p - self._lowered(wide)
        rows = torch.logaddexp(own, log_rest) - own
        amount = target if weight is None else target * weight
        return (amount * rows).sum() / amount.sum()

    def divisor(self, target: Tensor) -> float:
        """The sum of weights by which the batch of ``target`` is divided."""
        return divisor(target, self.weight, shares=True)

    def _lowered(self, logits: Tensor) -> Tensor:
        """s cos(theta) - s cos(theta + m) of each class (N, C) as the label."""
        cosine = (logits / self.margin_scale).clamp(-1, 1)
        wrong = torch.ones_like(cosine).scatter(1, logits.argmax(1, keepdim=True), 0)
        margin = self.margin.to(logits.dtype) * (1 + wrong * (1 - cosine) / 2)
        sine = (1 - cosine * cosine).clamp(min=SMALLEST).sqrt()
        return self.margin_scale * (cosine * (1 - margin.cos()) + sine * margin.sin())


def reference(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    counts: Sequence[int] = (),
    angle: float = 0.1,
    tau: float = 1.0,
    margin_scale: float = 30.0,
) -> Tensor:
    """Row by row with angles, divided by the sum of the batch's weights."""
    total, weights = logits.new_zeros(()), logits.new_zeros(())
    for row, y in zip(logits, target.tolist()):
        theta = (row[y] / margin_scale).clamp(-1, 1).acos()
        margin = torch.as_tensor(angle * min(counts) / counts[y], dtype=row.dtype)
        if int(row.argmax()) != y:
            margin = margin * (1 + (1 - theta.cos()) / 2)
        moved = margin_scale * ((theta + margin).cos() - theta.cos())
        changed = row + moved * F.one_hot(target.new_tensor(y), len(row))
        changed = changed + tau * torch.tensor([math.log(n) for n in counts], dtype=row.dtype)
        w = 1.0 if weight is None else weight[y]
        total, weights = total - w * changed.log_softmax(0)[y], weights + w
    return total / weights


SPECS = {
    "dbm": LossSpec(
        build=Dbm,
        reference=reference,
        paper="Son et al. 2025, arXiv:2412.15477",
        options={
            "angle": Option("float", 0.1, "angular margin of the rarest class, in radians", ge=0, le=1.5),
            "tau": Option("float", 1.0, "factor of the log class frequencies", ge=0, le=100),
            "margin_scale": Option("float", 30.0, "scale of the logits and margins", gt=0, le=1e4),
        },
        counts=True,
        soft=True,
        weighted_mean=True,
        cosine=True,
    ),
}
