"""Softmax cross entropy, PyTorch's own (label smoothing: Szegedy et al. 2016, section 7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo import ops
from zoo.losses._inputs import converted, divisor
from zoo.spec import LossSpec, Option


class CrossEntropy(nn.Module):
    """Cross entropy of logits (N, C[, ...]) and labels or class shares, a scalar.

    It is divided as in ``F.cross_entropy``: by the sum of the labels' weights, or by the number of rows if the target is shares.
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(*converted(logits, target, self.weight), label_smoothing=self.label_smoothing)

    def divisor(self, target: Tensor) -> float:
        """The sum of weights by which the batch of ``target`` is divided."""
        return divisor(target, self.weight, shares=False)

    def with_stats(self, logits: Tensor, target: Tensor) -> ops.WithStats:
        """The same loss and p_t of each row, from one pass: cross entropy is the focal loss with exponent 0."""
        return ops.focal_loss_with_stats(
            logits, target, 0.0, self.weight, label_smoothing=self.label_smoothing, reduction="weighted_mean"
        )


def reference(logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """-sum_n sum_c w_c q_nc log p_nc / sum_n w_y with q the smoothed target, for tests."""
    classes = logits.shape[1]
    w = logits.new_ones(classes) if weight is None else weight
    q = (1 - label_smoothing) * F.one_hot(target, classes) + label_smoothing / classes  # (N, C)
    return -(w * q * logits.log_softmax(1)).sum() / w[target].sum()


SPECS = {
    "cross_entropy": LossSpec(
        build=CrossEntropy,
        reference=reference,
        paper="Szegedy et al. 2016, arXiv:1512.00567",
        options={
            "label_smoothing": Option("float", 0.0, "share of the target distribution spread over all classes", ge=0, lt=1)
        },
        soft=True,
        weighted_mean=True,
    ),
}
