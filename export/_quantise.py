"""A float32 ONNX graph in 8 bits: ranges of activations by onnxruntime's calibrators, and static QDQ nodes by its quantiser.

Activations are unsigned, which CPUs multiply fast (signed ones run at a third of the speed); weights are signed, with
a scale per output channel. BatchNorm is in the convolutions' weights before they are quantised: the float32 graph has it folded.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from zoo import runtimes
from zoo.console import counted, print_line
from zoo.export import _bias, _external, _graph, _onnx

METHODS = ("minmax", "percentile", "entropy")
COUNTS = (64, 256, 512)
"""Numbers of calibration images; fewer for large images, which cost as much as 50 small ones."""
OPERATORS = (
    "Conv", "Gemm", "MatMul", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Relu", "Clip", "Pad", "Slice",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip
"""Softmax, LayerNorm and means stay in float32: 8 bits would cost accuracy without a gain."""
CHUNK, MANY = 32, 64
"""Images per call of a calibrator, which keeps every activation (a quarter for images over 64 x 64 pixels), and of a session."""
SATURATION, CLEARLY = 256, 0.8
"""Number of images for comparing weights of 7 and of 8 bits, and the share of 8 bits' difference that 7 bits must stay below."""
BINS, MOST_BINS = 512, 4096
"""Bins of a tensor's histogram for the entropy method at first, and at most: its time grows with the square of their number."""
PERCENTILE = 99.99


@dataclass(frozen=True)
class Ranges:
    """Ranges of all activations, found by ``method`` on the first ``count`` images."""

    method: str
    count: int
    values: Any
    narrow: bool = False
    """Whether weights have 7 bits: without VNNI, x86 CPUs add two products of 8 bit numbers in 16 bits, which saturates."""
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    """:func:`zoo.export._bias.input_means`; empty: biases are not corrected."""


def calibrate(graph: ModelProto, images: np.ndarray, *, method: str, counts: Sequence[int]) -> Iterator[Ranges]:
    """Ranges of activations on the first ``counts`` (rising) of ``images``, in the form of the file's input.

    The entropy method ends early if the activations of later images are far larger than those of the first ones.
    """
    quantization = runtimes.onnxruntime(".quantization")
    CalibrationMethod, create_calibrator = quantization.CalibrationMethod, quantization.create_calibrator
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
        options["num_bins"] = BINS  # with as many bins as steps (the default) all ranges are equal
    with tempfile.TemporaryDirectory() as folder, _quiet():
        found = create_calibrator(
            _external.dump(graph, Path(folder) / "model.onnx"), list(OPERATORS),
            augmented_model_path=str(Path(folder) / "augmented.onnx"), calibrate_method=kinds[method],
            use_external_data_format=_external.too_large(graph), extra_options=options,
        )  # fmt: skip
        done, chunk = 0, CHUNK if images[0].size <= 3 * 64**2 else CHUNK // 4
        for count in counts:
            starts = range(done, count, chunk)  # in chunks: the calibrator keeps every activation of one call
            for start in counted(starts, count - done, f"int8     {method}, ran", chunk):
                found.collect_data(_Reader(graph.graph.input[0].name, images[start : min(start + chunk, count)]))
            done = max(done, count)
            if method == "entropy":
                print_line(f"int8     {method}, {count}: computing the ranges")
            if method == "entropy" and (name := _grown(found)):
                print_line(
                    f"int8     entropy, {count}: omitted, the range of {name} is over {MOST_BINS // BINS} times that of the first images"
                )
                return
            yield Ranges(method, count, found.compute_data())


def _grown(calibrator: Any) -> str:
    """A tensor whose histogram has more than ``MOST_BINS`` bins, since later images have far larger activations; empty if none has."""
    bins = {name: len(each[0]) for name, each in calibrator.collector.get_histogram_dict().items()}
    return next((name for name, count in bins.items() if count > MOST_BINS), "")


def limits(ranges: Ranges) -> dict[str, list[float]]:
    """Lowest and highest value of each tensor."""
    return {name: [float(np.min(each.lowest)), float(np.max(each.highest))] for name, each in ranges.values.items()}


def from_limits(method: str, count: int, found: Mapping[str, Sequence[float]]) -> Ranges:
    """Ranges of these lowest and highest values."""
    calibrate = runtimes.onnxruntime(".quantization.calibrate")
    pairs = {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}
    return Ranges(method, count, calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, pairs))


def calibrated(graph: ModelProto, images: np.ndarray, *, method: str = "minmax") -> ModelProto:
    """The 8 bit graph, calibrated on ``images`` as the file takes them; weights have 7 bits if 8 bits :func:`saturate`."""
    (ranges,) = calibrate(graph, images, method=method, counts=[len(images)])
    ranges = replace(ranges, means=_bias.input_means(graph, images))
    return quantise(graph, replace(ranges, narrow=saturate(graph, ranges, images)))


def outputs(graph: ModelProto, images: np.ndarray) -> np.ndarray:
    """(N, classes) of images as the file takes them."""
    session = _external.session(graph)
    name = session.get_inputs()[0].name
    starts = range(0, len(images), MANY)
    return np.concatenate([session.run(None, {name: images[start : start + MANY]})[0] for start in starts])


def saturate(graph: ModelProto, ranges: Ranges, images: np.ndarray) -> bool:
    """Whether weights of 7 bits give outputs clearly nearer to float32's than weights of 8, as on CPUs without VNNI."""
    images = images[:SATURATION]
    exact = outputs(graph, images)
    wide, narrow = (
        float(np.abs(outputs(quantise(graph, replace(ranges, narrow=each)), images) - exact).mean()) for each in (False, True)
    )
    if narrow < CLEARLY * wide:
        print_line(
            f"int8     weights in 7 bits: 8 bits saturate on this CPU (mean |difference| {narrow:.2g} instead of {wide:.2g})"
        )
    return narrow < CLEARLY * wide


def quantise(
    graph: ModelProto, ranges: Ranges, nodes: Sequence[str] | None = None, *, per_channel: bool = True,
    signed: tuple[bool, bool] = (True, False),
) -> ModelProto:  # fmt: skip
    """A float32 graph of :func:`_onnx.trace` with ``nodes`` (default: all of the model's) in 8 bits.

    Preprocessing stays in float32. ``signed`` is for weights and activations; `zoo bench int8_graph` compares the types.
    """
    names = _graph.model_nodes(graph) if nodes is None else list(nodes)
    QuantType = runtimes.onnxruntime(".quantization").QuantType
    QDQQuantizer = runtimes.onnxruntime(".quantization.qdq_quantizer").QDQQuantizer
    weights, activations = (QuantType.QInt8 if each else QuantType.QUInt8 for each in signed)
    with _quiet():
        quantiser = QDQQuantizer(
            graph, per_channel, ranges.narrow, weights, activations, ranges.values, names, [], list(OPERATORS),
            {"ActivationSymmetric": signed[1]},
        )  # fmt: skip
        quantiser.quantize_model()
        quantiser.model.topological_sort()  # done by onnxruntime's own writer
    made: ModelProto = quantiser.model.model
    if ranges.means:
        _bias.correct(made, graph, ranges.means)
    _onnx.clean(made)
    del made.graph.value_info[:]
    return made


class _Reader:
    """Data reader for a calibrator: one batch, then None."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self.left: list[dict[str, np.ndarray]] = [{name: images}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantiser's log messages and prints."""
    import io

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
