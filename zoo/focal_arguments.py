"""What :func:`zoo.ops.focal_loss` takes: each argument is checked and converted to the form of the op and the formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo import focal_kernels, focal_options

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LABELS = (torch.int64, torch.int32, torch.uint8)
"""Label types that the kernels read; the other integer types are converted."""
INTEGERS = (*LABELS, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64)

Target = Tensor | Sequence[Any]
Weight = Tensor | np.ndarray | Sequence[float]
Number = float | int


class Call(NamedTuple):
    """One call in the form of the op: logits (N, C) or (N, C, L)."""

    logits: Tensor
    target: Tensor
    """(N[, L]) labels, or shares of the logits' shape."""
    weight: Tensor | None
    gamma: float
    label_smoothing: float
    scale: float
    ignore_index: int
    reduction: int
    other: Tensor | None
    """(N[, L]) second labels."""
    share: Tensor | None
    """(N[, L]) share of the first label."""
    shape: torch.Size
    """Of the loss of each row, as the caller sees rows."""

    def arguments(self, *wanted: bool) -> tuple[Any, ...]:
        """Arguments of the op; ``wanted`` are its flags, whether to return the gradient and the values of the rows."""
        settings = self.gamma, self.label_smoothing, self.scale, self.ignore_index, self.reduction
        return self.logits, self.target, self.weight, *settings, *wanted, self.other, self.share

    @property
    def differentiated(self) -> bool:
        """Whether a derivative is needed that the op does not provide: in the weight, shares or the share of the first label."""
        return torch.is_grad_enabled() and any(
            each is not None and each.requires_grad for each in (self.weight, self.target, self.share)
        )


def prepare(
    logits: Any, target: Any, gamma: Number, weight: Any, ignore_index: int,
    label_smoothing: Number, reduction: str, scale: Number,
) -> Call:  # fmt: skip
    """Check everything except the labels' values, which the kernels check.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    target, other, share = _parts(target)
    _check_tensors(logits, target, other)
    soft = target.is_floating_point()
    settings = focal_options.check(gamma, label_smoothing, scale, ignore_index, reduction, soft=soft)
    weight = _weight(weight, logits)
    target, other = _labels(target, logits.dtype), None if other is None else _labels(other, logits.dtype)
    if other is not None and other.dtype != target.dtype:
        target, other = target.long(), other.long()
    share = None if share is None else _share(share, target, logits.dtype)
    rows = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else torch.Size(())
    if logits.dim() == 1:
        logits, target, other, share = (None if each is None else each[None] for each in (logits, target, other, share))
    if logits.dim() > 3:
        logits, target = logits.flatten(2), target.flatten(2 if soft else 1)
        other, share = (None if each is None else each.flatten(1) for each in (other, share))
    if share is not None:
        other, share = other.contiguous(), share.contiguous()
    return Call(logits, target, weight, *settings, other, share, rows)


def widened(logits: Any) -> Any:
    """float16 logits under autocast in float32, as autocast does for ``F.cross_entropy``: their gradient is rounded after it is multiplied by a gradient scaler's factor."""
    half = isinstance(logits, Tensor) and logits.dtype is torch.float16
    return logits.float() if half and torch.is_autocast_enabled(logits.device.type) else logits


def check_inplace(logits: Any) -> None:
    """Check that the gradient may overwrite these logits, which require gradients.

    Other uses of the logits that autograd has saved are not visible here: writing over the logits increases their version, so
    that the backward pass of such a use raises an error.

    Raises:
        TypeError, ValueError: with the use of the logits, or the reason why they do not own their memory.
    """
    if type(logits) is not Tensor:
        kind = "a parameter" if isinstance(logits, torch.nn.Parameter) else f"{type(logits).__name__}"
        raise TypeError(f"inplace=True writes the gradient over the logits, which must be a plain tensor, not {kind}")
    why = ""
    if logits.is_leaf:
        why = "they are a leaf that requires grad; pass the output of a layer"
    elif logits._is_view():
        why = "they are a view of another tensor, which would change too"
    elif logits.layout is not torch.strided or logits.is_neg() or logits._is_zerotensor() or logits.is_meta:
        why = "they do not own memory with their values"
    if why:
        raise ValueError(f"inplace=True cannot write the gradient over the logits: {why}, or omit inplace")


def _parts(target: Any) -> tuple[Any, Any, Any]:
    """Target, second target and share of the first, the latter two None unless the target is such a triple."""
    if not isinstance(target, (tuple, list)):
        return target, None, None
    if len(target) != 3:
        raise ValueError(f"target must be a tensor or (labels, other labels, share of the first), not {len(target)} values")
    return tuple(target)


