"""Effect of export variants on onnxruntime: one model's graph written in several ways and opened with several options.

Each variant is timed against torch's graph in the same rounds on the same images, with OpenVINO as a reference.
:func:`zoo.export._onnx.trace` uses the variants with a gain above the noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper

from zoo import machine
from zoo import run as engine
from zoo.bench import _runtimes, _timing, _variants
from zoo.bench._contenders import FP32_TOLERANCE, Call
from zoo.export import _graph, _onnx, _shortcut
from zoo.training import model_specs

BASE = "as torch writes it"
BATCHES = (1, 8, 64)
STATISTICS = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
"""Mean and standard deviation of images, near CIFAR-10's."""


def main(
    quick: bool = False, *, out: Path | None = None, model: str = "resnet32", batches: Sequence[int] = (), seconds: float = 0.0
) -> Path:
    """Time all variants at each batch size with random weights; returns the CSV.

    Raises:
        DisagreeError: a variant disagrees.
    """
    out, rows = out or _timing.default_out("onnx_graph", quick=quick), []
    for batch in batches or BATCHES:
        calls = _calls(model, batch)
        _variants.check(
            calls, BASE, lambda truth: FP32_TOLERANCE * max(1.0, float(np.abs(truth).max())), f"{model}, batch {batch}"
        )
        rows += _variants.rows(model, batch, calls, BASE, seconds or (2.0 if quick else 40.0))
    return _timing.write_csv(out, rows)


def _calls(name: str, batch: int) -> dict[str, Call]:
    """The variants by name, each a call that returns the logits of the same images."""
    torch.manual_seed(0)
    model, size = engine.create_model(name), model_specs.model_spec(name).input[1]
    images = np.random.default_rng(0).random((batch, 3, size, size), np.float32)
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in STATISTICS)
    graphs = {
        mode: _onnx.written(_graph.Exported(model, *STATISTICS, size=size, stored=size, preprocess=mode))
        for mode in ("normalize", "none")
    }
    graph = graphs["normalize"]
    normalised = np.ascontiguousarray((images - mean) / std, np.float32)
    fixed: Callable[[Any], None] = lambda options: options.add_free_dimension_override_by_name("batch", batch)  # noqa: E731
    ways: dict[str, Call] = {
        BASE: _variants.session(graph, images),
        "shortcut as 1x1 convolution (zoo export)": _variants.session(_shortcut.convolved(_copied(graph)), images),
        "mean as GlobalAveragePool": _variants.session(pooled(graph), images),
        "shortcut and mean": _variants.session(pooled(_shortcut.convolved(_copied(graph))), images),
        "no normalisation (folded, it could not be faster)": _variants.session(graphs["none"], normalised),
        "option: batch fixed": _variants.session(graph, images, fixed),
        "option: no memory pattern": _variants.session(
            graph, images, lambda options: setattr(options, "enable_mem_pattern", False)
        ),
        "option: denormals are zero": _variants.session(
            graph, images, lambda options: options.add_session_config_entry("session.set_denormal_as_zero", "1")
        ),
    }
    return ways | _openvino(graph, images)


def _openvino(graph: ModelProto, images: np.ndarray) -> dict[str, Call]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(graph.SerializeToString())
        found = _runtimes.of_openvino({"fp32": path}, machine.cores(), half=False)
        return {each.name: each.prepare(torch.from_numpy(images)).call for each in found}


def pooled(graph: ModelProto) -> ModelProto:
    """A copy in which means over height and width are GlobalAveragePool and Flatten."""
    made = _copied(graph)
    weights = {each.name: numpy_helper.to_array(each) for each in made.graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.graph.node:
        if node.op_type == "ReduceMean" and sorted(weights[node.input[1]].tolist()) in ([2, 3], [-2, -1]):
            nodes.append(
                helper.make_node("GlobalAveragePool", [node.input[0]], [f"{node.output[0]}.pool"], f"{node.name}.pool")
            )
            nodes.append(helper.make_node("Flatten", [f"{node.output[0]}.pool"], list(node.output), f"{node.name}.flat"))
        else:
            nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    onnx.checker.check_model(made, full_check=True)
    return made


def _copied(graph: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(graph)
    return made


table = _variants.table
