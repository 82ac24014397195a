"""Bias correction of an 8 bit graph: rounded weights shift the mean output of a layer, and the bias takes the shift back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2: the shift of output channel k is
sum_c (W'_kc - W_kc) E[x_c], with W' the rounded weights, summed over the kernel, and E[x_c] the mean of input channel c, here over the
calibration images in float32. Padding is neglected.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from zoo.export import _external

CORRECTED = ("Conv", "Gemm")
BATCH = 16


def input_means(graph: ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Mean (C,) of each channel of the inputs of all convolutions and linear layers, over images as the file takes them."""
    pooled = ModelProto()
    pooled.CopyFrom(graph)
    names = sorted({node.input[0] for node in graph.graph.node if node.op_type in CORRECTED})
    flat = {node.input[0] for node in graph.graph.node if node.op_type == "Gemm"}
    wanted = {name: name if name in flat else f"{name}/mean" for name in names}
    for name, mean in wanted.items():
        if mean != name:  # in the graph, as whole activations would need memory
            pooled.graph.node.append(onnx.helper.make_node("GlobalAveragePool", [name], [mean]))
    known = {each.name for each in (*graph.graph.output, *graph.graph.input)}
    pooled.graph.output.extend(
        onnx.helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None) for mean in wanted.values() if mean not in known
    )
    session, total = _external.session(pooled), dict.fromkeys(names, 0.0)
    fed = session.get_inputs()[0].name
    for start in range(0, len(images), BATCH):
        found = session.run(list(wanted.values()), {fed: images[start : start + BATCH]})
        for name, each in zip(names, found):
            total[name] += each.reshape(*each.shape[:2]).sum(0, dtype=np.float64)
    return {name: np.asarray(each) / len(images) for name, each in total.items()}


def correct(made: ModelProto, graph: ModelProto, means: Mapping[str, np.ndarray]) -> None:
    """Subtract the shifts from the 8 bit graph ``made`` of ``graph``; layers in float32 are unchanged."""
    exact = {each.name: each for each in graph.graph.initializer}
    stored = {each.name: each for each in made.graph.initializer}
    makers = {name: node for node in made.graph.node for name in node.output}
    layers = {node.name: node for node in made.graph.node}
    for old in graph.graph.node:
        new = layers.get(old.name)
        if old.op_type not in CORRECTED or new is None or len(new.input) < 3 or old.input[1] not in exact:
            continue
        weight, bias = (makers.get(name) for name in new.input[1:3])
        if weight is None or bias is None or any(each.input[0] not in stored for each in (weight, bias)):
            continue
        error = _values(weight, stored) - numpy_helper.to_array(exact[old.input[1]])
        scale = numpy_helper.to_array(stored[bias.input[1]]).astype(np.float64)
        whole = stored[bias.input[0]]
        left = numpy_helper.to_array(whole) - np.rint(_shift(old, error, means[old.input[0]]) / scale)
        limits = np.iinfo(np.int32)
        whole.CopyFrom(numpy_helper.from_array(np.clip(left, limits.min, limits.max).astype(np.int32), whole.name))


def _values(node: NodeProto, stored: Mapping[str, onnx.TensorProto]) -> np.ndarray:
    """The constant that a DequantizeLinear node returns; weights are symmetric, so their zero point is 0."""
    rounded = numpy_helper.to_array(stored[node.input[0]]).astype(np.float64)
    scale = numpy_helper.to_array(stored[node.input[1]]).astype(np.float64)
    axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
    return rounded * (scale.reshape([-1 if at == axis else 1 for at in range(rounded.ndim)]) if scale.size > 1 else scale)


def _shift(node: NodeProto, error: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Mean (K,) of the outputs that the error of the weights adds to a layer with these means of its inputs (C,)."""
    if node.op_type == "Gemm":
        across = next((each.i for each in node.attribute if each.name == "transB"), 0)
        return np.asarray((error if across else error.T) @ means)
    kernels, depth = error.shape[:2]
    group = np.arange(kernels) * (len(means) // depth) // kernels
    return np.asarray((error.reshape(kernels, depth, -1).sum(2) * means.reshape(-1, depth)[group]).sum(1))
