"""Every registered loss: equal to its reference in float64, right derivatives, weights, extreme logits, half types."""

from __future__ import annotations

import doctest

import pytest
import torch

from zoo import registry
from zoo.losses import focal_loss

NAMES = registry.names("losses")


def test_the_registry_is_not_empty() -> None:
    assert {"focal", "cross_entropy"} <= set(NAMES)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, weight: torch.Tensor | None = None, **options: float) -> torch.nn.Module:
    spec = registry.find("losses", name)
    return spec.build(weight=weight, **{key: value for key, value in options.items() if key in spec.options})


def test_equals_its_reference(name: str) -> None:
    spec = registry.find("losses", name)
    for seed in range(12):
        torch.manual_seed(seed)
        logits, target = 4 * torch.randn(30, 7, dtype=torch.float64, requires_grad=True), torch.randint(7, (30,))
        weight = torch.rand(7, dtype=torch.float64) + 0.1 if seed % 2 else None
        options = {"focal_gamma": (0.0, 0.5, 2.0)[seed % 3], "label_smoothing": (0.0, 0.1)[seed // 6]}
        options = {key: value for key, value in options.items() if key in spec.options}
        got, want = spec.build(weight=weight, **options)(logits, target), spec.reference(logits, target, weight, **options)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, logits)[0], torch.autograd.grad(want, logits)[0])


def test_derivative(name: str) -> None:
    logits, target = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda z: build(name)(z, target), (logits,), nondet_tol=0)


def test_extreme_logits_stay_finite(name: str) -> None:
    for gamma in (0.0, 0.5, 2.0):
        logits = torch.tensor([[1e4, -1e4, 0.0], [-80.0, 80.0, 80.0], [0, 0, 0]], requires_grad=True)
        for label in range(3):
            loss = build(name, focal_gamma=gamma)(logits, torch.full((3,), label))
            assert torch.isfinite(loss)
            assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(name: str, dtype: torch.dtype) -> None:
    logits, target = torch.randn(64, 10).to(dtype).requires_grad_(), torch.randint(10, (64,))
    loss = build(name)(logits, target)
    torch.testing.assert_close(loss.double(), build(name)(logits.double(), target), rtol=1e-2, atol=0)
    assert torch.autograd.grad(loss, logits)[0].dtype == dtype


def test_weights_travel_with_the_module(name: str) -> None:
    loss = build(name, weight=torch.ones(3)).double()
    assert next(loss.buffers()).dtype == torch.float64


def test_smoothing_reduces_confidence_at_a_right_row() -> None:
    logits = torch.tensor([[12.0, 0.0, 0.0]], requires_grad=True)
    loss = focal_loss.FocalLoss(2.0, label_smoothing=0.1)(logits, torch.tensor([0]))
    assert torch.autograd.grad(loss, logits)[0][0, 0] > 0


def test_docstrings_run() -> None:
    assert doctest.testmod(focal_loss, extraglobs={"torch": torch}).failed == 0
