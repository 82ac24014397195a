"""Inputs of the losses written in PyTorch: any floating-point logits, labels of any integer type, class weights of any precision."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of an ignored row, as in ``F.cross_entropy``."""


def prepared(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (N, C) in float32 or float64; labels (N,) in int64, or class shares (N, C) in the logits' type; weight (C,) in that type.

    Raises:
        TypeError: logits or target are not such tensors. ValueError: they have another shape.
    """
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor) or not logits.is_floating_point():
        kinds = [str(each.dtype) if isinstance(each, Tensor) else type(each).__name__ for each in (logits, target)]
        raise TypeError(f"logits must be a tensor of floats and target a tensor, not {kinds[0]} and {kinds[1]}")
    if target.shape in (logits.shape, logits.shape[:1]) and target.is_floating_point() != (target.dim() == 2):
        raise TypeError(
            f"labels (N,) must be integers, class shares (N, C) floats; the target is {target.dtype} of {tuple(target.shape)}"
        )
    wanted = logits.shape if target.is_floating_point() else logits.shape[:1]
    if logits.dim() != 2 or target.shape != wanted:
        raise ValueError(
            f"logits must be (N, C) and target (N,) labels or (N, C) shares, not {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    return converted(logits, target, weight)


def per_class(logits: Tensor, values: Tensor) -> Tensor:
    """A vector (C,) of a loss in the type of the logits (N, C); ValueError if they have another number of classes."""
    if logits.shape[1] != len(values):
        raise ValueError(f"the logits have {logits.shape[1]} classes, counts {len(values)}; give the samples of each class")
    return values.to(logits.dtype)


def converted(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Conversion to the same types, for any shapes that ``F.cross_entropy`` takes."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    target = target.to(wide.dtype) if target.is_floating_point() else target.long()
    return wide, target, None if weight is None else weight.to(wide.dtype)


def divisor(target: Tensor, weight: Tensor | None, *, shares: bool) -> float:
    """What a weighted mean over a batch is divided by: the sum of the labels' weights, or the number of rows without weights.

    Ignored rows do not count. ``shares``: whether a target of class shares is divided by the sum of their weights too, instead of by
    the number of rows.
    """
    if target.is_floating_point():
        return float((target * weight.to(target.dtype)).sum()) if shares and weight is not None else float(len(target))
    labels = target[target != IGNORED].long()
    return float(len(labels)) if weight is None else float(weight[labels].double().sum())


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(N, C) bool, whether each class is the row's label (N,); all False for an ignored row."""
    return target[:, None] == torch.arange(classes, device=target.device)
