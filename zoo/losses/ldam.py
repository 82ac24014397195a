"""LDAM, the label-distribution-aware margin loss (Cao et al. 2019, eq. 13); with ``drw_epoch`` it is LDAM-DRW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.focal_formula import logarithms
from zoo.losses._inputs import divisor, one_hot, per_class, prepared
from zoo.spec import LossSpec, Option


class Ldam(nn.Module):
    """Cross entropy after s m_y is subtracted from the label's logit: m_c = max_margin (n_min / n_c)^(1/4), n = ``counts`` (C,).

    The paper writes CE(s (cos - m)) with s = 30 and a head that returns cosines. Here the logits (N, C) are already s cos, as
    returned by the ``_cosine`` models, so their softmax is the model's probability.

    For a target of class shares q (N, C), from mixup or cutmix, the loss is sum_c q_c l_c, where l_c is the loss of label c with its
    own margin: the mixture of the labels' losses (Zhang et al. 2018). A single softmax with the margin sum_c q_c m_c would differ,
    because each margin separates one class from the rest. With class weights, the loss is divided by sum_c q_c w_c, which is w_y for
    a single label.
    """

    weight: Tensor | None
    margin: Tensor

    def __init__(
        self, counts: Sequence[int], weight: Tensor | None = None, max_margin: float = 0.5, margin_scale: float = 30.0
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        number = torch.tensor(counts, dtype=torch.float64)
        least = number[number > 0].min()  # a class without samples is never a label: its margin does not matter
        self.register_buffer("margin", margin_scale * max_margin * (least / number.clamp(min=least)) ** 0.25, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        wide, target, weight = prepared(logits, target, self.weight)
        if target.is_floating_point():
            return self._blended(wide, target, weight)
        taken = one_hot(target, logits.shape[1]) * per_class(wide, self.margin)  # (N, C)
        return F.cross_entropy(wide - taken, target, weight)

    def divisor(self, target: Tensor) -> float:
        """The sum of weights by which the batch of ``target`` is divided."""
        return divisor(target, self.weight, shares=True)

    def _blended(self, logits: Tensor, shares: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of ``shares`` (N, C): -log of e^(z_c - s m_c) over itself and the others' e^z, for each class c."""
        log_p, log_rest = logarithms(logits)  # (N, C), both over the whole sum
        own = log_p - per_class(logits, self.margin)
        rows = torch.logaddexp(own, log_rest) - own
        amount = shares if weight is None else shares * weight
        return (amount * rows).sum() / amount.sum()


def reference(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    counts: Sequence[int] = (),
    max_margin: float = 0.5,
    margin_scale: float = 30.0,
) -> Tensor:
    """Row by row: -log(e^(z_y - s m_y) / (e^(z_y - s m_y) + sum of the others' e^z)), as a weighted mean over the batch."""
    raw = torch.tensor([n**-0.25 for n in counts], dtype=logits.dtype)
    margins = margin_scale * max_margin * raw / raw.max()
    total, weights = logits.new_zeros(()), logits.new_zeros(())
    for row, y in zip(logits, target.tolist()):
        own = (row[y] - margins[y]).exp()
        w = 1.0 if weight is None else weight[y]
        total = total - w * (own / (own + row.exp().sum() - row[y].exp())).log()
        weights = weights + w
    return total / weights


SPECS = {
    "ldam": LossSpec(
        build=Ldam,
        reference=reference,
        paper="Cao et al. 2019, arXiv:1906.07413",
        options={
            "max_margin": Option("float", 0.5, "margin of the rarest class, in units of the cosine", ge=0, le=100),
            "margin_scale": Option("float", 30.0, "scale of the logits and margins", gt=0, le=1e4),
        },
        counts=True,
        soft=True,
        weighted_mean=True,
        cosine=True,
    ),
}
