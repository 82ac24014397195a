"""Shortcuts without parameters (He et al. 2015, option A) as convolutions, so that onnxruntime keeps its blocked layout.

Slices and padding of channels are read and written in the plain layout, with a conversion before and after; a 1x1 convolution
with a stride, whose weights are ones and zeros, returns the same bits without conversions.
`zoo bench onnx_graph` measures the gain.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from zoo.export import _external

NAME = "shortcut."
"""Prefix of the names of these convolutions, whose multiplications are not counted for the model."""


def convolved(graph: ModelProto) -> ModelProto:
    """The graph, changed in place: strided rows and columns with zero channels become a convolution."""
    small = (each for each in graph.graph.initializer if len(each.raw_data) < _external.SMALL)  # steps and widths
    weights = {each.name: numpy_helper.to_array(each) for each in small}
    shapes = {each.name: each.type.tensor_type.shape.dim for each in _external.shaped(graph).graph.value_info}
    makers = {name: node for node in graph.graph.node for name in node.output}
    readers = [*(name for node in graph.graph.node for name in node.input), *(each.name for each in graph.graph.output)]
    gone: set[str] = set()
    for node in graph.graph.node:
        columns = makers.get(node.input[0]) if node.op_type == "Pad" else None
        rows = makers.get(columns.input[0]) if columns is not None else None
        if columns is None or rows is None or any(readers.count(each.output[0]) != 1 for each in (rows, columns)):
            continue
        pads, stride = _channel_pads(node, weights), _stride(rows, columns, weights)
        channels = shapes[columns.output[0]][1].dim_value if columns.output[0] in shapes else 0
        if pads is None or not stride or not channels:
            continue
        weight = np.zeros((pads[0] + channels + pads[1], channels, 1, 1), np.float32)
        weight[pads[0] + np.arange(channels), np.arange(channels)] = 1
        graph.graph.initializer.append(numpy_helper.from_array(weight, f"{NAME}{node.name}.weight"))
        gone |= {rows.output[0], columns.output[0]}
        node.CopyFrom(
            helper.make_node(
                "Conv", [rows.input[0], f"{NAME}{node.name}.weight"], list(node.output), f"{NAME}{node.name}", kernel_shape=[1, 1],
                strides=[stride, stride],
            )
        )  # fmt: skip
    if gone:
        _drop(graph, gone)
    return graph


def _channel_pads(node: NodeProto, weights: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    """Channels of zeros before and behind, if nothing else is padded."""
    constant = all(entry.s == b"constant" for entry in node.attribute if entry.name == "mode")
    pads = weights.get(node.input[1])
    if (
        not constant
        or len(node.input) != 2
        or pads is None
        or len(pads) != 8
        or any(pads[at] for at in (0, 2, 3, 4, 6, 7))
        or min(pads) < 0
    ):
        return None
    return int(pads[1]), int(pads[5])


def _stride(rows: NodeProto, columns: NodeProto, weights: Mapping[str, np.ndarray]) -> int:
    """The common step of two slices of all rows and all columns; 0 if they are something else."""
    steps = []
    for node, axis in ((rows, 2), (columns, 3)):
        if node.op_type != "Slice" or len(node.input) != 5 or not all(name in weights for name in node.input[1:]):
            return 0
        start, end, where, step = (weights[name].tolist() for name in node.input[1:])
        if start != [0] or where != [axis] or end[0] < 2**31 - 1 or step[0] < 1:
            return 0
        steps += step
    return int(steps[0]) if steps[0] == steps[1] else 0


def _drop(graph: ModelProto, gone: set[str]) -> None:
    """Remove the nodes that produce ``gone``, and unused weights."""
    nodes = [node for node in graph.graph.node if gone.isdisjoint(node.output)]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    taken = {name for node in nodes for name in node.input}
    kept = [each for each in graph.graph.initializer if each.name in taken]
    values = [each for each in graph.graph.value_info if each.name not in gone]
    del graph.graph.initializer[:], graph.graph.value_info[:]
    graph.graph.initializer.extend(kept)
    graph.graph.value_info.extend(values)
