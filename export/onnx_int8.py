"""ONNX in 8 bits: static QDQ, activations unsigned, weights signed and per channel, calibrated on training images.

BatchNorm is in the convolutions' weights before they are quantised (the float32 graph has it folded). Unsigned activations
are what CPUs multiply fast: both signed runs at a third of the speed. Ranges come from onnxruntime's calibrators.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from zoo.export import _external, _graph, onnx_fp32
from zoo.spec import TargetSpec

TARGET = TargetSpec(suffix=".int8.onnx", tolerance=2.0, needs=onnx_fp32.TARGET.needs)
"""Loose, in standard deviations of the logits, and of the run's own images alone: it finds a broken graph. Whether 8 bits are enough is
told by accuracy; saturated and constant images lie beyond the calibrated ranges and are cut off."""
METHODS = ("minmax", "percentile", "entropy")
COUNTS = (64, 256, 512)
"""Calibration images that are tried; a large image costs as much as 50 small ones, so that these stop earlier."""
OPERATORS = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Relu", "Clip", "Pad", "Slice",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip
"""Softmax, LayerNorm and means stay in float32: 8 bits of them cost accuracy and win nothing."""
CHUNK = 32
PERCENTILE = 99.99


@dataclass(frozen=True)
class Ranges:
    """Ranges of all activations, found by ``method`` on the first ``count`` images."""

    method: str
    count: int
    values: Any


def write(
    model: _graph.Exported, path: Path, images: np.ndarray, *, method: str = "minmax", opset: int = onnx_fp32.OPSET,
    metadata: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Trace, calibrate on ``images`` (as the file takes them), quantise and save in one call."""
    graph = onnx_fp32.trace(model, opset=opset)
    (ranges,) = calibrate(graph, images, method=method, counts=[len(images)])
    onnx_fp32.save(quantise(graph, ranges), path, metadata or {})


def calibrate(graph: ModelProto, images: np.ndarray, *, method: str, counts: Sequence[int]) -> Iterator[Ranges]:
    """Ranges of activations on the first ``counts`` (rising) of ``images``, given as the file takes them."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    # unsymmetrical: an unsigned range that reaches below zero for symmetry alone loses a bit
    options: dict[str, Any] = {"symmetric": False}
    if method == "percentile":
        options["percentile"] = PERCENTILE
    if method == "entropy":
        options["num_bins"] = 512  # as many bins as steps (the default) leave nothing to choose
    with tempfile.TemporaryDirectory() as folder, _quiet():
        found = create_calibrator(
            _external.dump(graph, Path(folder) / "model.onnx"), list(OPERATORS),
            augmented_model_path=str(Path(folder) / "augmented.onnx"), calibrate_method=kinds[method],
            use_external_data_format=_external.too_large(graph), extra_options=options,
        )  # fmt: skip
        done = 0
        for count in counts:
            while done < count:  # a chunk at a time: the calibrator keeps every activation of what it is given at once
                found.collect_data(_Reader(graph.graph.input[0].name, images[done : min(done + CHUNK, count)]))
                done = min(done + CHUNK, count)
            yield Ranges(method, count, found.compute_data())


def quantise(graph: ModelProto, ranges: Ranges) -> ModelProto:
    """A float32 graph of :func:`onnx_fp32.trace` with the model's nodes in 8 bits; preprocessing stays in float32."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    with _quiet():
        quantiser = QDQQuantizer(
            graph, True, False, QuantType.QInt8, QuantType.QUInt8, ranges.values, _graph.model_nodes(graph), [],
            list(OPERATORS), {},
        )  # fmt: skip
        quantiser.quantize_model()
        quantiser.model.topological_sort()  # which its own writer to a file does
    made: ModelProto = quantiser.model.model
    onnx_fp32.clean(made)
    del made.graph.value_info[:]
    return made


class _Reader:
    """Gives one batch, then nothing: what a calibrator reads from."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self.left: list[dict[str, np.ndarray]] = [{name: images}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No advice of the quantiser's on stderr, and none of its prints."""
    import io

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
