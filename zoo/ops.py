"""The focal loss op: schema, PyTorch formula, autograd, and which kernel serves it.

``torch.ops.zoo.focal_loss`` takes logits (N, C) or (N, C, L) and writes the gradient during the forward pass. Its formula
below runs everywhere; ``zoo._C`` (C++) and ``zoo._C_cuda`` put kernels with the same numbers in its place where they were
built. Use :func:`focal_loss`, which checks its arguments.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoo.focal_formula import check_labels, formula, shapes

REDUCTIONS = ("none", "mean", "sum", "weighted_mean")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.int64, torch.int32, torch.uint8)
_PLAIN = (Tensor, torch.nn.Parameter)

_library = torch.library.Library("zoo", "DEF")
_library.define(
    "focal_loss(Tensor logits, Tensor target, Tensor? weight, float gamma, float label_smoothing, float scale,"
    " int ignore_index, int reduction, bool want_grad, bool want_rows) -> (Tensor loss, Tensor grad, Tensor p, Tensor factor)"
)


class WithStats(NamedTuple):
    """What :func:`focal_loss_with_stats` returns; only ``loss`` carries a gradient."""

    loss: Tensor
    p: Tensor
    """p_t of each row, shaped as the target; 1 for ignored rows."""
    factor: Tensor
    """Mean of (1 - p_t)^gamma over the rows that are not ignored; 0 if there are none."""


def focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
) -> Tensor:
    """Focal loss of each row, l = -w_y (1 - p_t)^gamma log p_t, reduced (Lin et al. 2017, eq. 4; weights: Cui et al. 2019).

    p_t is the softmax probability of the label from the unweighted logits; gamma 0 is cross entropy. With label smoothing s
    the target is q = (1 - s) onehot + s / C as in ``F.cross_entropy`` and each class keeps its own modulating factor,
    l = -sum_c w_c q_c (1 - p_c)^gamma log p_c (Mukhoti et al. 2020, the focal loss of a distribution q): the smoothing then
    still acts on rows that are already right, where a single factor (1 - p_t)^gamma would take it away.

    Args:
        logits: (N, C) or (N, C, d1, ...) float32, float64, bfloat16 or float16, any strides.
        target: (N,) or (N, d1, ...) int64, int32 or uint8 labels in [0, C), or ``ignore_index``.
        weight: (C,) floating-point weight of each class; takes no gradient.
        reduction: "none"; "mean" over the rows that are not ignored; "sum"; "weighted_mean": divided by the sum of their
            weights, as ``F.cross_entropy`` does. No rows, or all ignored: 0 with zero gradient.
        scale: factor on loss and gradient, applied before a half-precision gradient is rounded.

    Returns:
        The loss in float32 (float64 for float64 logits; a float16 sum would overflow); shaped as target for "none".

    Raises:
        IndexError: a label out of range. On the CPU before anything is written. On CUDA that row's loss is NaN and its
            gradient 0, and the error comes later, see :func:`raise_wrong_label`; ``ZOO_SYNC=1`` raises in place.
        TypeError, ValueError: an argument of wrong type, shape, device or range.
        NotImplementedError: second derivatives, forward mode and ``torch.func.vmap``.
    """
    if _C is not None and not torch.compiler.is_compiling():
        loss = _direct(logits, target, weight, gamma, ignore_index, label_smoothing, reduction, scale)
        if loss is not None:
            return loss
    return _call(logits, target, gamma, weight, ignore_index, label_smoothing, reduction, scale, False)[0]


def focal_loss_with_stats(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
) -> WithStats:
    """:func:`focal_loss` with p_t of each row and the mean modulating factor, from the same pass over the logits."""
    return WithStats(*_call(logits, target, gamma, weight, ignore_index, label_smoothing, reduction, scale, True))


def raise_wrong_label() -> None:
    """Tell of a label out of range that a kernel on CUDA has met since the last call; without one this costs a memory read.

    It waits for no device: a kernel's find is seen once its stream was waited for, by ``loss.item()`` for instance. Eager
    calls of :func:`focal_loss` on CUDA begin with it and ``zoo train`` calls it when a loss is not finite; after compiled
    steps or a CUDA graph's replay call it yourself. The PyTorch formula leaves NaN alone.

    Raises:
        IndexError: naming one such row, which is forgotten then; the device remains usable.
    """
    if _C_cuda is not None and (row := _C_cuda.take_wrong_row()) >= 0:
        raise IndexError(
            f"target row {row} of an earlier focal loss on CUDA was out of range (its loss NaN, its gradient 0); set ZOO_SYNC=1"
            " to see the call and the label"
        )


def kernel() -> str:
    """One line that says what serves the loss here: "C++ avx512, CUDA", "PyTorch (no compiler found)", or a load error."""
    if _broken:
        return _broken
    served = []
    if _C is not None:
        served.append(f"C++ {_C.capability(None)}")
    if _C_cuda is not None and torch.cuda.is_available():
        served.append("CUDA")
    return ", ".join(served) or f"PyTorch ({_reason()})"


def _call(
    logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None, ignore_index: int,
    label_smoothing: float, reduction: str, scale: float, want_rows: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if _broken:
        raise ImportError(_broken)
    _check(logits, target, gamma, weight, ignore_index, label_smoothing, reduction, scale)
    shape = target.shape
    if logits.dim() > 3:
        logits, target = logits.flatten(2), target.flatten(1)
    if weight is not None:
        weight = _prepared(weight, torch.float64 if logits.dtype == torch.float64 else torch.float32)
    settings = (float(gamma), float(label_smoothing), float(scale), int(ignore_index), REDUCTIONS.index(reduction))
    want_grad = logits.requires_grad and torch.is_grad_enabled()
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(logits).tangent is not None:
        raise NotImplementedError("focal_loss has no forward-mode derivative (jvp); use reverse mode")
    if torch.compiler.is_compiling():
        loss, _, p, factor = torch.ops.zoo.focal_loss(logits, target, weight, *settings, want_grad, want_rows)
    elif not want_grad:
        loss, _, p, factor = _run(logits, target, weight, settings, False, want_rows)
    elif _in_transform():
        loss, _, p, factor = _FocalTransformed.apply(logits, target, weight, settings, want_rows)
    else:
        with torch.no_grad():
            made = _run(logits, target, weight, settings, True, want_rows)
        loss, _, p, factor = _Focal.apply(logits, made)
    if len(shape) > 2:
        loss = loss.reshape(shape) if reduction == "none" else loss
        p = p.reshape(shape) if want_rows else p
    return loss, p, factor


def _check(
    logits: Tensor, target: Tensor, gamma: float, weight: Tensor | None, ignore_index: int,
    label_smoothing: float, reduction: str, scale: float,
) -> None:  # fmt: skip
    """Everything about the arguments but the labels' values, which the kernels look at."""
    for name, tensor in (("logits", logits), ("target", target)) + ((("weight", weight),) if weight is not None else ()):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits must be float32, float64, bfloat16 or float16, not {_short(logits.dtype)}")
    if target.dtype not in LABELS:
        raise TypeError(f"target must be int64, int32 or uint8, not {_short(target.dtype)}")
    if logits.dim() < 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be (N, C) or (N, C, d1, ...) with C >= 1, not {tuple(logits.shape)}")
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        wanted = tuple(logits.shape[:1] + logits.shape[2:])
        raise ValueError(f"target must be {wanted} for logits {tuple(logits.shape)}, not {tuple(target.shape)}")
    if target.device != logits.device:
        raise ValueError(f"target must be on {logits.device} like the logits, not on {target.device}")
    if weight is not None:
        _check_weight(weight, logits)
    for name, value in (("gamma", gamma), ("label_smoothing", label_smoothing), ("scale", scale)):
        if type(value) is not float and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and >= 0, not {gamma}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, not {scale}")
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
        raise TypeError(f"ignore_index must be an int, not {type(ignore_index).__name__}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")


