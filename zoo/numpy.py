"""The focal loss of NumPy arrays and its gradient, without torch: for users of NumPy, JAX and scikit-learn.

The arguments are those of :func:`zoo.ops.focal_loss`. There are three implementations of the same loss: ``zoo._native``, the C++
kernel without torch, which is built for one Python version; the same kernel in ``zoo._C`` through torch, for every other version;
and the formula in NumPy, if nothing is built. :func:`kernel` names the implementation in use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zoo import focal_options
from zoo.focal_options import REDUCTIONS

__all__ = ["focal_loss", "focal_loss_and_grad", "kernel"]

Loss = np.floating[Any] | NDArray[np.floating[Any]]
Made = tuple[Loss, NDArray[np.floating[Any]] | None]
DTYPES = (np.float32, np.float64, np.float16)


def focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    gamma: float = 2.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
) -> Loss:
    """Focal loss of each row, l = -w_y (1 - p_t)^gamma log p_t, reduced (Lin et al. 2017, eq. 4); gamma 0 is cross entropy.

    For a target of class shares q, l = -sum_c w_c q_c (1 - p_c)^gamma log p_c (Mukhoti et al. 2020). Label smoothing s replaces q by
    (1 - s) q + s / C.

    Args:
        logits: (N, C) float32, float64 or float16, any strides; or anything that ``numpy.asarray`` converts, such as a JAX array.
        target: (N,) labels of an integer type in [0, C), or ``ignore_index``; or (N, C) floating-point class shares.
        weight: (C,) weight of each class, for example :func:`zoo.effective_weights` of the class counts.
        reduction: "none"; "mean" over the rows that are not ignored; "sum"; "weighted_mean": divided by the sum of the labels'
            weights, or by the number of rows if the target is shares. Without rows, or if all are ignored, the loss is 0.
        scale: factor of the loss and gradient.

    Returns:
        The loss in float32 (float64 for float64 logits): a scalar, or (N,) for "none".

    Raises:
        IndexError: a label out of range, with its position.
        TypeError, ValueError: an argument of wrong type, shape or range.

    Example:
        >>> round(float(focal_loss(np.zeros((1, 2)), [0])), 4)  # 0.5^2 log 2
        0.1733
    """
    return _compute(_prepare(logits, target, gamma, weight, ignore_index, label_smoothing, reduction, scale), False)[0]


def focal_loss_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    gamma: float = 2.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
) -> tuple[Loss, NDArray[np.floating[Any]]]:
    """:func:`focal_loss` and its gradient with respect to the logits, (N, C) in their type, from one pass over them.

    With "none", row n of the gradient is the gradient of the loss of row n. The gradient of an ignored row is 0.

    Example:
        >>> focal_loss_and_grad(np.zeros((1, 2)), [0], gamma=0)[1]
        array([[-0.5,  0.5]])
    """
    loss, grad = _compute(_prepare(logits, target, gamma, weight, ignore_index, label_smoothing, reduction, scale), True)
    assert grad is not None
    return loss, grad


def kernel() -> str:
    """The implementation in use, in one line: "C++ avx512", "C++ avx512 through torch (why)" or "numpy (why)"."""
    return _way()[1]


class Call(NamedTuple):
    """One call with checked arguments, except for the labels' values."""

    logits: NDArray[Any]
    target: NDArray[Any]
    """(N,) int64 labels, or class shares (N, C) in the type of the loss."""
    weight: NDArray[Any] | None
    gamma: float
    label_smoothing: float
    scale: float
    ignore_index: int
    reduction: int

    @property
    def soft(self) -> bool:
        return self.target.ndim == 2

    @property
    def dtype(self) -> np.dtype[Any]:
        return _accurate(self.logits)


def _accurate(logits: NDArray[Any]) -> np.dtype[Any]:
    """The type of the loss, the weights and the shares."""
    return np.dtype(np.float64 if logits.dtype == np.float64 else np.float32)


