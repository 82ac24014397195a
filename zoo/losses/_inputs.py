"""Inputs of the losses written in PyTorch: any floating-point logits, labels of any integer type, class weights of any precision."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""Label of an ignored row, as in ``F.cross_entropy``."""


def prepared(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (N, C) in float32 or float64; labels (N,) in int64, or class shares (N, C) in the logits' type; weight (C,) in that type.

    Logits of -inf, a class that is masked, become the lowest finite ones if the target is shares: a share of 0 times infinity is NaN.

    Raises:
        TypeError: logits or target are not such tensors. ValueError: they, or the weight, have another shape.
    """
    wide, target, weight = converted(logits, target, weight, flat=True)
    return (finite(wide) if target.is_floating_point() else wide), target, weight


def finite(values: Tensor) -> Tensor:
    """``values`` with infinities replaced by numbers whose sums and differences are finite."""
    most = torch.finfo(values.dtype).max / 8
    return values.clamp(-most, most)


def per_class(logits: Tensor, values: Tensor) -> Tensor:
    """A vector (C,) of a loss in the type of the logits (N, C); ValueError if they have another number of classes."""
    if logits.shape[1] != len(values):
        raise ValueError(f"the logits have {logits.shape[1]} classes, counts {len(values)}; give the samples of each class")
    return values.to(logits.dtype)


def converted(
    logits: Tensor, target: Tensor, weight: Tensor | None, *, flat: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Conversion to the same types, for shapes that ``F.cross_entropy`` takes, or only (N, C) if ``flat``; errors as :func:`prepared`."""
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor) or not logits.is_floating_point():
        kinds = [str(each.dtype) if isinstance(each, Tensor) else type(each).__name__ for each in (logits, target)]
        raise TypeError(f"logits must be a tensor of floats and target a tensor, not {kinds[0]} and {kinds[1]}")
    rows = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]
    if target.shape in (logits.shape, rows) and target.is_floating_point() != (target.dim() == logits.dim()):
        raise TypeError(
            f"labels (N,) must be integers, class shares (N, C) floats; the target is {target.dtype} of {tuple(target.shape)}"
        )
    if (
        logits.dim() == 0
        or (flat and logits.dim() != 2)
        or target.shape != (logits.shape if target.is_floating_point() else rows)
    ):
        raise ValueError(
            f"logits must be (N, C) and target (N,) labels or (N, C) shares, not {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    classes = logits.shape[min(1, logits.dim() - 1)]
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"weight must be ({classes},) for {classes} classes, not {tuple(weight.shape)}")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    target = target.to(wide.dtype) if target.is_floating_point() else target.long()
    return wide, target, None if weight is None else weight.to(wide.dtype)


def divisor(target: Tensor, weight: Tensor | None, *, shares: bool, ignored: int = IGNORED) -> float:
    """What a weighted mean over a batch is divided by: the sum of the labels' weights, or the number of rows without weights.

    Rows labelled ``ignored`` do not count. ``shares``: whether a target of class shares is divided by the sum of their weights too, instead of by
    the number of rows.
    """
    if target.is_floating_point():
        return float((target * weight.to(target.dtype)).sum()) if shares and weight is not None else float(len(target))
    labels = target[target != ignored].long()
    return float(len(labels)) if weight is None else float(weight[labels].double().sum())


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(N, C) bool, whether each class is the row's label (N,); all False for an ignored row."""
    return target[:, None] == torch.arange(classes, device=target.device)
