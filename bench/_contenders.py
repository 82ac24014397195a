"""What can run a model: each contender turns one batch into a call that gives the logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from zoo import host
from zoo.export import _session

BASE = "pytorch eager"
FP32_TOLERANCE, HALF_TOLERANCE = 1e-4, 0.05
"""Largest difference of logits from eager float32 that passes, relative to the largest logit (at least 1)."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """``prepare(inputs)`` takes a batch (N, C, H, W) float32 on the device and returns the call to be timed."""

    name: str
    precision: str
    prepare: Callable[[Tensor], Call]
    tolerance: float = FP32_TOLERANCE


def of_pytorch(model: nn.Module, where: torch.device, *, compiled: bool) -> list[Contender]:
    """PyTorch's ways to run ``model`` on ``where``, eager float32 first."""
    eager = copy.deepcopy(model).to(where)
    last = copy.deepcopy(model).to(where).to(memory_format=torch.channels_last)
    found = [
        Contender(BASE, "fp32", lambda inputs: lambda: eager(inputs)),
        Contender("pytorch channels_last", "fp32", lambda inputs: _channels_last(last, inputs)),
    ]
    if host.precision("auto", where) == "bf16":
        half = copy.deepcopy(last).to(torch.bfloat16)
        found.append(Contender("pytorch bf16", "bf16", lambda inputs: _channels_last(half, inputs), HALF_TOLERANCE))
    if compiled:
        found.append(Contender("torch.compile", "fp32", lambda inputs: _compiled(eager, inputs)))
    return found


def _channels_last(model: nn.Module, inputs: Tensor) -> Call:
    """Conversion of layout and type belongs to the time: every contender is given the same bytes."""
    dtype = next(model.parameters()).dtype
    return lambda: model(inputs.to(dtype, memory_format=torch.channels_last))


def _compiled(model: nn.Module, inputs: Tensor) -> Call:
    """Compiled for this one shape, weights frozen into the graph: the fastest that torch.compile offers."""
    run = torch.compile(model, dynamic=False, options={"freezing": True})
    return lambda: run(inputs)


def of_onnxruntime(path: Path, where: torch.device, threads: int) -> list[Contender]:
    """onnxruntime on the CPU, or on the GPU with inputs and outputs that stay there.

    Raises:
        UsageError: onnxruntime is missing or cannot run on ``where`` (alone it would take the CPU in silence).
    """
    opened = _session.open_session(path, str(where), threads=threads)
    prepare = _bound if where.type == "cuda" else _run
    return [Contender(f"onnxruntime {where.type}", "fp32", lambda inputs: prepare(opened, inputs))]


def _run(session: Any, inputs: Tensor) -> Call:
    feed = {session.get_inputs()[0].name: inputs.numpy()}
    wanted = [session.get_outputs()[0].name]
    return lambda: session.run(wanted, feed)[0]


def _bound(session: Any, inputs: Tensor) -> Call:
    classes = session.get_outputs()[0].shape[1]
    outputs = torch.empty((len(inputs), classes), device=inputs.device)
    binding = session.io_binding()
    place = (inputs.device.type, inputs.device.index or 0)
    binding.bind_input(session.get_inputs()[0].name, *place, "float32", tuple(inputs.shape), inputs.data_ptr())
    binding.bind_output(session.get_outputs()[0].name, *place, "float32", tuple(outputs.shape), outputs.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return outputs

    return call


def own_preprocessing(path: Path) -> tuple[str, bool]:
    """What an exported file does besides the model, by its metadata: ``none``, ``normalize`` or ``full``; softmax or not."""
    properties = onnx.load(path, load_external_data=False).metadata_props
    written = {entry.key: entry.value for entry in properties}
    return written.get("preprocess", "none"), written.get("softmax", "false") == "true"
