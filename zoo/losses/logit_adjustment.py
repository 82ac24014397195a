"""Logit-adjusted cross entropy: tau log pi_c is added to each logit in training (Menon et al. 2021, eq. 10).

Balanced softmax, which weights each class in the softmax by its number of samples (Ren et al. 2020, eq. 3 and 4), is the same
loss with tau = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.losses._inputs import divisor, per_class, prepared
from zoo.spec import LossSpec, Option


class LogitAdjustment(nn.Module):
    """CE(z + tau log pi, y) of logits z (N, C) and a target y: labels (N,) or class shares (N, C).

    pi is the class distribution of ``counts`` (C,), the training samples per class. A class without samples is treated like the
    rarest of the others. If the target is shares, the loss is divided by the number of rows. Evaluation uses the model's logits
    without this term: they rank classes as if the training set were balanced.
    """

    weight: Tensor | None
    shift: Tensor

    def __init__(self, counts: Sequence[int], weight: Tensor | None = None, tau: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        number = torch.tensor(counts, dtype=torch.float64)
        number = number.clamp(min=number[number > 0].min())  # log 0 would make NaN of a share of 0
        self.register_buffer("shift", tau * (number / number.sum()).log(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        wide, target, weight = prepared(logits, target, self.weight)
        return F.cross_entropy(wide + per_class(wide, self.shift), target, weight)

    def divisor(self, target: Tensor) -> float:
        """The sum of weights by which the batch of ``target`` is divided."""
        return divisor(target, self.weight, shares=False)


def reference(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, counts: Sequence[int] = (), tau: float = 1.0
) -> Tensor:
    """The paper's second form, log(1 + sum over other classes (pi_c / pi_y)^tau e^(z_c - z_y)), as a weighted mean over the batch."""
    pi = torch.tensor(counts, dtype=logits.dtype) / sum(counts)
    own = logits.gather(1, target[:, None])
    terms = (pi / pi[target][:, None]) ** tau * (logits - own).exp()  # (N, C), 1 at the label
    w = logits.new_ones(len(pi)) if weight is None else weight
    return (w[target] * terms.sum(1).log()).sum() / w[target].sum()


def balanced_softmax(counts: Sequence[int], weight: Tensor | None = None) -> LogitAdjustment:
    """Balanced softmax, which equals logit adjustment with tau = 1; ``counts`` (C,) training samples, ``weight`` (C,)."""
    return LogitAdjustment(counts, weight)


def balanced_softmax_reference(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, counts: Sequence[int] = ()
) -> Tensor:
    """-log(n_y e^(z_y) / sum_c n_c e^(z_c)), as a weighted mean over the batch."""
    mass = torch.tensor(counts, dtype=logits.dtype) * logits.exp()  # (N, C)
    rows = -(mass.gather(1, target[:, None]).squeeze(1) / mass.sum(1)).log()
    w = logits.new_ones(logits.shape[1]) if weight is None else weight
    return (w[target] * rows).sum() / w[target].sum()


SPECS = {
    "balanced_softmax": LossSpec(
        build=balanced_softmax,
        reference=balanced_softmax_reference,
        paper="Ren et al. 2020, arXiv:2007.10740",
        counts=True,
        soft=True,
        weighted_mean=True,
    ),
    "logit_adjustment": LossSpec(
        build=LogitAdjustment,
        reference=reference,
        paper="Menon et al. 2021, arXiv:2007.07314",
        options={"tau": Option("float", 1.0, "factor of the log class frequencies", ge=0, le=100)},
        counts=True,
        soft=True,
        weighted_mean=True,
    ),
}
