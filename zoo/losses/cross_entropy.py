"""Softmax cross entropy, PyTorch's own (label smoothing: Szegedy et al. 2016, section 7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.spec import LossSpec


def build(weight: Tensor | None = None, label_smoothing: float = 0.0) -> nn.Module:
    """``nn.CrossEntropyLoss``: logits (N, C), target (N,) class numbers or (N, C) shares; divides by the weights of the batch."""
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=label_smoothing)


def reference(logits: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """The formula, for tests."""
    return F.cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing)


SPECS = {
    "cross_entropy": LossSpec(
        build=build, reference=reference, paper="Szegedy et al. 2016, arXiv:1512.00567", options=("label_smoothing",)
    ),
}
