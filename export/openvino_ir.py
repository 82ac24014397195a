"""OpenVINO's IR in float32: an .xml with the graph and a .bin with the weights beside it, made from the ONNX graph."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import UsageError
from zoo.export import onnx_fp32
from zoo.export._cases import Answer
from zoo.export._graph import Exported
from zoo.spec import TargetSpec

TARGET = TargetSpec(
    suffix=".xml", tolerance=1e-4, needs=("openvino", *onnx_fp32.TARGET.needs), format="openvino", beside=(".bin",)
)


def write(model: Exported, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Trace, convert and save ``path`` and its ``.bin``; the metadata lies in the graph's runtime info as ``zoo``."""
    openvino = _openvino()
    with tempfile.TemporaryDirectory() as folder:
        onnx_fp32.write(model, Path(folder) / "model.onnx")
        made = openvino.convert_model(Path(folder) / "model.onnx")
        for key, value in (metadata or {}).items():
            made.set_rt_info(value, ["zoo", key])
        openvino.save_model(made, path, compress_to_fp16=False)


def answer(path: Path) -> Answer:
    """What OpenVINO's CPU plugin gives, computing in float32, for inputs as the file takes them."""
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
