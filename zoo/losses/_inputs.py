"""Inputs of the losses written in PyTorch: any floating-point logits, labels of any integer type, class weights of any precision."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of an ignored row, as in ``F.cross_entropy``."""


def prepared(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (N, C) in float32 or float64; labels (N,) in int64, or class shares (N, C) in the logits' type; weight (C,) in that type.

    Raises:
        ValueError: logits or target have another shape.
    """
    wanted = logits.shape if target.is_floating_point() else logits.shape[:1]
    if logits.dim() != 2 or target.shape != wanted:
        raise ValueError(
            f"logits must be (N, C) and target (N,) labels or (N, C) shares, not {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    return converted(logits, target, weight)


def converted(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Conversion to the same types, for any shapes that ``F.cross_entropy`` takes."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    target = target.to(wide.dtype) if target.is_floating_point() else target.long()
    return wide, target, None if weight is None else weight.to(wide.dtype)


def divisor(target: Tensor, weight: Tensor | None, *, shares: bool) -> float:
    """What a weighted mean over a batch is divided by: the sum of the labels' weights, or the rows without weights.

    ``shares``: whether a target of class shares is divided by the sum of their weights too, instead of by the rows.
    """
    if weight is None or (target.is_floating_point() and not shares):
        return float(len(target))
    if target.is_floating_point():
        return float((target * weight.to(target.dtype)).sum())
    return float(weight[target[target != IGNORED].long()].double().sum())


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(N, C) bool, whether each class is the row's label (N,); all False for an ignored row."""
    return target[:, None] == torch.arange(classes, device=target.device)
