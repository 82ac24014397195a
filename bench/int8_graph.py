"""Where the time of an int8 file goes in onnxruntime: types of numbers, fusion and layout, against OpenVINO on the same file.

Each variant is timed against the file of ``zoo export --precision int8`` in the same rounds on the same images.
:func:`zoo.export._quantise.quantise` uses the fastest types.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from zoo import machine, runtimes
from zoo import run as engine
from zoo.bench import _runtimes, _timing, _variants
from zoo.bench._contenders import Call
from zoo.export import _graph, _onnx, _quantise
from zoo.training import model_specs

BASE = "zoo export (activations uint8, weights int8 per channel)"
BATCHES = (1, 64)
TOLERANCE = 0.5
"""Largest difference from float32 in standard deviations of its logits; it detects a wrong graph, not a loss of accuracy."""


def main(
    quick: bool = False, *, out: Path | None = None, model: str = "resnet32", batches: Sequence[int] = (), seconds: float = 0.0
) -> Path:
    """Time all variants at each batch size with random weights, calibrated on the measured images; returns the CSV.

    Raises:
        DisagreeError: a variant disagrees with float32.
    """
    out, rows = out or _timing.default_out("int8_graph", quick=quick), []
    for batch in batches or BATCHES:
        calls = _calls(model, batch)
        _variants.check(calls, "float32", lambda truth: TOLERANCE * max(float(truth.std()), 1e-12), f"{model}, batch {batch}")
        rows += _variants.rows(model, batch, calls, BASE, seconds or (2.0 if quick else 40.0))
    return _timing.write_csv(out, rows)


def _calls(name: str, batch: int) -> dict[str, Call]:
    """The variants by name, each a call that returns the logits of the same images."""
    onnxruntime = runtimes.onnxruntime()
    torch.manual_seed(0)
    model, size = engine.create_model(name), model_specs.model_spec(name).input[1]
    images = np.random.default_rng(0).standard_normal((max(batch, 32), 3, size, size), np.float32)
    with torch.no_grad():
        model.train()(torch.from_numpy(images))  # else BatchNorm has the statistics of no images
    graph = _onnx.trace(_graph.Exported(model, (0.0,) * 3, (1.0,) * 3, size=size, stored=size, preprocess="none"))
    (ranges,) = _quantise.calibrate(graph, images, method="minmax", counts=[len(images)])
    images = images[:batch]

    def made(**types: Any) -> ModelProto:
        copy = ModelProto()
        copy.CopyFrom(graph)
        return _quantise.quantise(copy, ranges, **types)

    file, levels = made(), onnxruntime.GraphOptimizationLevel
    ways: dict[str, Call] = {
        BASE: _variants.session(file, images),
        "weights int8 per tensor": _variants.session(made(per_channel=False), images),
        "weights uint8 per tensor": _variants.session(made(per_channel=False, signed=(False, False)), images),
        "activations int8": _variants.session(made(signed=(True, True)), images),
        "option: no conversion to NHWC": _variants.session(
            file, images, lambda options: setattr(options, "graph_optimization_level", levels.ORT_ENABLE_EXTENDED)
        ),
        "option: no fusion of QDQ": _variants.session(file, images, _entry("session.disable_quant_qdq")),
        "option: weights not packed": _variants.session(file, images, _entry("session.disable_prepacking")),
        "float32": _variants.session(graph, images),
    }
    return ways | _openvino(graph, file, images)


def _entry(key: str) -> Any:
    """A change of the session's options."""
    return lambda options: options.add_session_config_entry(key, "1")


def _openvino(graph: ModelProto, file: ModelProto, images: np.ndarray) -> dict[str, Call]:
    """OpenVINO on the same files, if it is installed."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {"fp32": Path(folder) / "model.onnx", "int8": Path(folder) / "model.int8.onnx"}
        for path, each in zip(paths.values(), (graph, file), strict=True):
            path.write_bytes(each.SerializeToString())
        found = _runtimes.of_openvino(paths, machine.cores(), half=False)
        return {each.name: each.prepare(torch.from_numpy(images)).call for each in found}


table = _variants.table
