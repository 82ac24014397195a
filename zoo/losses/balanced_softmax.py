"""Balanced softmax: the softmax of training weighs each class by its samples (Ren et al. 2020, eq. 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.losses.logit_adjustment import LogitAdjustment
from zoo.spec import LossSpec


def build(counts: Sequence[int], weight: Tensor | None = None) -> LogitAdjustment:
    """Logit adjustment with tau = 1, to which it is equal; ``counts`` (C,) training samples, ``weight`` (C,)."""
    return LogitAdjustment(counts, 1.0, weight)


def reference(logits: Tensor, target: Tensor, weight: Tensor | None = None, counts: Sequence[int] = ()) -> Tensor:
    """-log(n_y e^(z_y) / sum_c n_c e^(z_c)), divided by the weights of the batch."""
    mass = torch.tensor(counts, dtype=logits.dtype) * logits.exp()  # (N, C)
    rows = -(mass.gather(1, target[:, None]).squeeze(1) / mass.sum(1)).log()
    w = logits.new_ones(logits.shape[1]) if weight is None else weight
    return (w[target] * rows).sum() / w[target].sum()


SPECS = {
    "balanced_softmax": LossSpec(
        build=build, reference=reference, paper="Ren et al. 2020, arXiv:2007.10740", counts=True, soft=True, weighted_mean=True
    ),
}
