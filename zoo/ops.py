"""The focal loss op: schema, PyTorch formula, autograd, and choice of the kernel.

``torch.ops.zoo.focal_loss`` takes logits (N, C) or (N, C, L) and computes the gradient during the forward pass. Its formula
(``zoo/focal_formula.py``) runs on every device; ``zoo._C`` (C++) and ``zoo._C_cuda``, if built, replace it with kernels that
return the same values. Use :func:`focal_loss`, which checks its arguments (``zoo/focal_arguments.py``).

There are three paths. Plain CPU tensors without an active mode or tracer are passed to the kernel by address, bypassing the
dispatcher. Other calls that need the value and the first derivative with respect to the logits use the op. Every other
derivative, transform or trace uses the formula in PyTorch's operators (``differentiable``).
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from zoo import focal_kernels
from zoo.focal_arguments import DTYPES, LABELS, Call, Target, Weight, check_inplace, prepare, widened
from zoo.focal_formula import check_labels, differentiable, formula, formula_in_place, shapes
from zoo.focal_kernels import DOUBLE, PLAIN, SINGLE, is_memory, is_watched, unwrapped, versions
from zoo.focal_options import REDUCTIONS

__all__ = [
    "DTYPES",
    "LABELS",
    "REDUCTIONS",
    "Target",
    "WithStats",
    "focal_loss",
    "focal_loss_with_stats",
    "kernel",
    "raise_wrong_label",
]

_default_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_library = torch.library.Library("zoo", "DEF")
_library.define(
    "focal_loss(Tensor logits, Tensor target, Tensor? weight, float gamma, float label_smoothing, float scale,"
    " int ignore_index, int reduction, bool want_grad, bool want_rows, Tensor? other=None, Tensor? share=None)"
    " -> (Tensor loss, Tensor grad, Tensor p, Tensor factor)"
)
_library.define(
    "focal_loss_(Tensor(a!) logits, Tensor target, Tensor? weight, float gamma, float label_smoothing, float scale,"
    " int ignore_index, int reduction, bool want_rows, Tensor? other=None, Tensor? share=None)"
    " -> (Tensor loss, Tensor p, Tensor factor)"
)


class WithStats(NamedTuple):
    """What :func:`focal_loss_with_stats` returns; only ``loss`` carries a gradient."""

    loss: Tensor
    p: Tensor
    """p_t of each row, or the sum of q_c p_c for class shares q; 1 for ignored rows."""
    factor: Tensor
    """Mean of (1 - p_t)^gamma, or of sum_c q_c (1 - p_c)^gamma, over the rows that are not ignored; 0 if there are none."""


def focal_loss(
    logits: Tensor,
    target: Target,
    gamma: float = 2.0,
    weight: Weight | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    """Focal loss of each row, l = -w_y (1 - p_t)^gamma log p_t, reduced (Lin et al. 2017, eq. 4; weights: Cui et al. 2019).

    p_t is the softmax probability of the label from the unweighted logits; gamma 0 is cross entropy. For a target of class shares
    q, l = -sum_c w_c q_c (1 - p_c)^gamma log p_c, where each class has its own modulating factor (Mukhoti et al. 2020, the focal
    loss of a distribution q). Label smoothing s replaces q by (1 - s) q + s / C, as in ``F.cross_entropy``. It then still acts on
    rows that are already classified correctly, where a single factor (1 - p_t)^gamma would suppress it.

    Args:
        logits: (C,), (N, C) or (N, C, d1, ...) float32, float64, bfloat16 or float16, any strides. -inf masks a class: p = 0, and
            its term is 0 if its share or weight is 0. A row with NaN or +inf, or with -inf only, has a loss and gradient of NaN.
        target: (), (N,) or (N, d1, ...) labels of an integer type in [0, C), or ``ignore_index``; or floating-point class shares
            of the logits' shape; or (labels, other labels, share of the first), mixup without the memory of shares (Zhang et al.
            2018): the share is a number, or a tensor with one value or one per row. A row with an ignored label is ignored.
        weight: (C,) floating-point weight of each class, a tensor, a NumPy array or a list of numbers.
        reduction: "none"; "mean" over the rows that are not ignored; "sum"; "weighted_mean": divided as in ``F.cross_entropy``,
            by the sum of the labels' weights, or by the number of rows if the target is shares or two labels. Without rows, or if
            all are ignored, the loss is 0 with zero gradient.
        scale: factor of the loss and gradient, applied before a half-precision gradient is rounded. Under autocast, float16 logits
            are first converted to float32, as for ``F.cross_entropy``, so that a gradient scaler's factor applies before rounding.
        inplace: write the gradient over the logits, if they require one, so that no second tensor of their size is allocated.
            Their values are lost: the logits must not be a leaf or a view, and if another operation (such as an activation before
            the loss) has saved them for its backward pass, that pass raises PyTorch's error about a change in place. Supports only
            eager mode and the first derivative.

    Returns:
        The loss in float32 (float64 for float64 logits; a float16 sum would overflow); one value per row for "none". The kernel
        computes the first derivative with respect to the logits. The formula in PyTorch computes all other derivatives (higher
        orders, with respect to the weight or shares, in forward mode, under ``torch.func``); for the second derivative, the logits
        stay alive until the backward pass.

    Raises:
        IndexError: a label out of range. On the CPU, it is raised before anything is written; under ``torch.jit.trace``, that
            row's loss is NaN instead. On CUDA, that row's loss is NaN and its gradient 0, and the error is raised later, see
            :func:`raise_wrong_label`; with ``ZOO_SYNC=1``, the call itself raises it.
        TypeError, ValueError: an argument of wrong type, shape, device or range.
    """
    if _C is not None and not torch.compiler.is_compiling():
        loss = _direct(logits, target, weight, gamma, ignore_index, label_smoothing, reduction, scale, inplace)
        if loss is not None:
            return loss
    return _call(widened(logits), target, gamma, weight, ignore_index, label_smoothing, reduction, scale, False, inplace)[0]


def focal_loss_with_stats(
    logits: Tensor,
    target: Target,
    gamma: float = 2.0,
    weight: Weight | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
    inplace: bool = False,
) -> WithStats:
    """:func:`focal_loss` with p_t of each row and the mean modulating factor, from the same pass over the logits."""
    return WithStats(
        *_call(widened(logits), target, gamma, weight, ignore_index, label_smoothing, reduction, scale, True, inplace)
    )


def raise_wrong_label() -> None:
    """Raise if a CUDA kernel has found a label out of range since the last call; otherwise, the cost is one memory read.

    The function does not synchronise: the error of a kernel is visible once its stream has been synchronised, for example by
    ``loss.item()``. Eager calls of :func:`focal_loss` on CUDA call this function first, and ``zoo train`` calls it if a loss is not
    finite; after compiled steps or the replay of a CUDA graph, call it yourself. The PyTorch formula returns NaN.

    Raises:
        IndexError: with the number of one such row, which is then cleared; the device remains usable.
    """
    if _C_cuda is not None and (row := _C_cuda.take_wrong_row()) >= 0:
        raise IndexError(
            f"target row {row} of an earlier focal loss on CUDA was out of range (its loss NaN, its gradient 0); set ZOO_SYNC=1"
            " to see the call and the label"
        )


def kernel() -> str:
    """The active kernels of the loss in one line: "C++ avx512, CUDA", "PyTorch (no compiler found)", or a load error."""
    if _broken:
        return _broken
    served = []
    if _C is not None:
        served.append(f"C++ {_C.capability(None)}")
    if _C_cuda is not None and torch.cuda.is_available():
        served.append("CUDA")
    return ", ".join(served) or f"PyTorch ({focal_kernels.reason_missing()})"


def _call(
    logits: Tensor, target: Target, gamma: float, weight: Any, ignore_index: int,
    label_smoothing: float, reduction: str, scale: float, want_rows: bool, inplace: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if _broken:
        raise ImportError(_broken)
    call = prepare(logits, target, gamma, weight, ignore_index, label_smoothing, reduction, scale)
    focal_kernels.gather_dtensors(torch.ops.zoo.focal_loss.default, call.logits)
    want_grad = call.logits.requires_grad and torch.is_grad_enabled()
    transformed = _is_transformed(call)
    if inplace and (want_grad or transformed):
        loss, p, factor = _in_place(logits, call, want_rows)
    elif call.differentiated or transformed:
        loss, p, factor = _by_formula(call, want_rows)
    elif torch.compiler.is_compiling():
        loss, _, p, factor = torch.ops.zoo.focal_loss(*call.arguments(want_grad, want_rows))
    elif want_grad:
        with torch.no_grad():
            made = _run(call, True, want_rows)
        loss, p, factor = _Focal.apply(call.logits, made, call, False)
    else:
        loss, _, p, factor = _run(call, False, want_rows)
    loss = loss.reshape(call.shape) if call.reduction == 0 else loss
    return loss, p.reshape(call.shape) if want_rows else p, factor


def _in_place(logits: Tensor, call: Call, want_rows: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its gradient written over the logits."""
    if call.differentiated or torch.compiler.is_compiling() or is_watched():
        raise ValueError(
            "inplace=True supports only the first derivative in the logits, in eager mode; omit it for a weight or shares that"
            " require grad, and under torch.func, torch.compile and PyTorch's modes"
        )
    check_inplace(logits)
    if call.logits.data_ptr() != logits.data_ptr():
        raise ValueError("inplace=True needs logits whose dimensions after the classes are contiguous in memory")
    with torch.no_grad():
        made = _run(call, True, want_rows, inplace=True)
        torch.autograd.graph.increment_version(logits)
    return _Focal.apply(call.logits, made, call, True)


