"""ONNX in float32: one file, dynamic batch, traced at batch 2 by torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import ModelProto

from zoo.export._graph import Exported
from zoo.spec import TargetSpec, UsageError

TARGET = TargetSpec(suffix=".onnx", tolerance=1e-4, needs=("onnx", "onnxscript", "onnxruntime"))
OPSETS = range(18, 24)
ONE_FILE_BYTES = 2_000_000_000


def write(model: Exported, path: Path, *, opset: int = 20, metadata: Mapping[str, str] = {}) -> None:
    """Trace ``model``, keep the names and facts a reader needs, and write one file (weights beside it only from 2 GB)."""
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not supported; use {OPSETS[0]} to {OPSETS[-1]}")
    graph = _trace(model, opset)
    del graph.metadata_props[:]
    for key, value in metadata.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value
    _drop_unused_imports(graph)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save_model(graph, str(path), save_as_external_data=graph.ByteSize() > ONE_FILE_BYTES)


def _trace(model: Exported, opset: int) -> ModelProto:
    size = model.size
    full = model.preprocess == "full"
    example = torch.zeros(2, size + 3, size + 5, 3, dtype=torch.uint8) if full else torch.zeros(2, 3, size, size)
    batch = torch.export.Dim("batch", min=1)
    moving = {0: batch, 1: torch.export.Dim("height", min=1), 2: torch.export.Dim("width", min=1)} if full else {0: batch}
    output = "probabilities" if model.softmax else "logits"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=opset, external_data=False, verbose=False,
            input_names=["image"], output_names=[output], dynamic_shapes={"images": moving},
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _drop_unused_imports(graph: ModelProto) -> None:
    used = {node.domain for node in graph.graph.node} | {node.domain for function in graph.functions for node in function.node}
    kept = [entry for entry in graph.opset_import if entry.domain in used or entry.domain == ""]
    del graph.opset_import[:]
    graph.opset_import.extend(kept)
