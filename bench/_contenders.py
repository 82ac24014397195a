"""Contenders: each turns one batch into a call that returns the logits. Those of PyTorch are in this file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo import machine
from zoo.bench import _memory
from zoo.export._graph import Exported

BASE = "pytorch eager"
FP32_TOLERANCE, HALF_TOLERANCE, INT8_TOLERANCE = 1e-4, 0.05, 0.5
"""Largest difference of logits from eager float32 that passes, relative to the largest logit (at least 1). That of int8 only detects wrong outputs: the cost of rounding is in the accuracy column."""
TOLERANCES = {"fp32": FP32_TOLERANCE, "bf16": HALF_TOLERANCE, "fp16": HALF_TOLERANCE, "int8": INT8_TOLERANCE}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Ready:
    """A contender set up for one batch: ``call`` starts and ends in host memory."""

    call: Call
    resident: Call | None = None
    """The same with inputs and outputs that stay on the GPU."""
    settings: str = ""
    tune: Callable[[], Ready] | None = None
    """Searches for faster settings; separate, so that its trials count neither as the first run nor as its memory."""


@dataclass(frozen=True)
class Contender:
    """``prepare(inputs)`` receives a batch of model inputs in host memory and returns the call to be timed.

    A call reads ``inputs`` each time, so that other images can be copied into them.
    """

    name: str
    precision: str
    prepare: Callable[[Tensor], Ready]
    load_ms: float = 0.0
    load_mb: float = 0.0
    """Memory of the loaded model."""
    file_mb: float = 0.0
    may_fail: bool = False
    """Whether a failure skips it, with a message, instead of ending the benchmark."""

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.precision]


def loaded(
    name: str,
    precision: str,
    load: Callable[[], Any],
    prepare: Callable[[Any, Tensor], Ready],
    *,
    file_mb: float,
    may_fail: bool = False,
    device: torch.device | None = None,
) -> Contender:
    """The contender returned by ``load``, with the time and memory of loading."""
    start = time.perf_counter()
    thing, _, kept = _memory.used(load, device)
    spent = (time.perf_counter() - start) * 1e3
    return Contender(name, precision, lambda inputs: prepare(thing, inputs), spent, kept, file_mb, may_fail)


def of_pytorch(build: Callable[[], Exported], device: torch.device, *, compiled: bool, file_mb: float) -> list[Contender]:
    """PyTorch's contenders for the model from ``build`` on ``device``, eager float32 first."""
    half = _half(device)
    ways = [
        (BASE, "fp32", torch.contiguous_format, False),
        ("pytorch channels_last", "fp32", torch.channels_last, False),
        (f"pytorch {half}", half, torch.channels_last, False),
        ("torch.compile", "fp32", torch.contiguous_format, True),
        (f"torch.compile {half}", half, torch.channels_last, True),
    ]
    return [
        _way(name, precision, build, layout, device, compiled=compile_it, file_mb=file_mb)
        for name, precision, layout, compile_it in ways
        if precision and (compiled or not compile_it)
    ]


class _Typed(nn.Module):
    """A model in ``dtype`` and ``layout`` after preprocessing in float32, as in the exported files.

    Converting layout and type counts: all contenders receive the same bytes.
    """

    def __init__(self, exported: Exported, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        self.exported, self.dtype, self.layout = exported, dtype, layout
        exported.model.to(dtype).to(memory_format=layout)

    def forward(self, images: Tensor) -> Tensor:
        """As :class:`Exported`."""
        logits = self.exported.model(self.exported.prepare(images).to(self.dtype, memory_format=self.layout))
        return self.exported.finish(logits)


def _half(device: torch.device) -> str:
    """The half type with hardware support, if any: fp16 on a GPU, as in onnxruntime."""
    if device.type == "cuda":
        return "fp16"
    return "bf16" if machine.precision("auto", device) == "bf16" else ""


def _way(
    name: str, precision: str, build: Callable[[], Exported], layout: torch.memory_format, device: torch.device, *, compiled: bool,
    file_mb: float,
) -> Contender:  # fmt: skip
    dtype = _DTYPES[precision]

    def prepare(model: nn.Module, inputs: Tensor) -> Ready:
        # compiled for this one shape, weights frozen into the graph: the fastest that torch.compile offers
        run = machine.compiled(model, options={"freezing": True}) if compiled else model

        if device.type == "cpu":
            return Ready(lambda: run(inputs))
        here = inputs.to(device)
        return Ready(lambda: run(inputs.to(device)).cpu(), lambda: run(here))

    def load() -> nn.Module:
        return _Typed(build(), dtype, layout).to(device)

    return loaded(name, precision, load, prepare, file_mb=file_mb, may_fail=compiled, device=device)
