"""What can run a model: each contender turns one batch into a call that gives the logits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import host
from zoo.spec import UsageError

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
        UsageError: the CUDA provider cannot start (onnxruntime would otherwise run on the CPU in silence).
    """
    opened = open_session(path, where, threads)
    prepare = _bound if where.type == "cuda" else _run
    return [Contender(f"onnxruntime {where.type}", "fp32", lambda inputs: prepare(opened, inputs))]


def open_session(path: Path, where: torch.device, threads: int) -> Any:
    """An ``InferenceSession`` that runs on ``where`` and nowhere else."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else its idle threads hold the others' cores
    if where.type == "cpu":
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = ("CUDAExecutionProvider", {"device_id": where.index or 0, "use_tf32": 0})
    try:
        onnxruntime.preload_dlls()
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
        live = session.get_providers()[0]
    except Exception as error:  # onnxruntime raises its own types, RuntimeError and ValueError
        live = str(error).splitlines()[0][:80]
    if live != provider[0]:
        raise UsageError(f"onnxruntime cannot run on the GPU ({live}; live: CPU); use --device cpu, or see zoo doctor")
    return session


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


def takes_normalised(path: Path) -> bool:
    """An exported file whose input is what the PyTorch model takes, by its metadata and its input's type."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    written = {entry.key: entry.value for entry in model.metadata_props}
    return written.get("preprocess", "none") == "none" and written.get("softmax", "false").lower() in ("false", "no", "0", "")


def write_onnx(model: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    """Export a model that has no run: one file, any batch size (traced at 2, since a batch of 1 may be specialised)."""
    inputs = torch.zeros(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (inputs,), path, dynamo=True, external_data=False, optimize=True, verbose=False, input_names=["input"],
            output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