def _prepare(
    logits: Any, target: Any, gamma: Any, weight: Any, ignore_index: Any, label_smoothing: Any, reduction: Any, scale: Any
) -> Call:
    logits, target = _array("logits", logits), _array("target", target)
    if logits.dtype.type not in DTYPES:
        raise TypeError(f"logits must be float32, float64 or float16, not {logits.dtype}")
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be (N, C) with C >= 1, not {logits.shape}")
    soft = target.dtype.kind == "f"
    if not soft and target.dtype.kind not in "iu":
        raise TypeError(f"target must be of an integer type (labels) or a float type (shares), not {target.dtype}")
    if target.shape != (wanted := logits.shape if soft else logits.shape[:1]):
        what = "shares" if soft else "labels"
        raise ValueError(f"target of {what} must be {wanted} for logits {logits.shape}, not {target.shape}")
    settings = focal_options.check(gamma, label_smoothing, scale, ignore_index, reduction, soft=soft)
    logits = _whole(logits)
    if target.dtype == np.uint64:
        target = np.minimum(target, np.uint64(2**63 - 1))  # beyond int64: no label either
    target = target.astype(_accurate(logits) if soft else np.int64, copy=False)
    return Call(logits, _whole(target), _weight(weight, logits), *settings)


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:  # a ragged list, a tensor on a GPU or with a gradient: numpy and torch raise several kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise TypeError(f"{name} must be convertible to an array, not {type(value).__name__} ({first})") from error


