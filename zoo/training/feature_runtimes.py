"""Frozen layers of a model in another runtime than PyTorch, checked against PyTorch."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo import runtimes
from zoo.errors import DisagreeError, UsageError, interruption

TOLERANCE = 1e-3
"""Largest accepted difference of features, relative to the largest feature."""

Compute = Callable[[Tensor], Tensor]


def runner(runtime: str, model: nn.Module, head: str, inputs: Tensor) -> Compute:
    """A function from images (N, 3, H, W) to what ``head`` receives, computed by ``runtime``; ``inputs`` are for tracing.

    Raises:
        UsageError: the runtime is not installed, or the inputs are not float32 on the CPU.
    """
    if inputs.dtype != torch.float32 or inputs.device.type != "cpu":
        raise UsageError(
            f"features_with = {runtime} computes in fp32 on the CPU (found {inputs.dtype} on {inputs.device.type}); "
            "use features_with=torch"
        )
    try:
        runtimes.onnxruntime() if runtime == "onnxruntime" else importlib.import_module(runtime)
    except ImportError as error:
        raise UsageError(f"features_with = {runtime} needs a package; install it: pip install {runtime}") from error
    try:
        graph = _graph(model, head, inputs[:2] if len(inputs) > 1 else inputs.repeat(2, 1, 1, 1))
    except Exception as error:  # torch's tracers raise dozens of types, with pages of text
        if (stopped := interruption(error)) is not None:
            raise stopped from None
        raise UsageError(
            f"features_with = {runtime}: the frozen layers cannot be traced ({type(error).__name__}); use features_with=torch"
        ) from error
    return {"onnxruntime": _onnxruntime, "openvino": _openvino}[runtime](graph)


def check(runtime: str, found: Tensor, expected: Tensor) -> str:
    """One line about the agreement of features (N, ...) of ``runtime`` with PyTorch's.

    Raises:
        DisagreeError: they differ by more than :data:`TOLERANCE`.
    """
    if found.shape != expected.shape:
        raise DisagreeError(
            f"features of {runtime} have the shape {tuple(found.shape)}, PyTorch's {tuple(expected.shape)}; use features_with=torch"
        )
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        raise DisagreeError(
            f"features of {runtime} differ from PyTorch's (largest relative difference {difference:.2g}, allowed {TOLERANCE:g}); "
            "use features_with=torch"
        )
    return f"{runtime} agrees with PyTorch on {len(found):,} images of the run: largest relative difference {difference:.1g}"


def _graph(model: nn.Module, head: str, example: Tensor) -> bytes:
    """The model without its head as an ONNX file; the batch is free."""
    body = copy.deepcopy(model).eval()
    body.set_submodule(head, nn.Identity())
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                body,
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def _onnxruntime(graph: bytes) -> Compute:
    onnxruntime = runtimes.onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])


def _openvino(graph: bytes) -> Compute:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    return lambda images: torch.from_numpy(compiled(images.contiguous().numpy())[0].copy())
