"""Inputs of the ReLUs and max poolings of any model, whether modules or functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
POOL = {F.max_pool2d, torch.max_pool2d}


class Watch(TorchFunctionMode):
    """Stores the input of every ReLU and max pooling while a model runs."""

    def __init__(self) -> None:
        super().__init__()
        self.units: list[Tensor] = []
        self.pools: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RELU:
            self.units.append(args[0].clone())  # it may be overwritten in place
        elif func in POOL:
            self.pools.append((args[0], args[1:], kwargs or {}))
        return func(*args, **(kwargs or {}))
