"""Derivatives of the focal loss that the kernel does not compute, against float64 finite differences and each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from ops_cases import truth
from torch import Tensor

from zoo import ops

GAMMAS = (0.0, 0.5, 2.0)


def shares(*shape: int, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).softmax(1)


def logits(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()


TARGETS: dict[str, Callable[[], object]] = {
    "labels": lambda: torch.tensor([0, 2, -100, 1]),
    "two labels": lambda: (torch.tensor([0, 2, -100, 1]), torch.tensor([1, 2, 0, 0]), torch.tensor([0.25, 0.5, 0.75, 1.0])),
    "shares": lambda: shares(4, 3),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("reduction", ops.REDUCTIONS)
def test_second_derivatives_and_forward_mode(served_quickly: str, kind: str, reduction: str) -> None:
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for gamma, smoothing in itertools.product(GAMMAS, (0.0, 0.2)):

        def loss(z: Tensor, gamma: float = gamma, smoothing: float = smoothing) -> Tensor:
            return ops.focal_loss(z, TARGETS[kind](), gamma, weight, label_smoothing=smoothing, reduction=reduction, scale=1.5)

        z = logits(4, 3)
        assert torch.autograd.gradcheck(loss, (z,), check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(loss, (z,))


@pytest.mark.parametrize("kind", TARGETS)
def test_derivatives_in_weight_and_shares(served_quickly: str, kind: str) -> None:
    for gamma, reduction in itertools.product(GAMMAS, ("mean", "weighted_mean", "none")):
        z, weight = logits(4, 3), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)

        def loss(z: Tensor, weight: Tensor, *target: Tensor, gamma: float = gamma, reduction: str = reduction) -> Tensor:
            goal = TARGETS[kind]() if not target else target[0] if kind == "shares" else (*TARGETS[kind]()[:2], target[0])  # type: ignore[index]
            return ops.focal_loss(z, goal, gamma, weight, reduction=reduction)

        inputs = [z, weight]
        if kind != "labels":
            inputs.append((shares(4, 3) if kind == "shares" else torch.rand(4, dtype=torch.float64)).requires_grad_())
        assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(loss, inputs)


def test_a_weight_or_share_of_zero_has_its_derivative() -> None:
    """The loss is linear in both: masked terms would make the derivative zero there."""
    z, y = logits(4, 3).detach(), torch.tensor([0, 1, 2, 1])
    for other in ({"weight": torch.zeros(3, dtype=torch.float64)}, {}):
        at = torch.zeros(3, dtype=torch.float64) if other else torch.zeros(4, 3, dtype=torch.float64)
        at.requires_grad_()
        loss = ops.focal_loss(z, y, weight=at) if other else ops.focal_loss(z, at)
        (grad,) = torch.autograd.grad(loss, at)
        assert bool((grad > 0).all())


def test_gradients_of_the_formula_are_the_kernels_for_extreme_logits() -> None:
    """``create_graph`` uses the formula, which must be valid wherever the kernel is, infinite logits included."""
    inf = float("inf")
    rows = [[80.0, 0, -3], [1e4, -1e4, 0], [0, 0, 0], [1, -inf, 0], [40, 40, 40], [-700, 0, 700], [50, 0, 0], [300, 299, -inf]]
    for gamma, label in itertools.product((0.0, 0.5, 1.0, 2.0, 5.0), range(3)):
        for kind in ("labels", "shares"):
            target = torch.full((len(rows),), label)
            goal = target if kind == "labels" else torch.nn.functional.one_hot(target, 3).double()
            z = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
            loss = ops.focal_loss(z, goal, gamma, reduction="sum")
            (kernel,) = torch.autograd.grad(loss, z, retain_graph=True)
            (formula,) = torch.autograd.grad(loss, z, create_graph=True)
            torch.testing.assert_close(
                formula, kernel, rtol=1e-9, atol=0, msg=lambda m, g=gamma, t=label, k=kind: f"{g} {t} {k}: {m}"
            )


def test_second_derivative_of_a_confident_row_is_mpmaths() -> None:
    """The second derivative against differences of the 60-digit gradient, at 1 - p = 1e-17."""
    row, step = [40.0, 0.5, -1.0], 1e-6
    z = torch.tensor([row], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.focal_loss(z, torch.tensor([0]), 2.0), z, create_graph=True)
    (second,) = torch.autograd.grad(grad[0, 0], z)
    for c in range(3):
        moved = [[x + sign * step * (k == c) for k, x in enumerate(row)] for sign in (1, -1)]
        above, below = (truth(each, 0, 2.0)[1][0] for each in moved)
        assert float(second[0, c]) == pytest.approx(float((above - below) / (2 * step)), rel=1e-5)


def test_the_logits_of_a_second_derivative_must_not_change() -> None:
    z = logits(4, 3)
    twice = 2 * z
    loss = ops.focal_loss(twice, torch.tensor([0, 1, 2, 1]))
    twice.add_(1)
    assert torch.autograd.grad(loss, z, retain_graph=True)[0].any()
    with pytest.raises(RuntimeError, match="changed in place .* clone it first"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("changed", ["target", "shares", "weight"])
def test_other_tensors_of_a_second_derivative_must_not_change_either(served_quickly: str, changed: str) -> None:
    z = logits(4, 3)
    named = {"target": torch.tensor([0, 1, 2, 1]), "shares": shares(4, 3), "weight": torch.ones(3, dtype=torch.float64)}
    loss = ops.focal_loss(z, named["shares" if changed == "shares" else "target"], weight=named["weight"])
    named[changed].zero_()
    torch.autograd.grad(loss, z, retain_graph=True)
    with pytest.raises(RuntimeError, match="changed in place"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("changed", ["target", "weight"])
def test_tensors_of_inference_mode_have_no_versions(served_quickly: str, changed: str) -> None:
    z, named = logits(4, 3), {"target": torch.tensor([0, 1, 2, 1]), "weight": torch.ones(3, dtype=torch.float64)}
    with torch.inference_mode():
        named[changed] = named[changed].clone()
    loss = ops.focal_loss(z, named["target"], weight=named["weight"])
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], grad)


def test_labels_out_of_range_are_named_in_transforms_and_compiled_graphs(served_quickly: str) -> None:
    z, y = torch.zeros(2, 4, 3), torch.tensor([[0, 1, 2, 0], [0, 1, 3, 0]])
    with pytest.raises(IndexError, match=r"target\[1, 2\]=3 is out of range for 3 classes"):
        torch.func.vmap(torch.func.grad(ops.focal_loss))(z, y)
    with pytest.raises(IndexError, match=r"target\[2\]=3 is out of range for 3 classes"):
        torch.func.jvp(lambda z: ops.focal_loss(z, y[1]), (z[1],), (z[1],))
    compiled = torch.compile(ops.focal_loss, backend="aot_eager", fullgraph=True)
    with pytest.raises(IndexError, match=r"^target\[2\]=3 is out of range for 3 classes"):
        compiled(z[1].requires_grad_(), y[1])


def test_shapes_that_do_not_fit_are_named_in_compiled_graphs() -> None:
    compiled = torch.compile(ops.focal_loss, backend="aot_eager")
    for target in (torch.zeros(3, dtype=torch.int64), torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"target of (labels|shares) must be \(4,"):
            compiled(torch.zeros(4, 3), target)


def test_the_raw_op_has_every_derivative_too(served_quickly: str) -> None:
    z, weight = logits(4, 3), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 2, 1, 1])
    for want_grad in (True, False):

        def loss(z: Tensor, w: Tensor, want_grad: bool = want_grad) -> Tensor:
            return torch.ops.zoo.focal_loss(z, y, w, 2.0, 0.1, 1.0, -100, 3, want_grad, False)[0]

        assert torch.autograd.gradcheck(loss, (z, weight))
        assert torch.autograd.gradgradcheck(loss, (z, weight))
    batch = torch.stack((z, 2 * z)).detach()
    each = [loss(one, weight) for one in batch]
    torch.testing.assert_close(torch.func.vmap(loss, (0, None))(batch, weight), torch.stack(each))