def _whole(array: NDArray[Any]) -> NDArray[Any]:
    """The array as C++ reads it: native byte order, aligned, with strides of whole elements, as most arrays are."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.flags.aligned and all(stride % array.itemsize == 0 for stride in array.strides):
        return array
    return array.copy(order="C")


def _weight(weight: Any, logits: NDArray[Any]) -> NDArray[Any] | None:
    if weight is None:
        return None
    weight, classes = _array("weight", weight), logits.shape[1]
    if weight.dtype.kind not in "fiu":
        raise TypeError(f"weight must be floating point or integers, not {weight.dtype}")
    if weight.shape != (classes,):
        raise ValueError(f"weight must be ({classes},) for {classes} classes, not {weight.shape}")
    return np.ascontiguousarray(weight, _accurate(logits))


def _compute(call: Call, want_grad: bool) -> Made:
    try:
        return _way()[0](call, want_grad)
    except IndexError:
        _check_labels(call)
        raise


def _check_labels(call: Call) -> None:
    if call.soft:
        return
    label, classes = call.target, call.logits.shape[1]
    bad = np.flatnonzero(((label < 0) | (label >= classes)) & (label != call.ignore_index))
    if bad.size:
        raise focal_options.wrong_label("target", f"[{bad[0]}]", int(label[bad[0]]), classes, call.ignore_index)


@functools.cache
def _way() -> tuple[Callable[[Call, bool], Made], str]:
    """The implementation to use, and its name in :func:`kernel`."""
    try:
        return _by_native, f"C++ {importlib.import_module('zoo._native').capability()}"
    except ImportError as error:
        why = _missing(error)
    if importlib.util.find_spec("zoo._C") is not None:
        try:
            served = importlib.import_module("zoo.ops").kernel()
        except Exception:  # no torch, or one that does not load, for which it raises several kinds
            served = ""
        if served.startswith("C++"):
            return _by_torch, f"{served.split(',')[0]} through torch ({why})"
    return _by_formula, f"numpy ({why})"


def _missing(error: ImportError) -> str:
    """Why there is no ``zoo._native``."""
    if not isinstance(error, ModuleNotFoundError):
        return f"zoo._native does not load: {str(error).splitlines()[0][:120]}"
    built = sorted(path.name.split(".")[1] for path in Path(__file__).parent.glob("_native.*"))
    if not built:
        return "zoo._native is not built"
    return f"zoo._native is built for {' and '.join(built)}, this is {sys.implementation.cache_tag}"


def _by_native(call: Call, want_grad: bool) -> Made:
    native: Any = importlib.import_module("zoo._native")
    logits, name = call.logits, REDUCTIONS[call.reduction]
    rows = np.empty(len(logits), call.dtype) if name == "none" else None
    grad = np.empty(logits.shape, logits.dtype) if want_grad else None
    loss, _ = native.focal_loss(
        logits, call.target, gamma=call.gamma, weight=call.weight, ignore_index=call.ignore_index,
        label_smoothing=call.label_smoothing, reduction=name, scale=call.scale, grad=grad, rows=rows,
    )  # fmt: skip
    return call.dtype.type(loss) if rows is None else rows, grad


def _by_torch(call: Call, want_grad: bool) -> Made:
    import torch

    from zoo import ops

    def tensor(array: NDArray[Any] | None) -> Any:  # torch has no negative strides and warns of read-only memory
        return None if array is None else torch.from_numpy(np.require(array, requirements=["C", "W"]))

    settings = call.ignore_index, call.label_smoothing, REDUCTIONS[call.reduction], call.scale
    with torch.inference_mode(False), torch.enable_grad():
        logits = tensor(call.logits).requires_grad_(want_grad)
        loss = ops.focal_loss(logits, tensor(call.target), call.gamma, tensor(call.weight), *settings)
        grad = torch.autograd.grad(loss.sum(), logits)[0].numpy() if want_grad else None
    return loss.detach().numpy()[()], grad


def _by_formula(call: Call, want_grad: bool) -> Made:
    """In float64, as in ``zoo/focal_formula.py``."""
    _check_labels(call)
    z = call.logits.astype(np.float64)
    used = np.ones(len(z), bool) if call.soft else call.target != call.ignore_index
    label = np.zeros(len(z), np.int64) if call.soft else np.where(used, call.target, 0)
    shares = call.target.astype(np.float64) if call.soft else (np.arange(z.shape[1]) == label[:, None]).astype(np.float64)
    w = np.ones(z.shape[1]) if call.weight is None else call.weight.astype(np.float64)
    a = w * ((1 - call.label_smoothing) * shares + call.label_smoothing / z.shape[1])  # (N, C)
    over = {"mean": used.sum(), "weighted_mean": used.sum() if call.soft else w[label][used].sum()}
    total = float(over.get(REDUCTIONS[call.reduction], 1))
    factor = 0.0 if total == 0 else call.scale / total
    with np.errstate(all="ignore"):
        p, q, log_p = _probabilities(z)
        power = q**call.gamma
        term = np.where(a == 0, a * p, -a * power * log_p).sum(1)  # a p is NaN in a row without a softmax
        rows = np.where(used, term, 0) * factor
        grad = None
        if want_grad:
            single = not call.soft and call.label_smoothing == 0
            slope = _slope(a, p, q, log_p, power, call.gamma, shares > 0 if single else None)
            grad = np.where(used[:, None], slope * factor, 0).astype(call.logits.dtype)
    loss = rows.astype(call.dtype) if REDUCTIONS[call.reduction] == "none" else call.dtype.type(rows.sum())
    return loss, grad


def _probabilities(z: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """p, 1 - p and log p (N, C), the last two of the largest class from the other classes' sum."""
    largest = np.arange(z.shape[1]) == z.argmax(1)[:, None]
    shifted = z - z.max(1, keepdims=True)
    e = np.exp(shifted)
    below = np.where(largest, 0, e).sum(1, keepdims=True)  # sum of all but the largest
    total = 1 + below
    q = np.where(largest, below, total - e) / total
    log_p = np.where(largest, -np.log1p(below), shifted - np.log(total))
    broken = np.isnan(shifted).any(1, keepdims=True)  # a NaN or +inf logit, or all -inf: the row has no softmax
    return np.where(broken, np.nan, e / total), np.where(broken, np.nan, q), np.where(broken, np.nan, log_p)


def _slope(a: Any, p: Any, q: Any, log_p: Any, power: Any, gamma: float, hot: NDArray[Any] | None) -> NDArray[Any]:
    """d loss / d z (N, C). With g_c = a_c q_c^gamma (1 - gamma p_c log p_c / q_c): p_j sum_{c != j} g_c - g_j q_j.

    ``hot`` marks the only class that counts, where there is one: the sum without it is zero, not a rounding error.
    """
    ratio = np.where(q == 0, -1, log_p / q)  # the limit at p = 1; that of p log p at p = 0 is 0
    g = np.where(a == 0, 0, a * power * (1 - gamma * np.where(p == 0, 0, p * ratio)))
    whole = g.sum(1, keepdims=True)
    return p * (whole - g) - g * q if hot is None else np.where(hot, -whole * q, p * whole)
