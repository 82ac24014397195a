"""The focal loss in pure PyTorch, in float64 if the device has it: the fallback, the reference of the kernels, and the source of every derivative beyond the first."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.focal_options import wrong_label

FLOOR = -1e4
"""Replaces the logarithm of zero: exp(FLOOR) is 0, and FLOOR has a derivative, unlike -inf."""


def shapes(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, label_smoothing: float, scale: float,
    ignore_index: int, reduction: int, want_grad: bool, want_rows: bool,
    other: Tensor | None = None, share: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Empty tensors of the shapes and types that the op returns."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.shape[:1] + logits.shape[2:]
    loss = logits.new_empty(rows if reduction == 0 else (), dtype=dtype)
    grad = torch.empty_like(logits) if want_grad else logits.new_empty((0,))
    return loss, grad, logits.new_empty(rows if want_rows else (0,), dtype=dtype), logits.new_empty((), dtype=dtype)


class Rows(NamedTuple):
    """The targets of M rows, row by row."""

    q: Tensor
    """(M, C) shares of the classes before label smoothing; any finite values for a row that does not count."""
    used: Tensor
    """(M,) whether the row is not ignored."""
    wrong: Tensor
    """(M,) whether a label of the row is out of range."""
    label: Tensor | None
    """(M,) the label, if each row has one."""

    @property
    def right(self) -> Tensor:
        return self.used & ~self.wrong


def rows_of(z: Tensor, target: Tensor, ignore_index: int, other: Tensor | None, share: Tensor | None) -> Rows:
    """Labels, two labels with the share of the first, or shares (N, C[, L]), for logits ``z`` (M, C)."""
    classes = z.shape[1]
    if target.is_floating_point():
        q = target.movedim(1, -1).reshape(-1, classes).to(z.dtype)
        used = torch.ones_like(z[:, 0], dtype=torch.bool)
        return Rows(q, used, ~used, None)
    number = torch.arange(classes, device=z.device)
    labels = [each.reshape(-1).long() for each in (target, other) if each is not None]
    used = labels[0] != ignore_index
    if other is not None:
        used = used & (labels[1] != ignore_index)
    wrong = ~used & used
    for each in labels:
        wrong = wrong | (used & ((each < 0) | (each >= classes)))
    labels = [each.where(used & ~wrong, 0) for each in labels]
    hot = [(number == each[:, None]).to(z.dtype) for each in labels]
    if share is None:
        return Rows(hot[0], used, wrong, labels[0])
    first = share.reshape(-1, 1).to(z.dtype)
    return Rows(first * hot[0] + (1 - first) * hot[1], used, wrong, None)


def flat(logits: Tensor) -> Tensor:
    """Logits (N, C[, L]) as (N L, C), in the type that the formula computes in."""
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    return logits.movedim(1, -1).reshape(-1, logits.shape[1]).to(exact)


def formula(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, label_smoothing: float, scale: float,
    ignore_index: int, reduction: int, want_grad: bool, want_rows: bool,
    other: Tensor | None = None, share: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The op in PyTorch, in float64 if the device has it; the reference of the kernels."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape = logits.shape[:1] + logits.shape[2:]
    if any(each.numel() and each.data_ptr() == 0 for each in (logits, target)):
        # torch's operators would crash
        raise RuntimeError("a tensor of the focal loss has elements, but its storage was freed")
    z = flat(logits)  # (M, C), M = N L
    if logits.device.type == "cpu":
        check_labels(target, z.shape[1], ignore_index, other)
    rows = rows_of(z, target, ignore_index, other, share)
    w = z.new_ones(z.shape[1]) if weight is None else weight.to(z.dtype)
    a = w * smoothed(rows.q, label_smoothing)  # (M, C) weight times smoothed target

    p, q, log_p = _probabilities(z)
    power = (q**gamma).where(q == q, q)  # NaN ** 0 would be 1
    term = torch.where(a == 0, a * p, -a * power * log_p).sum(1)  # a p is NaN in a row without a softmax
    loss = torch.where(rows.wrong, torch.nan, torch.where(rows.used, term, 0))
    factor = _factor(rows, w, scale, reduction)
    grad = logits.new_empty((0,))
    if want_grad:
        single = rows.label is not None and label_smoothing == 0
        slope = _slope(a, p, q, log_p, power, gamma, rows.q > 0, single) * factor
        slope = torch.where(rows.right[:, None], slope, 0)
        back = slope.reshape(logits.movedim(1, -1).shape).movedim(-1, 1)
        grad = torch.empty_like(logits).copy_(back)
    reduced = (loss * factor).reshape(shape) if reduction == 0 else (loss * factor).sum()
    p_t, mean_power = _stats(rows, p, power)
    return (
        reduced.to(dtype),
        grad,
        p_t.reshape(shape).to(dtype) if want_rows else z.new_empty((0,), dtype=dtype),
        mean_power.to(dtype),
    )


def formula_in_place(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, label_smoothing: float, scale: float,
    ignore_index: int, reduction: int, want_rows: bool, other: Tensor | None = None, share: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """:func:`formula`, its gradient written over the logits."""
    settings = gamma, label_smoothing, scale, ignore_index, reduction
    loss, grad, p, factor = formula(logits, target, weight, *settings, True, want_rows, other, share)
    logits.copy_(grad)
    return loss, p, factor


def smoothed(q: Tensor, label_smoothing: float) -> Tensor:
    """Shares (M, C) after label smoothing, as in ``F.cross_entropy``."""
    return q if label_smoothing == 0 else (1 - label_smoothing) * q + label_smoothing / q.shape[1]


def _factor(rows: Rows, w: Tensor, scale: float, reduction: int) -> Tensor:
    """Factor of the sum over rows (or of each row): ``scale`` divided by the rows that count, or by their labels' weights."""
    counted = rows.used.sum().to(w.dtype)
    if reduction == 3 and rows.label is not None:
        counted = torch.where(rows.used, w[rows.label], 0).sum()
    total = counted if reduction in (1, 3) else torch.ones_like(counted)
    none = total == 0
    return torch.where(none, 0, scale / torch.where(none, 1, total))


