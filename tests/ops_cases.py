"""Shared by the tests of the focal loss op: inputs, tolerances, available kernels."""

from __future__ import annotations

import itertools

import mpmath
import torch
from torch import Tensor

from zoo import ops

FALLBACK = "formula"
GAMMAS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)


def _sets() -> list[str]:
    """The formula and each instruction set of this CPU and build."""
    found = [FALLBACK]
    if ops._C is not None:
        before = ops._C.capability(None)
        for name in ("default", "avx2", "avx512"):
            try:
                found.append(ops._C.capability(name))
            except ValueError:
                continue
        ops._C.capability(before)
    return found


SETS = _sets()


def samples(n: int = 70, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple]:
    """Arguments of the raw op over classes (those of each kernel), reductions, gammas, weights, smoothing and ignored rows."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for number, classes in enumerate((1, 2, 3, 4, 7, 8, 10, 15, 16, 17, 31, 32, 33, 64, 100, 257, 1000, 200, 1024, 1500)):
        for case in range(6):
            rows = (1, 5, n, 64, 130, 16)[(case + number) % 6]
            logits = (torch.randn(rows, classes, generator=draw, dtype=torch.float64) * (3, 10, 40)[case % 3]).to(dtype)
            target = torch.randint(classes, (rows,), generator=draw)
            if case % 2:
                target[torch.rand(rows, generator=draw) < 0.2] = -100
            real = torch.float64 if dtype == torch.float64 else torch.float32
            weight = torch.rand(classes, generator=draw, dtype=real) + 0.1 if case % 3 else None
            gamma = (2.0, 0.0, 0.5, 1.0, 3.3, 2.0)[case]
            smoothing = 0.1 if (case + number) % 5 == 0 else 0.0
            found.append((logits, target, weight, gamma, smoothing, 1.0 + case, -100, (case + number) % 4, True, True))
    return found


TOLERANCE = {torch.float64: 1e-10, torch.float32: 4e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}  # half types: one ulp


def agree(want: tuple[Tensor, ...], got: tuple[Tensor, ...], args: tuple, single: float = TOLERANCE[torch.float32]) -> None:
    """Assert equal loss, gradient, p_t and factor up to rounding; ``single`` if computed in float32."""
    dtype, smoothing = args[0].dtype, args[4] or args[1].is_floating_point() or args[10:11] not in ((), (None,))
    for name, a, b in zip(("loss", "grad", "p", "factor"), want, got, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, name
        computed = TOLERANCE[dtype] if dtype == torch.float64 else single
        tolerance = max(computed, TOLERANCE[dtype]) if name == "grad" else computed
        # with smoothing a gradient crosses zero, and half types have a smallest step
        step = 6e-8 if dtype == torch.float16 and name == "grad" else 0.0
        floor = max(1e-30, 1e-2 * float(a.double().abs().max()) if smoothing and a.numel() else 0)
        error = ((a.double() - b.double()).abs() - step).clamp(min=0) / (a.double().abs() + floor)
        assert error.numel() == 0 or error.max() <= tolerance, (name, args[0].shape, args[3:8], error.max())


def both(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    loss = ops.focal_loss(leaf, target)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def truth(row: list[float], label: int, gamma: float, weight: float = 1.0) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """Loss and gradient of one row to 60 digits (far beyond: 1 - p_t comes from the other classes)."""
    with mpmath.workdps(60):
        z = [mpmath.mpf(value) for value in row]
        e = [mpmath.exp(value - max(z)) for value in z]
        total = mpmath.fsum(e)
        p = [value / total for value in e]
        q = mpmath.fsum(value for c, value in enumerate(e) if c != label) / total
        log_p = z[label] - max(z) - mpmath.log(total) if q > 0.5 else mpmath.log1p(-q)
        power = mpmath.mpf(1) if gamma == 0 else q**gamma
        slope = power - (gamma * power / q * p[label] * log_p if q else 0)
        grad = [weight * slope * (-q if c == label else p[c]) for c in range(len(row))]
        return -weight * power * log_p, grad


def hard_rows() -> list[tuple[list[float], int]]:
    """Logits up to +-1e4; the label is the first, last, largest, smallest or tied class."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for size, spread in itertools.product((2, 3, 10, 17), (0.1, 3, 12, 29, 31, 60, 300, 1e4)):
        for _ in range(3):
            z = ((2 * torch.rand(size, generator=draw, dtype=torch.float64) - 1) * spread).float().tolist()
            rows += [(z, z.index(max(z))), (z, z.index(min(z))), (z, int(torch.randint(size, (), generator=draw)))]
    for gap in (0, 1e-6, 1e-3, 0.5, 1, 10, 20, 40, 80, 1000, 2e4):
        rows += [([gap / 2, -gap / 2, -gap / 2], label) for label in (0, 1)]
    return [(torch.tensor(z).tolist(), label) for z, label in rows]


def worst(gamma: float, device: str) -> float:
    """Largest relative error of float32 losses and gradients of the hard rows, wherever the truth is above 1e-30."""
    found = 0.0
    for z, label in hard_rows():
        logits = torch.tensor([z], device=device, requires_grad=True)
        loss = ops.focal_loss(logits, torch.tensor([label], device=device), gamma)
        loss.backward()
        true_loss, true_grad = truth(z, label, gamma)
        for got, want in zip([loss.item(), *logits.grad[0].tolist()], [true_loss, *true_grad], strict=True):
            assert got == got and abs(got) < 1e30, (z, label, got)
            if abs(want) > 1e-30:
                found = max(found, float(abs(got - want) / abs(want)))
    return found
