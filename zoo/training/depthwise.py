"""Depthwise convolutions in float32 within bf16 training on the CPU, where their backward pass in bf16 can be 20 times slower.

oneDNN has no fast bf16 backward pass for strides above 1 and kernels above 3 x 3. Measured for a batch of 32 on one core of Zen 4 (AVX-512 with
bf16, torch 2.15): 672 channels of 14 x 14, kernel 5, stride 2: 226 ms, in float32 10 ms; 3 x 3 with stride 1: 2.6 ms, in float32 4.3 ms.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def use_float32(model: nn.Module) -> int:
    """Make the depthwise convolutions that are slow in bf16 compute in float32 wherever gradients pass them; returns their number."""
    found = [module for module in model.modules() if isinstance(module, nn.Conv2d) and _is_slow(module)]
    for module in found:
        # a bound method, so that copy.deepcopy binds the copy's to the copy
        module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
    return len(found)


def _is_slow(module: nn.Conv2d) -> bool:
    depthwise = module.groups == module.in_channels > 1
    return depthwise and (max(module.stride) > 1 or max(module.kernel_size) > 3)


def _forward(module: Any, inputs: Tensor) -> Tensor:
    forward = type(module).forward
    if not (torch.is_grad_enabled() and (inputs.requires_grad or module.weight.requires_grad)):
        return forward(module, inputs)
    with torch.autocast("cpu", enabled=False):
        return forward(module, inputs.float()).to(inputs.dtype)