def _check_weight(weight: Tensor, logits: Tensor) -> None:
    if not weight.dtype.is_floating_point:
        raise TypeError(f"weight must be floating point, not {_short(weight.dtype)}")
    if weight.dim() != 1 or weight.shape[0] != logits.shape[1]:
        raise ValueError(f"weight must be ({logits.shape[1]},) for {logits.shape[1]} classes, not {tuple(weight.shape)}")
    if weight.device != logits.device:
        raise ValueError(f"weight must be on {logits.device} like the logits, not on {weight.device}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError("focal_loss has no gradient for weight; pass weight.detach()")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _run(
    logits: Tensor, target: Tensor, weight: Tensor | None, settings: tuple[Any, ...], want_grad: bool, want_rows: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op, a bad label told as IndexError whoever found it."""
    if logits.is_cuda:
        raise_wrong_label()
        if os.environ.get("ZOO_SYNC") == "1":
            check_labels(target, logits.shape[1], settings[3])
    try:
        return torch.ops.zoo.focal_loss.default(logits, target, weight, *settings, want_grad, want_rows)
    except NotImplementedError:
        raise
    except RuntimeError:
        check_labels(target, logits.shape[1], settings[3])
        raise


def _prepared(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as the kernels want it, untouched where it is so already."""
    if weight.dtype is dtype and not weight.requires_grad and weight.is_contiguous():
        return weight
    return weight.detach().to(dtype).contiguous()


def _in_transform() -> bool:
    """Whether torch.func transforms the call."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is memory and nothing more: no subclass, no lazy negation."""
    return type(tensor) in _PLAIN and not tensor.is_neg()


def _is_watched() -> bool:
    """Whether a mode, tracer or transform has to see the op, or forward mode may want its derivative."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def _direct(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, ignore_index: int,
    label_smoothing: float, reduction: str, scale: float,
) -> Tensor | None:  # fmt: skip
    """The loss of plain CPU tensors (N, C) past the dispatcher, checked in C; None for whatever is not plain and right."""
    if not _is_plain(logits) or not logits.is_cpu or not _is_plain(target) or _is_watched():
        return None
    if weight is not None and (type(weight) not in _PLAIN or weight.requires_grad):
        return None
    want_grad = logits.requires_grad and torch.is_grad_enabled()
    loss = torch.empty((), dtype=torch.float64 if logits.dtype is torch.float64 else torch.float32)
    grad = torch.empty_like(logits) if want_grad else None
    bad = _C.run(logits, target, weight, grad, loss, gamma, ignore_index, label_smoothing, reduction, scale)  # type: ignore[union-attr]
    if bad is None:
        return None
    if bad >= 0:
        check_labels(target, logits.shape[1], ignore_index)
    return loss if grad is None else _Focal.apply(logits, (loss, grad))[0]


class _Focal(torch.autograd.Function):
    """Ties a loss to its gradient in eager mode: cheaper than ``register_autograd``, and no multiplication by 1."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, made: tuple[Tensor, ...]) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(made[1])
        ctx.mark_non_differentiable(*made[2:])
        return made

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_grad: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        return _given(ctx, grad_loss, grad_grad), None


def _given(ctx: Any, grad_loss: Tensor | None, grad_grad: Tensor | None) -> Tensor | None:
    """The gradient of the logits: the buffer itself where grad_loss is 1 and nobody may ask again.

    The buffer is an output too, so what is made of it for a second derivative leads back here, and is refused.
    """
    if grad_grad is not None:
        raise NotImplementedError("focal_loss has no second derivative")
    if grad_loss is None:
        return None
    (grad,) = ctx.saved_tensors
    if (
        not torch.is_grad_enabled()
        and _C is not None
        and _C.is_one(grad_loss)
        and not torch._C._autograd._get_current_graph_task_keep_graph()
    ):
        return grad
    return _scaled(grad, grad_loss)


class _FocalTransformed(torch.autograd.Function):
    """The same for torch.func, which wants the context apart from the forward pass."""

    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, weight: Tensor | None, settings: tuple[Any, ...], want_rows: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _run(logits, target, weight, settings, True, want_rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, grad, p, factor = output
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(p, factor)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_grad: Tensor | None, *_: None
    ) -> tuple[Tensor | None, None, None, None, None]:
        return _given(ctx, grad_loss, grad_grad), None, None, None, None

    @staticmethod
    def vmap(*_: Any) -> Any:
        return _no_vmap()


def _scaled(grad: Tensor, grad_loss: Tensor) -> Tensor:
    """grad (N, C[, L]) times grad_loss () or (N[, L])."""
    return (grad * (grad_loss.unsqueeze(1) if grad_loss.dim() else grad_loss)).to(grad.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad, p, factor = output
    ctx.save_for_backward(grad)
    ctx.has_grad = inputs[8]
    ctx.mark_non_differentiable(grad, p, factor)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.has_grad:
        raise RuntimeError("zoo::focal_loss was called with want_grad=False")
    if torch.is_grad_enabled():
        raise NotImplementedError("zoo::focal_loss has no second derivative")
    (grad,) = ctx.saved_tensors
    return (None if grad_loss is None else _scaled(grad, grad_loss), *(None,) * 9)


def _no_vmap(*_: Any) -> Any:
    raise NotImplementedError("focal_loss cannot be vmapped; flatten the mapped dimension into N, reduction='none'")


def _load(name: str) -> ModuleType | None:
    """A compiled part of zoo, or None if it was not built."""
    try:
        return importlib.import_module(f"zoo.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"zoo.{name}":
            raise
    return None


def _load_all() -> tuple[ModuleType | None, ModuleType | None, str]:
    try:
        return _load("_C"), _load("_C_cuda") if torch.version.cuda else None, ""
    except ImportError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        return None, None, f"zoo's compiled part does not load ({first}); rebuild it: pip install -e . (or delete zoo/_C*)"


def _reason() -> str:
    """Why there is no compiled part, as the build noted it."""
    record = Path(__file__).with_name("_build.json")
    if not record.is_file():
        return "extension not built: pip install ."
    reasons = json.loads(record.read_text(encoding="utf-8")).get("reasons", {})
    return reasons.get("_C") or reasons.get("all") or "extension not built: pip install ."


_library.impl("focal_loss", formula, "CompositeExplicitAutograd")
torch.library.register_fake("zoo::focal_loss", shapes, lib=_library)
torch.library.register_autograd("zoo::focal_loss", _backward, setup_context=_save, lib=_library)
torch.library.register_vmap("zoo::focal_loss", _no_vmap, lib=_library)
_C, _C_cuda, _broken = _load_all()
if _C is not None and hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):  # an older torch takes the longer way
    _C.connect(torch.Tensor.__dlpack_c_exchange_api__)
