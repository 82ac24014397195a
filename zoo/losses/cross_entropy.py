"""Cross entropy, PyTorch's own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.spec import LossSpec


def build(weight: Tensor | None = None, label_smoothing: float = 0.0) -> nn.Module:
    """``nn.CrossEntropyLoss`` with class weights; its weighted mean divides by the sum of the weights of the samples."""
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=label_smoothing)


SPECS = {
    "cross_entropy": LossSpec(
        build=build,
        reference=F.cross_entropy,
        paper="Szegedy et al. 2016 for label smoothing, arXiv:1512.00567",
        options=("label_smoothing",),
    )
}
