"""The in-place focal loss, whose gradient overwrites the logits: equal values, no second tensor, an error if it is unsafe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops_cases import samples
from torch import Tensor

from zoo import ops


def layer(logits: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf, and a copy of it like a layer's output, neither a leaf nor a view."""
    leaf = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    return leaf, torch.empty_like(leaf).copy_(leaf)


def by(loss: Callable[..., Tensor], z: Tensor, factor: float, **options: Any) -> tuple[Tensor, Tensor]:
    leaf, made = layer(z)
    value = loss(made, **options)
    (factor * value.sum() if factor != 1 else value.sum()).backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("dtype", ops.DTYPES, ids=str)
def test_the_same_numbers(served: str, dtype: torch.dtype) -> None:
    exact = {"rtol": 0, "atol": 0}
    for number, (z, y, weight, gamma, smoothing, scale, ignored, reduction, *_) in enumerate(samples(dtype=dtype)):

        def loss(z: Tensor, inplace: bool, args: tuple = (y, gamma, weight, ignored, smoothing, ops.REDUCTIONS[reduction], scale)) -> Tensor:  # fmt: skip
            return ops.focal_loss(z, *args, inplace=inplace)

        factor = 1.0 if number % 2 else 3.0
        want, got = (by(loss, z, factor, inplace=each) for each in (False, True))
        torch.testing.assert_close(got[0], want[0], **exact)
        torch.testing.assert_close(got[1], want[1], **exact)


def test_shares_two_labels_images_and_strides(served: str) -> None:
    draw = torch.Generator().manual_seed(5)
    z, q = torch.randn(3, 5, 4, 2, generator=draw), torch.randn(3, 5, 4, 2, generator=draw).softmax(1)
    y, other = torch.randint(5, (2, 3, 4, 2), generator=draw)
    for target in (q, (y, other, 0.3), y):
        for logits in (z, z.contiguous(memory_format=torch.channels_last), z.transpose(0, 1).contiguous().transpose(0, 1)):
            for stats in (False, True):

                def loss(z: Tensor, inplace: bool, target: Any = target, stats: bool = stats) -> Tensor:
                    made = (ops.focal_loss_with_stats if stats else ops.focal_loss)(z, target, inplace=inplace)
                    return made.loss if stats else made

                want, got = (by(loss, logits, 1.0, inplace=each) for each in (False, True))
                torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_rows_for_the_exact_formula_are_read_before_they_are_written_over(served: str) -> None:
    """Huge, infinite, NaN and ordinary logits in one tile, and an ignored row."""
    inf = float("inf")
    for classes in (3, 40, 1500):
        z = torch.randn(40, classes)
        z[3, 0], z[5, 1], z[7, 2], z[9] = 2e4, -inf, float("nan"), 1e30
        y = torch.zeros(40, dtype=torch.int64)
        y[11] = -100
        for target in (y, torch.nn.functional.one_hot(y.clamp(min=0), classes).float()):
            want, got = (
                by(lambda z, inplace, y=target: ops.focal_loss(z, y, reduction="none", inplace=inplace), z, 1.0, inplace=each)
                for each in (False, True)
            )
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-30, equal_nan=True)


def test_no_second_tensor_of_the_size_of_the_logits() -> None:
    if ops._C is None:
        pytest.skip(f"the formula has temporaries: {ops.kernel()}")
    target, shares = torch.randint(50, (3000,)), torch.randn(3000, 50).softmax(1)
    for goal in (target, shares):
        for factor in (1.0, 3.0):
            _, made = layer(torch.randn(3000, 50))
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
                loss = ops.focal_loss(made, goal, inplace=True)
                (grad,) = torch.autograd.grad(loss if factor == 1 else factor * loss, made)
            events = profile.profiler.kineto_results.events()
            assert not [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 3000]
            assert grad.data_ptr() == made.data_ptr()


