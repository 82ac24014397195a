"""The focal loss where logits are infinite or NaN: masked classes, rows without a softmax, labels with probability 0."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ops_cases import agree
from torch import Tensor

import zoo.numpy
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


def nothing(kind: str, rows: int) -> tuple[Any, Tensor, float]:
    """A target of which no part counts, the weight that makes it so, and label smoothing."""
    labels, weight = torch.zeros(rows, dtype=torch.int64), torch.zeros(3, dtype=torch.float64)
    target: Any = {"two labels": (labels, labels, 0.5), "shares": torch.zeros(rows, 3, dtype=torch.float64)}.get(kind, labels)
    return target, torch.ones(3, dtype=torch.float64) if kind == "shares" else weight, 0.1 if kind == "smoothed" else 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", BROKEN, ids=str)
def test_no_weight_or_share_of_zero_hides_a_row_without_softmax(served: str, kind: str, row: list[float]) -> None:
    """As in ``F.cross_entropy``, in each reduction; other rows and ignored rows are unaffected."""
    for dtype, gamma, reduction in itertools.product((torch.float32, torch.float64), (0.0, 0.5, 2.0), ops.REDUCTIONS):
        z = torch.tensor([row, [0.5, 0.0, 1.0], row], dtype=dtype, requires_grad=True)
        target, weight, smoothing = nothing(kind, 3)
        weight = weight.to(dtype)
        target = target.to(dtype) if kind == "shares" else target
        if kind != "shares":
            first = target[0] if kind == "two labels" else target
            first[2] = -100
        found = ops.focal_loss_with_stats(z, target, gamma, weight, label_smoothing=smoothing, reduction=reduction)
        assert torch.isnan(found.loss.view(-1)[0]) and torch.isnan(found.p[0]) and torch.isnan(found.factor)
        if reduction == "none":
            assert found.loss[1] == 0 and (kind == "shares" or found.loss[2] == 0)
        for create_graph in (False, True):
            (grad,) = torch.autograd.grad(found.loss.sum(), z, create_graph=create_graph, retain_graph=True)
            if reduction in ("none", "sum"):
                assert bool(torch.isnan(grad[0]).all()) and not grad[1].any()
                assert kind == "shares" or not grad[2].any()
        if kind in ("labels", "shares") and reduction in ("none", "sum"):
            theirs = F.cross_entropy(z, target, weight, reduction=reduction)
            assert torch.equal(torch.isnan(theirs), torch.isnan(found.loss))
            # theirs has NaN of an infinite logit too; a row of NaN is the gradient there as well
            assert bool(torch.isnan(torch.autograd.grad(theirs.sum(), z)[0][0]).all())


@pytest.mark.parametrize("kind", ["labels", "shares", "smoothed"])
def test_numpys_formula_agrees_on_rows_without_softmax(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    target, weight, smoothing = nothing(kind, 4)
    logits = np.array([*BROKEN, [1.0, -INF, 0.0]])
    for way in (zoo.numpy._by_formula, zoo.numpy._way()[0]):
        monkeypatch.setattr(zoo.numpy, "_way", lambda way=way: (way, ""))
        loss, grad = zoo.numpy.focal_loss_and_grad(
            logits, target.numpy(), 2.0, weight.numpy(), label_smoothing=smoothing, reduction="none"
        )
        assert np.isnan(loss[:3]).all() and np.isnan(grad[:3]).all() and loss[3] == 0 and not grad[3].any()


TANGENT = torch.tensor([[0.3, 0.5, -0.2, 1.0]], dtype=torch.float64)
ROW = [1.0, -INF, 0.0, -INF]


def impossible(kind: str) -> tuple[Any, float]:
    """A target with a share of a class with probability 0, and label smoothing."""
    label = torch.tensor([1])
    shares = torch.tensor([[0.25, 0.75, 0.0, 0.0]], dtype=torch.float64)
    target: Any = {"two labels": (label, label - 1, 0.75), "shares": shares}.get(kind, label)
    return target, 0.1 if kind == "smoothed" else 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_forward_mode_of_an_infinite_loss_is_the_limit(kind: str, gamma: float) -> None:
    """At p = 0 the modulating factor is the constant 1, and the gradient (p, p - 1 for the label) is that of cross entropy."""
    target, smoothing = impossible(kind)

    def loss(z: Tensor) -> Tensor:
        return ops.focal_loss(z, target, gamma, label_smoothing=smoothing)

    z = torch.tensor([ROW], dtype=torch.float64)
    value, slope = torch.func.jvp(loss, (z,), (TANGENT,))
    assert value == INF
    grad = torch.func.grad(loss)(z)
    torch.testing.assert_close(slope, (grad * TANGENT).sum(), rtol=1e-12, atol=0)
    near = z.clamp(min=-60.0)  # p = 1e-26
    torch.testing.assert_close(slope, torch.func.jvp(loss, (near,), (TANGENT,))[1], rtol=1e-9, atol=0)
    for curve in (
        torch.func.jacfwd(torch.func.grad(loss)),
        torch.func.jacrev(torch.func.grad(loss)),
        torch.func.jacfwd(torch.func.jacfwd(loss)),
    ):
        torch.testing.assert_close(curve(z), curve(near), rtol=0, atol=1e-12)
    if gamma == 0 and kind in ("labels", "smoothed"):
        theirs = torch.func.jvp(lambda z: F.cross_entropy(z, target, label_smoothing=smoothing), (z,), (TANGENT,))
        torch.testing.assert_close((value, slope), theirs)
