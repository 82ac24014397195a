"""Inputs of the ReLUs and max poolings of any model, whether modules or functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
CLIPPED: dict[Callable[..., Tensor], tuple[float, float] | None] = {
    F.relu6: (0.0, 6.0), F.hardtanh: None, F.hardtanh_: None,
    torch.clamp: None, torch.clamp_: None, Tensor.clamp: None, Tensor.clamp_: None,
    torch.clip: None, torch.clip_: None, Tensor.clip: None, Tensor.clip_: None,
}  # fmt: skip
"""Functions that are constant outside an interval, which their arguments give if it is None here."""
POOL = {F.max_pool2d, torch.max_pool2d}


class Units(NamedTuple):
    """The inputs of one activation."""

    z: Tensor
    low: float
    """The output is constant up to here."""
    high: float
    """And from here on; inf for a ReLU."""

    @property
    def active(self) -> Tensor:
        """Where the output changes with the input; bool, the shape of ``z``."""
        return (self.z > self.low) & (self.z < self.high)

    @property
    def gaps(self) -> list[Tensor]:
        """Signed distances of ``z`` from each kink."""
        return [self.z - at for at in (self.low, self.high) if abs(at) != float("inf")]


class Watch(TorchFunctionMode):
    """Stores the input of every ReLU, clipped ReLU and max pooling while a model runs."""

    def __init__(self) -> None:
        super().__init__()
        self.units: list[Units] = []
        self.pools: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in RELU:
            self.units.append(Units(args[0].clone(), 0.0, float("inf")))  # it may be overwritten in place
        elif func in CLIPPED:
            bounds = CLIPPED[func] or _bounds(func, args[1:], kwargs)
            if bounds is not None and args[0].dim() > 1:  # not a scale of the model
                self.units.append(Units(args[0].clone(), *bounds))
        elif func in POOL:
            self.pools.append((args[0], args[1:], kwargs))
        return func(*args, **kwargs)


def _bounds(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, float] | None:
    """The interval in which a clipping function changes with its input; None if its ends are tensors."""
    hard = func in (F.hardtanh, F.hardtanh_)
    names, default = (("min_val", "max_val"), (-1.0, 1.0)) if hard else (("min", "max"), (float("-inf"), float("inf")))
    given = dict(zip(names, args)) | {name: kwargs[name] for name in names if name in kwargs}
    ends = [default[at] if given.get(name) is None else given[name] for at, name in enumerate(names)]
    return None if any(isinstance(end, Tensor) for end in ends) else (float(ends[0]), float(ends[1]))