def _stats(rows: Rows, p: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """p_t (M,) of each row, 1 for ignored rows, and the mean modulating factor of the others."""
    p_t = torch.where(rows.wrong, torch.nan, torch.where(rows.used, (rows.q * p).sum(1), 1))
    picked = torch.where(rows.right, (rows.q * power).sum(1), 0)
    return p_t, picked.sum() / rows.used.sum().clamp(min=1)


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


def differentiable(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, label_smoothing: float, scale: float,
    ignore_index: int, reduction: int, want_rows: bool, other: Tensor | None = None, share: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, p_t and mean modulating factor, built from PyTorch's operators only.

    PyTorch takes every derivative of it, in logits, weight and shares, in each mode, and maps it over batches. Everything is
    in logarithms, so that the derivatives hold for extreme logits too. A row with a label out of range is NaN.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape = logits.shape[:1] + logits.shape[2:]
    z = flat(logits)
    rows = rows_of(z, target, ignore_index, other, share)
    z = torch.where(rows.right[:, None], z, 0)  # no NaN of an ignored row reaches a derivative
    z = z * torch.where(z.detach().amax(1, keepdim=True).isfinite(), 1, torch.nan)  # a row without a softmax is NaN as a whole
    w = z.new_ones(z.shape[1]) if weight is None else weight.to(z.dtype)
    a = w * smoothed(rows.q, label_smoothing)
    log_p, log_q = logarithms(z)
    power = torch.ones_like(log_q) if gamma == 0 else (gamma * log_q).exp()
    p = log_p.detach().exp()
    nothing = (a == 0) & torch.isinf(log_p)  # 0 times infinity
    # at p = 0 the factor is the constant 1, added apart: its derivative times log p would be 0 times infinity
    product = power * torch.where(p == 0, 0, log_p) + torch.where((p == 0) & ~nothing, log_p, 0)
    term = -(a * product).sum(1)
    loss = torch.where(rows.wrong, torch.nan, torch.where(rows.used, term, 0)) * _factor(rows, w, scale, reduction)
    p_t, mean_power = _stats(rows, p, power.detach())
    reduced = loss.reshape(shape) if reduction == 0 else loss.sum()
    p_rows = p_t.reshape(shape) if want_rows else p_t.new_empty((0,))
    return reduced.to(dtype), p_rows.detach().to(dtype), mean_power.detach().to(dtype)


def logarithms(z: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log (1 - p) of each class of z (M, C), with their derivatives.

    With b the logarithm of the other classes' sum over the largest class's: log p = log sigmoid(-b) and log (1 - p) =
    log sigmoid(b) of the largest, exact to the last bits however small. The others have p <= 1/2.
    """
    top = z.argmax(1, keepdim=True)
    is_top = torch.arange(z.shape[1], device=z.device) == top
    shifted = z - z.gather(1, top)
    shifted = shifted.masked_fill(is_top & (shifted == 0), 0)  # else the largest's gradient would be 1 - (1 + tiny)
    b = shifted.clamp(min=FLOOR).masked_fill(is_top, FLOOR).logsumexp(1, keepdim=True)
    log_p = shifted + F.logsigmoid(-b)
    p = log_p.exp()
    small = torch.where(is_top | (p == 0), 0, p)  # p = 0: constant, as the limit of p log p is 0 (not NaN)
    return log_p, torch.where(is_top, F.logsigmoid(b), torch.log1p(-small))


def check_labels(target: Tensor, classes: int, ignore_index: int, other: Tensor | None = None) -> None:
    """Check the labels of rows that are not ignored.

    Raises:
        IndexError: naming the first one.
    """
    if target.is_floating_point():
        return
    # as int64: comparing with a tensor of a narrower type would convert ignore_index to that type, -1 to 255
    wide = {name: each.long() for name, each in (("target", target), ("second target", other)) if each is not None}
    ignored = torch.stack([each == ignore_index for each in wide.values()]).any(0)
    for name, labels in wide.items():
        bad = ((labels < 0) | (labels >= classes)) & ~ignored
        if bad.any():
            row = bad.nonzero()[0].tolist()
            at = f"[{', '.join(map(str, row))}]" if row else ""
            raise wrong_label(name, at, int(labels[tuple(row)].item()), classes, ignore_index)