def _run(call: Call, want_grad: bool, want_rows: bool, inplace: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op; an error for a bad label names its position in the target."""
    classes = call.logits.shape[1]
    if call.logits.is_cuda:
        raise_wrong_label()
        if os.environ.get("ZOO_SYNC") == "1":
            check_labels(call.target, classes, call.ignore_index, call.other)
    try:
        if inplace:
            grad = call.logits.detach()
            loss, p, factor = torch.ops.zoo.focal_loss_.default(*call._replace(logits=grad).arguments(want_rows))
            return loss, grad, p, factor
        return torch.ops.zoo.focal_loss.default(*call.arguments(want_grad, want_rows))
    except IndexError:
        check_labels(call.target, classes, call.ignore_index, call.other)
        raise


def _by_formula(call: Call, want_rows: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The differentiable formula, with its labels checked if their values can be read."""
    if not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack():
        labels, other = unwrapped(call.target), None if call.other is None else unwrapped(call.other)
        if is_memory(labels) and labels.is_cpu and (other is None or other.shape == labels.shape):
            check_labels(labels, call.logits.shape[1], call.ignore_index, other)
    return differentiable(*call.arguments(want_rows))


def _is_transformed(call: Call) -> bool:
    """Whether torch.func or torch.jit.trace transforms the call, or forward mode wants its derivative."""
    if torch.compiler.is_compiling():
        return focal_kernels.transforms_active()
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None:
        return True
    if forward_ad._current_level < 0:
        return False
    tensors = (call.logits, call.weight, call.target, call.share)
    return any(each is not None and forward_ad.unpack_dual(each).tangent is not None for each in tensors)


def _direct(
    logits: Tensor, target: Target, weight: Any, gamma: float, ignore_index: int,
    label_smoothing: float, reduction: str, scale: float, inplace: bool,
) -> Tensor | None:  # fmt: skip
    """The loss of plain CPU tensors (N, C) without the dispatcher, checked in C; None if they are not plain or not valid.

    The C code rejects tensors without memory (efficient zeros, functional tensors and those of vmap).
    """
    if type(logits) not in PLAIN or not logits.is_cpu or type(target) is not Tensor or is_watched():
        return None
    if logits.is_neg() or target.is_neg() or (logits.dtype is torch.float16 and widened(logits) is not logits):
        return None
    if weight is not None and (type(weight) not in PLAIN or weight.requires_grad or weight.is_neg()):
        return None
    want_grad = logits.requires_grad and torch.is_grad_enabled()
    loss = torch.empty_like(DOUBLE if logits.dtype is torch.float64 else SINGLE)
    inplace = inplace and want_grad
    if inplace:
        check_inplace(logits)
    grad = None if not want_grad else logits.detach() if inplace else torch.empty_like(logits)
    bad = _C.run(logits, target, weight, grad, loss, gamma, ignore_index, label_smoothing, reduction, scale)  # type: ignore[union-attr]
    if bad is None:
        return None
    if bad >= 0:
        check_labels(target, logits.shape[1], ignore_index)
        raise IndexError(f"target row {bad} is out of range for {logits.shape[1]} classes")
    if grad is None:
        return loss
    if inplace:
        torch.autograd.graph.increment_version(logits)
    call = None, target, weight, gamma, ignore_index, label_smoothing, reduction, scale
    return _Focal.apply(logits, (loss, grad), call, inplace)


class _Focal(torch.autograd.Function):
    """Connects a loss to its gradient in eager mode: cheaper than ``register_autograd``, and without multiplying by 1.

    ``call`` repeats the loss by the formula, for a derivative of the gradient. Unless hooks move autograd's saved tensors
    (``torch.utils.checkpoint``, ``save_on_cpu``), these do not include the logits: after a change in place, autograd would reject
    them even for the first derivative, which does not need them. With ``inplace``, the gradient has overwritten the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, made: tuple[Tensor, ...], call: Any, inplace: bool) -> Any:
        ctx.set_materialize_grads(False)
        hooked = not inplace and _default_hooks(True) is not None
        ctx.save_for_backward(*((made[1], logits) if hooked else made[1:2]))
        known = (-1,) if inplace else versions(logits, call)
        if hooked and isinstance(call, Call):
            call = call._replace(logits=made[1])  # any tensor that is kept
        ctx.again, ctx.inplace = (None if hooked else logits, known, call), inplace
        if len(made) == 2:
            return made[0]
        loss, _, p, factor = made
        ctx.mark_non_differentiable(p, factor)
        return loss, p, factor

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, None, None, None]:
        if grad_loss is None:
            return None, None, None, None
        saved = ctx.saved_tensors
        grad = saved[0]
        if torch.is_grad_enabled():
            logits, known, call = ctx.again
            return _derivative(saved[1] if len(saved) > 1 else logits, known, call, grad_loss), None, None, None
        if torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph():
            return _scaled(grad, grad_loss), None, None, None
        ctx.again = None
        if _is_one(grad_loss):
            return grad, None, None, None
        return (_scaled_in_place if ctx.inplace else _scaled)(grad, grad_loss), None, None, None


def _is_one(grad_loss: Tensor) -> bool:
    """Whether it is a plain 1 without modes or tracers, so that the gradient is the buffer itself."""
    return _C is not None and type(grad_loss) is Tensor and not grad_loss.is_neg() and not is_watched() and _C.is_one(grad_loss)


def _derivative(logits: Tensor, known: tuple[int, ...], call: Any, grad_loss: Tensor) -> Tensor:
    """The gradient in the logits as a function of logits and ``grad_loss`` that autograd can differentiate."""
    if known[0] < 0:
        raise RuntimeError("inplace=True has overwritten the logits, so this loss has no second derivative; omit it")
    now = versions(logits, call)
    if now != known:
        raise RuntimeError(
            f"a tensor of a focal loss was changed in place (versions of logits, target, weight: {now}, expected {known}) before"
            " the gradient that is to be differentiated; clone it first"
        )
    if not isinstance(call, Call):
        _, target, weight, gamma, *rest = call
        call = prepare(logits, target, gamma, weight, *rest)
    with torch.enable_grad():
        z = logits.view_as(logits)  # hooks on the logits belong to the pass of the user, not to this one
        loss = differentiable(*call._replace(logits=z).arguments(False))[0]
    return torch.autograd.grad(loss, z, grad_loss, create_graph=True)[0]


def _scaled(grad: Tensor, grad_loss: Tensor) -> Tensor:
    """grad (N, C[, L]) times grad_loss () or (N[, L])."""
    return (grad * (grad_loss.unsqueeze(1) if grad_loss.dim() else grad_loss)).to(grad.dtype)


def _scaled_in_place(grad: Tensor, grad_loss: Tensor) -> Tensor:
    return grad.mul_(grad_loss.unsqueeze(1) if grad_loss.dim() else grad_loss)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad, p, factor = output
    logits, target, weight, *settings, want_grad, _, other, share = inputs
    ctx.save_for_backward(grad, logits, target, weight, other, share)
    ctx.settings, ctx.has_grad = settings, want_grad
    ctx.mark_non_differentiable(grad, p, factor)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """The op's gradient in the logits; the formula's gradient in the other inputs and for higher derivatives."""
    needs = ctx.needs_input_grad  # only of the arguments that were passed: defaults are not included
    grads: list[Tensor | None] = [None] * len(needs)
    if grad_loss is None:
        return tuple(grads)
    grad, logits, target, weight, other, share = ctx.saved_tensors
    inputs = {0: logits, 1: target, 2: weight, 11: share}
    wanted = [place for place in inputs if place < len(needs) and needs[place]]
    if ctx.has_grad and wanted == [0] and not torch.is_grad_enabled():
        grads[0] = _scaled(grad, grad_loss)
        return tuple(grads)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        views = {place: inputs[place].view_as(inputs[place]) for place in wanted}  # without the hooks of the user's tensors
        inputs |= views
        arguments: tuple[Any, ...] = (inputs[0], inputs[1], inputs[2], *ctx.settings, False, other, inputs[11])
        loss = differentiable(*arguments)[0]
    found = torch.autograd.grad(loss, list(views.values()), grad_loss, create_graph=again)
    for place, each in zip(wanted, found, strict=True):
        grads[place] = each
    return tuple(grads)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The op for each element of the mapped dimension; :func:`focal_loss` itself is mapped by its formula."""
    found = []
    for at in range(info.batch_size):
        taken = (each if dim is None else each.select(dim, at) for each, dim in zip(args, in_dims, strict=True))
        found.append(torch.ops.zoo.focal_loss.default(*taken))
    return tuple(torch.stack(each) for each in zip(*found, strict=True)), (0, 0, 0, 0)


_library.impl("focal_loss", formula, "CompositeExplicitAutograd")
_library.impl("focal_loss_", formula_in_place, "CompositeExplicitAutograd")
torch.library.register_fake("zoo::focal_loss", shapes, lib=_library)
torch.library.register_autograd("zoo::focal_loss", _backward, setup_context=_save, lib=_library)
torch.library.register_vmap("zoo::focal_loss", _vmap, lib=_library)
_C, _C_cuda, _broken = focal_kernels.load_all()
if _C is not None and hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):  # an older torch lacks the shortcut
    _C.connect(torch.Tensor.__dlpack_c_exchange_api__)
