"""Quantisation-aware training: convolutions and linear layers compute on inputs rounded to 8 bits and weights rounded to 8 or 7.

Rounding is that of the int8 files of ``zoo export``, with weights of 7 bits for x86 CPUs without VNNI: weights signed with a scale per output channel, inputs unsigned with one scale (Jacob et
al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference", section 3). Gradients pass the
rounding unchanged within the range (Bengio et al. 2013). The range of the inputs is that of the batch (with several processes, of the part of
each), so a run has no state besides its weights and its files are those of any run. BatchNorm needs no folding: a scale per output channel commutes with it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = {8: 127, 7: 64}
"""Largest whole number of a weight, by bits: those of onnxruntime's quantiser, whose reduced range is -64 to 64."""
_TINY = 1e-20
_CURVED = {
    "GELU", "Hardsigmoid", "Hardswish", "HardSigmoid", "HardSwish", "HardMish", "Mish", "Sigmoid", "SiLU", "Swish", "Tanh",
}  # fmt: skip
"""Classes of torch and timm for activations that int8 files compute after rounding; ReLU and ReLU6 are part of the layer before them."""


def round_layers(model: nn.Module, bits: int = 8) -> int:
    """Make every convolution and linear layer of ``model`` round weight and input in training mode; returns their number.

    Weights have ``bits`` 8 or 7. Activations other than ReLU round their input. In eval mode the layers are unchanged, so the accuracy of a run is that of its float32 weights.
    """
    found = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for module in found:
        module.register_forward_pre_hook(partial(_round, bits))
        module.register_forward_hook(_restore, always_call=True)
    for each in model.modules():
        if type(each).__name__ in _CURVED:
            each.register_forward_pre_hook(_round_input)
    return len(found)


def _round(bits: int, module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if module.training:
        # an attribute hides the parameter of that name until _restore; subclasses with another forward read it too
        module.__dict__["weight"] = rounded_weight(module.weight, bits)
    return _round_input(module, inputs)


def _round_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return (rounded_inputs(inputs[0]), *inputs[1:]) if module.training and inputs else None


def _restore(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    module.__dict__.pop("weight", None)


def rounded_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """Weights (K, ...) on 255 levels (8 bits) or 129 (7), symmetric about 0, with a scale per output channel K."""
    most = LARGEST[bits]
    with torch.no_grad():
        scale = weight.flatten(1).abs().amax(1).float().clamp_min(_TINY) / most
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -most, most)


def rounded_inputs(inputs: Tensor) -> Tensor:
    """Inputs of any shape on 256 levels, of which one is 0, over their range."""
    with torch.no_grad():
        low, high = (end.float() for end in torch.aminmax(inputs))
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = (high - low).clamp_min(_TINY) / 255
        zero = (-low / scale).round().clamp(0, 255).int()
    return torch.fake_quantize_per_tensor_affine(inputs, scale, zero, 0, 255)
