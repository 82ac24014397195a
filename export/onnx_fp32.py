"""ONNX in float32: one file, any batch size, by torch's exporter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from zoo.export import _external, _onnx, _session
from zoo.spec import TargetSpec

if TYPE_CHECKING:
    from zoo.export._job import Job

TARGET = TargetSpec(format="onnx", suffix=".onnx", tolerance=1e-4, needs=("onnx", "onnxscript", "onnxruntime"))


def make(job: Job) -> ModelProto:
    """The graph of a job's model."""
    return job.exact


def write(graph: ModelProto, path: Path, facts: Mapping[str, str]) -> None:
    """A draft of the file; :func:`publish` also writes the metadata."""
    _external.dump(graph, path)


def answer(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Outputs of onnxruntime on the CPU for inputs of the file."""
    session = _session.open_session(path)
    name = session.get_inputs()[0].name
    return lambda inputs: np.asarray(session.run(None, {name: inputs})[0])


def publish(graph: ModelProto, path: Path, facts: Mapping[str, str], job: Job) -> list[Path]:
    """:func:`zoo.export._onnx.save` with the metadata and, if requested, the weights in a second file."""
    return _onnx.save(graph, path, facts, external_data=job.external_data)
