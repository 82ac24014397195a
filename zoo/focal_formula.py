"""The focal loss in PyTorch alone, in float64 where the device has it: the fallback, and what the kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor


def shapes(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, label_smoothing: float, scale: float,
    ignore_index: int, reduction: int, want_grad: bool, want_rows: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Empty tensors of the shapes and types that the op returns."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss = logits.new_empty(target.shape if reduction == 0 else (), dtype=dtype)
    grad = torch.empty_like(logits) if want_grad else logits.new_empty((0,))
    return loss, grad, logits.new_empty(target.shape if want_rows else (0,), dtype=dtype), logits.new_empty((), dtype=dtype)


def formula(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, label_smoothing: float, scale: float,
    ignore_index: int, reduction: int, want_grad: bool, want_rows: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The op in PyTorch, in float64 where the device has it; what the kernels are held to."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    classes = logits.shape[1]
    z = logits.movedim(1, -1).reshape(-1, classes).to(exact)  # (M, C), M = N L
    y = target.reshape(-1).long()
    used = y != ignore_index
    if logits.device.type == "cpu":
        check_labels(target, classes, ignore_index)
    wrong = used & ((y < 0) | (y >= classes))
    y = y.where(used & ~wrong, 0)
    hot = torch.nn.functional.one_hot(y, classes).bool() if len(y) else z.bool()
    w = torch.ones(classes, dtype=exact, device=z.device) if weight is None else weight.to(exact)
    share = w * label_smoothing / classes
    a = torch.where(hot, w * (1 - label_smoothing) + share, share)  # (M, C) weight times smoothed target

    p, q, log_p = _probabilities(z)
    power = (q**gamma).where(q == q, q)  # NaN ** 0 would be 1
    term = torch.where(a == 0, 0, -a * power * log_p).sum(1)
    loss = torch.where(wrong, torch.nan, torch.where(used, term, 0))
    seen = used.sum()
    total = {0: 1.0, 1: seen, 2: 1.0, 3: torch.where(used, w[y], 0).sum()}[reduction]
    factor = scale / torch.as_tensor(total, dtype=exact, device=z.device)
    factor = torch.where(torch.isfinite(factor), factor, 0)
    picked = power.gather(1, y[:, None]).squeeze(1)
    grad = logits.new_empty((0,))
    if want_grad:
        slope = _slope(a, p, q, log_p, power, gamma, hot, label_smoothing == 0) * factor
        slope = torch.where((used & ~wrong)[:, None], slope, 0)
        back = slope.reshape(logits.movedim(1, -1).shape).movedim(-1, 1)
        grad = torch.empty_like(logits).copy_(back)
    reduced = (loss * factor).reshape(target.shape) if reduction == 0 else (loss * factor).sum()
    rows = torch.where(wrong, torch.nan, torch.where(used, p.gather(1, y[:, None]).squeeze(1), 1))
    mean_power = torch.where(used & ~wrong, picked, 0).sum() / seen.clamp(min=1)
    return (
        reduced.to(dtype),
        grad,
        rows.reshape(target.shape).to(dtype) if want_rows else z.new_empty((0,), dtype=dtype),
        mean_power.to(dtype),
    )


def _probabilities(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, 1 - p and log p of each class of z (M, C), the last two from the other classes' sum where p is near 1."""
    top = z.argmax(1, keepdim=True)
    shifted = z - z.gather(1, top)
    e = shifted.exp()
    below = e.scatter(1, top, 0).sum(1, keepdim=True)  # sum of all but the largest
    total = 1 + below
    q = ((total - e) / total).scatter(1, top, below / total)
    log_p = (shifted - total.log()).scatter(1, top, -below.log1p())
    broken = torch.isnan(shifted).any(1, keepdim=True)  # a NaN or +inf logit, or all -inf: the row has no softmax
    return tuple(each.masked_fill(broken, torch.nan) for each in (e / total, q, log_p))  # type: ignore[return-value]


def _slope(a: Tensor, p: Tensor, q: Tensor, log_p: Tensor, power: Tensor, gamma: float, hot: Tensor, single: bool) -> Tensor:
    """d loss / d z (M, C). With g_c = a_c q_c^gamma (1 - gamma p_c log p_c / q_c): p_j sum_{c != j} g_c - g_j q_j.

    log p / q has the limit -1 at p = 1 and p log p the limit 0 at p = 0, so no gamma makes a NaN.
    """
    ratio = torch.where(q == 0, -1, log_p / q)
    inner = torch.where(p == 0, 0, p * ratio)
    g = torch.where(a == 0, 0, a * power * (1 - gamma * inner))
    if single:  # one class has weight: the sum without it is zero, not a rounding error
        one = g.sum(1, keepdim=True)
        return torch.where(hot, -one * q, p * one)
    return p * (g.sum(1, keepdim=True) - g) - g * q


def check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    bad = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bad.any():
        row = bad.nonzero()[0].tolist()
        raise IndexError(
            f"target[{', '.join(map(str, row))}]={target[tuple(row)].item()} is out of range for {classes} classes"
            f" (legal: 0 to {classes - 1}, or ignore_index={ignore_index})"
        )
