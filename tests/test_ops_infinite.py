"""The focal loss where logits are infinite or NaN: masked classes, rows without a softmax, labels with probability 0."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from ops_cases import agree
from torch import Tensor

from zoo import ops

INF, NAN = float("inf"), float("nan")
KINDS = ("labels", "two labels", "shares", "smoothed")
BROKEN = ([1.0, NAN, 0.0], [1.0, INF, 0.0], [-INF, -INF, -INF])
"""Rows without a softmax."""


def goal(kind: str, shares: Tensor, labels: Tensor, other: Tensor) -> tuple[Any, Tensor | None, Tensor | None]:
    """Target, second target and share of the first, as the raw op takes them."""
    if kind == "two labels":
        return labels, other, torch.full(labels.shape, 0.25, dtype=shares.dtype)
    return (shares if kind == "shares" else labels), None, None


@pytest.mark.parametrize("kind", ["labels", "two labels", "shares"])
def test_masked_classes_are_those_of_a_tiny_probability(served: str, kind: str) -> None:
    """The same bits as with a finite logit whose p rounds to 0: the vector code takes both, the exact row would round differently."""
    draw = torch.Generator().manual_seed(6)
    for classes, gamma in itertools.product((3, 10, 100, 1500, 5000), (0.0, 0.5, 2.0)):
        for dtype in (torch.float32, torch.float16) if classes < 1500 else (torch.float32,):
            logits = (2 * torch.randn(12, classes, generator=draw)).to(dtype)
            labels, other = torch.randint(classes, (2, 12), generator=draw)
            mask = (torch.rand(12, classes, generator=draw) < 0.2).scatter(1, torch.stack((labels, other), 1), False)
            shares = torch.rand(12, classes, generator=draw).masked_fill(mask, 0)
            target, *pair = goal(kind, shares, labels, other)
            rest = target, None, gamma, 0.0, 1.0, -100, 1, True, True, *pair
            finite = torch.ops.zoo.focal_loss(logits.masked_fill(mask, -1000), *rest)
            args = (logits.masked_fill(mask, -INF), *rest)
            masked = torch.ops.zoo.focal_loss(*args)
            for name, a, b in zip(("loss", "grad", "p", "factor"), finite, masked, strict=True):
                assert torch.equal(a, b), (name, classes, gamma, dtype)
            assert not masked[1][mask].any() and bool(masked[0].isfinite())
            agree(ops.formula(*args), masked, args)


def test_a_masked_class_with_a_weight_of_zero_takes_no_part_in_smoothing(served: str) -> None:
    logits, weight = torch.randn(9, 20, generator=torch.Generator().manual_seed(2)), torch.ones(20)
    weight[7], logits[:, 7] = 0, -INF
    args = (logits, torch.arange(9) // 2, weight, 2.0, 0.1, 1.0, -100, 0, True, True)
    found = torch.ops.zoo.focal_loss(*args)
    assert bool(found[0].isfinite().all()) and not found[1][:, 7].any()
    agree(ops.formula(*args), found, args)
    args[2][7] = 1  # a share of an impossible class
    assert bool((torch.ops.zoo.focal_loss(*args)[0] == INF).all())
