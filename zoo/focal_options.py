"""Settings of the focal loss that are numbers or strings, checked in the same way for tensors and for numpy arrays."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

REDUCTIONS = ("none", "mean", "sum", "weighted_mean")


def check(
    gamma: Any, label_smoothing: Any, scale: Any, ignore_index: Any, reduction: Any, *, soft: bool
) -> tuple[float, float, float, int, int]:
    """Gamma, label smoothing, scale, ignore_index and the place of the reduction in :data:`REDUCTIONS`.

    ``soft``: the target is shares of the classes.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    gamma, scale = number("gamma", gamma), number("scale", scale)
    label_smoothing = number("label_smoothing", label_smoothing)
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and >= 0, not {gamma}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, not {scale}")
    if not isinstance(ignore_index, Integral) or isinstance(ignore_index, bool):
        raise TypeError(f"ignore_index must be an int, not {type(ignore_index).__name__}")
    if not -(2**63) <= int(ignore_index) < 2**63:
        raise ValueError(f"ignore_index must fit into 64 bits, not {ignore_index}")
    if soft and int(ignore_index) >= 0:
        raise ValueError(
            f"ignore_index must be negative for a target of shares, which has no labels to ignore, not {ignore_index}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    return gamma, label_smoothing, scale, int(ignore_index), REDUCTIONS.index(reduction)


def number(name: str, value: Any) -> float:
    """The value as a float.

    Raises:
        TypeError: it is not a real number; an array for ``gamma`` is often a misplaced weight.
    """
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = f"; pass it as weight={name}" if name == "gamma" and getattr(value, "ndim", 0) > 0 else ""
        raise TypeError(f"{name} must be a number, not {type(value).__name__}{hint}")
    return float(value)


def wrong_label(name: str, place: str, label: int, classes: int, ignore_index: int) -> IndexError:
    """The error that names a label out of range; ``place`` is its index in brackets."""
    return IndexError(
        f"{name}{place}={label} is out of range for {classes} classes"
        f" (legal: 0 to {classes - 1}, or ignore_index={ignore_index})"
    )