def test_nothing_is_written_without_a_gradient_or_with_a_bad_label(served: str) -> None:
    z, y = torch.randn(6, 4), torch.randint(4, (6,))
    kept = z.clone()
    ops.focal_loss(z, y, inplace=True)
    _, made = layer(z)
    with torch.no_grad():
        ops.focal_loss(made, y, inplace=True)
    y[3] = 4
    for target in (y, (y, y, 0.5)):
        with pytest.raises(IndexError, match=r"target\[3\]=4 is out of range"):
            ops.focal_loss(made, target, inplace=True)
    assert torch.equal(z, kept) and torch.equal(made, kept) and made._version == layer(z)[1]._version


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], object], str]] = {
    "a leaf": (lambda z, y: ops.focal_loss(z.detach().requires_grad_(), y, inplace=True), "leaf that requires grad"),
    "a parameter": (lambda z, y: ops.focal_loss(torch.nn.Parameter(z.detach()), y, inplace=True), "not a parameter"),
    "a view": (lambda z, y: ops.focal_loss(z[:4], y[:4], inplace=True), "view of another tensor"),
    "one row": (lambda z, y: ops.focal_loss(z[0], y[0], inplace=True), "view of another tensor"),
    "a row expanded": (lambda z, y: ops.focal_loss(z[:1].expand(6, -1), y, inplace=True), "view of another tensor"),
    "columns before rows": (
        lambda z, y: ops.focal_loss(
            layer(torch.randn(3, 5, 2, 4).transpose(2, 3))[1], torch.zeros(3, 4, 2).long(), inplace=True
        ),
        "contiguous in memory",
    ),
    "a weight's derivative": (
        lambda z, y: ops.focal_loss(z, y, weight=torch.ones(4, requires_grad=True), inplace=True),
        "only the first derivative in the logits",
    ),
    "vmap": (lambda z, y: torch.func.vmap(lambda z: ops.focal_loss(z, y[0], inplace=True))(2 * z), "eager mode"),
    "func.grad": (lambda z, y: torch.func.grad(lambda z: ops.focal_loss(2 * z, y, inplace=True))(z.detach()), "eager mode"),
    "torch.compile": (
        lambda z, y: torch.compile(lambda z: ops.focal_loss(z, y, inplace=True), backend="eager", fullgraph=True)(z),
        "eager mode",
    ),
    "a second derivative": (
        lambda z, y: torch.autograd.grad(ops.focal_loss(z, y, inplace=True), z, create_graph=True),
        "no second derivative",
    ),
    "logits that a layer has saved": (
        lambda z, y: ops.focal_loss((made := z.exp()), y, inplace=True).backward() or made,
        "modified by an inplace operation",
    ),
    "logits changed after the loss": (lambda z, y: changed(z, y), "modified by an inplace operation"),
}


def changed(z: Tensor, y: Tensor) -> None:
    loss = ops.focal_loss(z, y, inplace=True)
    with torch.no_grad():
        z.add_(1)
    loss.backward()


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_where_the_logits_are_needed(served: str, name: str) -> None:
    call, says = REFUSED[name]
    _, made = layer(torch.randn(6, 4))
    with pytest.raises((ValueError, TypeError, RuntimeError), match=says):
        call(made, torch.randint(4, (6,)))


@pytest.mark.parametrize("road", ["labels", "stats", "shares", "two labels"])
def test_autograd_refuses_logits_that_were_saved_and_written_over(served: str, road: str) -> None:
    """``exp`` saves its output for its backward pass; the gradient has overwritten it by then."""
    leaf = torch.randn(6, 5, requires_grad=True)
    y, q = torch.arange(6) % 5, torch.rand(6, 5).softmax(1)
    target = {"shares": q, "two labels": (y, y.flip(0), 0.3)}.get(road, y)
    made = leaf.exp()
    loss = (ops.focal_loss_with_stats if road == "stats" else ops.focal_loss)(made, target, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss.loss if road == "stats" else loss).backward()


def test_the_raw_op_says_what_it_writes(served: str) -> None:
    z, y = torch.randn(6, 4), torch.randint(4, (6,))
    want = torch.ops.zoo.focal_loss(z, y, None, 2.0, 0.0, 1.0, -100, 1, True, True)
    loss, p, factor = torch.ops.zoo.focal_loss_(z, y, None, 2.0, 0.0, 1.0, -100, 1, True)
    torch.testing.assert_close((loss, z, p, factor), tuple(want), rtol=0, atol=0)
    torch.library.opcheck(
        torch.ops.zoo.focal_loss_.default, (z, y, None, 2.0, 0.0, 1.0, -100, 1, True), test_utils=("test_schema",)
    )