def _check_tensors(logits: Any, target: Any, other: Any) -> None:
    named = {"logits": logits, "target": target} | ({} if other is None else {"second target": other})
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor, not {short(tensor.layout)}")
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits must be float32, float64, bfloat16 or float16, not {short(logits.dtype)}")
    if logits.dim() == 0 or logits.shape[min(1, logits.dim() - 1)] == 0:
        raise ValueError(f"logits must be (C,), (N, C) or (N, C, d1, ...) with C >= 1, not {tuple(logits.shape)}")
    rows = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]
    for name, tensor in list(named.items())[1:]:
        soft = tensor.dtype in DTYPES and other is None
        if not soft and tensor.dtype not in INTEGERS:
            kinds = "an integer type" if other is not None else "an integer type (labels) or a float type (shares)"
            raise TypeError(f"{name} must be of {kinds}, not {short(tensor.dtype)}")
        wanted = tuple(logits.shape if soft else rows)
        if not _same(tensor.shape, wanted):
            what = "shares" if soft else "labels"
            raise ValueError(f"{name} of {what} must be {wanted} for logits {tuple(logits.shape)}, not {tuple(tensor.shape)}")
        if tensor.device != logits.device:
            raise ValueError(f"{name} must be on {logits.device} like the logits, not on {tensor.device}")


def _same(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether two shapes are equal; in a compiled graph, sizes that depend on data are compared when it runs."""
    if not torch.compiler.is_compiling() or len(shape) != len(wanted):
        return tuple(shape) == tuple(wanted)
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # slow to import, and imported by then

    if not all(guard_or_true(size == other) for size, other in zip(shape, wanted)):
        return False
    for size, other in zip(shape, wanted):
        torch._check_value(size == other)
    return True


def _weight(weight: Any, logits: Tensor) -> Tensor | None:
    """The weight in the form of the kernels, unchanged if it has that form already."""
    if weight is None:
        return None
    if isinstance(weight, (list, tuple)) and all(isinstance(each, (int, float)) for each in weight):
        weight = np.array(weight, np.float64)
    if isinstance(weight, np.ndarray):
        weight = torch.as_tensor(weight.astype(weight.dtype.newbyteorder("=")), device=logits.device)
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, an array or a list of numbers, not {type(weight).__name__}")
    if weight.dtype in INTEGERS:
        weight = weight.to(accurate(logits.dtype))
    if not weight.dtype.is_floating_point:
        raise TypeError(f"weight must be floating point or integers, not {short(weight.dtype)}")
    classes = logits.shape[1] if logits.dim() > 1 else logits.shape[0]
    if weight.dim() != 1 or weight.shape[0] != classes:
        raise ValueError(f"weight must be ({classes},) for {classes} classes, not {tuple(weight.shape)}")
    if weight.device != logits.device:
        raise ValueError(f"weight must be on {logits.device} like the logits, not on {weight.device}")
    return weight.to(accurate(logits.dtype)).contiguous()


def _labels(target: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels of a type that the kernels read; shares of the logits' type, or float32 for half-precision logits."""
    if target.is_floating_point():
        kept = target.dtype == dtype or (target.dtype == torch.float32 and dtype != torch.float64)
        return target if kept else target.to(accurate(dtype))
    if target.dtype in LABELS:
        return target
    wide = target.long()
    return torch.where(wide < 0, 2**63 - 1, wide) if target.dtype == torch.uint64 else wide  # beyond int64: no label either


def _share(share: Any, target: Tensor, dtype: torch.dtype) -> Tensor:
    """The share of the first label for each row, from one number or a tensor of one or of each row's."""
    if isinstance(share, np.ndarray):
        share = torch.as_tensor(share.astype(share.dtype.newbyteorder("=")))
    if not isinstance(share, Tensor):
        number = focal_options.number("share of the first label", share)
        if not 0 <= number <= 1:
            raise ValueError(f"share of the first label must be in [0, 1], not {number}")
        return torch.full_like(target, number, dtype=accurate(dtype))
    if not share.is_floating_point():
        raise TypeError(f"share of the first label must be floating point, not {short(share.dtype)}")
    share = share.reshape(()) if share.shape == (1,) else share
    if share.dim() and share.shape != target.shape:
        raise ValueError(f"share of the first label must be () or {tuple(target.shape)}, not {tuple(share.shape)}")
    readable = share.device.type == "cpu" and share.numel() and not torch.compiler.is_compiling()
    if readable and not focal_kernels.is_watched() and focal_kernels.is_memory(share):
        low, high = share.aminmax()
        if not 0 <= low <= high <= 1:
            raise ValueError(f"share of the first label must be in [0, 1], not {low:g} to {high:g}")
    return share.to(target.device, accurate(dtype)).expand(target.shape)


def accurate(dtype: torch.dtype) -> torch.dtype:
    """The type of the loss, of weights and of shares of labels, for logits of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def short(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")
