"""OpenVINO's IR in float32: an .xml with the graph and a .bin with the weights, converted from the ONNX graph."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import UsageError
from zoo.export import _external
from zoo.export._cases import Answer
from zoo.spec import TargetSpec

if TYPE_CHECKING:
    from zoo.export._job import Job

TARGET = TargetSpec(
    format="openvino", suffix=".xml", tolerance=1e-4, needs=("openvino", "onnx", "onnxscript"), beside=(".bin",)
)


def make(job: Job) -> Any:
    """The model, converted from the float32 ONNX graph."""
    openvino = _openvino()
    with tempfile.TemporaryDirectory() as folder:
        return openvino.convert_model(_external.dump(job.exact, Path(folder) / "model.onnx"))


def write(model: Any, path: Path, facts: Mapping[str, str]) -> None:
    """``path`` and its ``.bin``; ``facts`` are in the graph's runtime info as ``zoo``."""
    for key, value in facts.items():
        model.set_rt_info(value, ["zoo", key])
    _openvino().save_model(model, path, compress_to_fp16=False)


def answer(path: Path) -> Answer:
    """Outputs of OpenVINO's CPU plugin in float32 for inputs of the file."""
    compiled = _openvino().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: np.ndarray) -> np.ndarray:
        return np.array(compiled(inputs)[0])

    return run


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise UsageError("openvino is not installed; install it: pip install openvino") from error
    return openvino
