"""Bias correction of an 8 bit graph: rounded weights shift the mean output of a layer, and the bias takes the shift back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2. A layer is linear, so its mean
shift is its output for the mean input and the error of the rounded weights; the mean is over the calibration images in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from zoo.export import _external, _graph

CORRECTED = ("Conv", "Gemm")
BATCH = 16


def input_means(graph: ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Mean (C, ...) of the inputs of all convolutions and linear layers of the model, over images as the file takes them."""
    model = set(_graph.model_nodes(graph))
    names = sorted({node.input[0] for node in graph.graph.node if node.op_type in CORRECTED and node.name in model})
    if not names:
        return {}
    averaged = ModelProto()
    averaged.CopyFrom(graph)
    averaged.graph.initializer.append(numpy_helper.from_array(np.array([0]), "mean/axes"))
    for name in names:  # averaged in the graph: whole activations would need memory
        averaged.graph.node.append(onnx.helper.make_node("ReduceMean", [name, "mean/axes"], [f"{name}/mean"], keepdims=0))
        averaged.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}/mean", onnx.TensorProto.FLOAT, None))
    session = _external.session(averaged)
    fed, total = session.get_inputs()[0].name, dict.fromkeys(names, 0.0)
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        for name, mean in zip(names, session.run([f"{name}/mean" for name in names], {fed: part})):
            total[name] += mean * len(part)
    return {name: np.asarray(each, np.float32) / len(images) for name, each in total.items()}


def correct(made: ModelProto, graph: ModelProto, means: Mapping[str, np.ndarray]) -> None:
    """Subtract the shifts from the biases of the 8 bit graph ``made`` of ``graph``.

    Layers in float32, without a bias or with one that another layer of ``made`` reads as well are unchanged.
    """
    exact = {each.name: each for each in graph.graph.initializer}
    stored = {each.name: each for each in made.graph.initializer}
    makers = {name: node for node in made.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    readers = Counter(name for node in made.graph.node for name in node.input)
    layers = {node.name: node for node in made.graph.node}
    biases, errors = [], []
    for old in graph.graph.node:
        new = layers.get(old.name)
        if new is None or old.op_type not in CORRECTED or old.input[0] not in means or len(new.input) < 3:
            continue
        weight, bias = (makers.get(name) for name in new.input[1:3])
        if not weight or not bias or any(each.input[0] not in stored for each in (weight, bias)):
            continue
        if old.input[1] not in exact or readers[new.input[2]] > 1:
            continue
        error = _values(weight, stored)
        error -= numpy_helper.to_array(exact[old.input[1]])
        biases.append(bias)
        errors.append((old, error))
    limits = np.iinfo(np.int32)
    for bias, shift in zip(biases, _shifts(errors, means)):
        left = numpy_helper.to_array(stored[bias.input[0]]) - np.rint(shift / numpy_helper.to_array(stored[bias.input[1]]))
        whole = np.clip(left, limits.min, limits.max).astype(np.int32)
        stored[bias.input[0]].CopyFrom(numpy_helper.from_array(whole, bias.input[0]))


def _values(node: NodeProto, stored: Mapping[str, onnx.TensorProto]) -> np.ndarray:
    """The float32 constant that a DequantizeLinear node returns; weights are symmetric, so their zero point is 0."""
    rounded = numpy_helper.to_array(stored[node.input[0]])
    scale = numpy_helper.to_array(stored[node.input[1]])
    axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
    return rounded * (scale.reshape([-1 if at == axis else 1 for at in range(rounded.ndim)]) if scale.size > 1 else scale)


def _shifts(errors: Sequence[tuple[NodeProto, np.ndarray]], means: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Mean output (K,) of each layer with these weights and without a bias for its mean input (C, ...), all in one graph."""
    nodes, ends, weights, fed = [], [], [], {}
    for at, (node, error) in enumerate(errors):
        alone = NodeProto()
        alone.CopyFrom(node)
        del alone.input[:], alone.output[:]
        alone.input.extend([f"x{at}", f"w{at}"])
        alone.output.append(f"y{at}")
        nodes.append(alone)
        weights.append(numpy_helper.from_array(error, f"w{at}"))
        ends.append([onnx.helper.make_tensor_value_info(f"{name}{at}", onnx.TensorProto.FLOAT, None) for name in "xy"])
        fed[f"x{at}"] = means[node.input[0]][None]
    if not nodes:
        return []
    graph = onnx.helper.make_graph(nodes, "shifts", [x for x, _ in ends], [y for _, y in ends], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    found = _external.session(model).run(None, fed)
    return [each[0].reshape(each.shape[1], -1).mean(1, dtype=np.float64) for each in found]
