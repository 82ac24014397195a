"""ONNX with the model in float16 and everything around it in float32: inputs and outputs are those of the float32 file.

The model's part of the checked float32 graph (BatchNorm already folded in float32) is converted here: converting the whole
file with unchanged input types produced graphs with nodes out of order. Half the size; CPUs gain no speed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zoo.errors import DisagreeError
from zoo.export import _external, _graph, onnx_fp32
from zoo.spec import TargetSpec

if TYPE_CHECKING:
    from zoo.export._job import Job

TARGET = TargetSpec(format="onnx", precision="fp16", suffix=".fp16.onnx", tolerance=0.05, needs=onnx_fp32.TARGET.needs)
"""float16 keeps 11 bits: 5e-4 of a value at each layer. Values beyond :data:`LARGEST` inside the model fail the parity check."""
LARGEST = 65504.0
"""Of float16."""
FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that the operator requires in float32."""


write, answer, publish = onnx_fp32.write, onnx_fp32.answer, onnx_fp32.publish


def make(job: Job) -> ModelProto:
    """The graph of a job's model in float16."""
    return convert(job.exact)


def convert(graph: ModelProto) -> ModelProto:
    """A float32 graph of :func:`_onnx.trace` with the model's nodes in float16.

    Raises:
        DisagreeError: a weight is larger than float16 can hold.
    """
    made = ModelProto()
    made.CopyFrom(graph)
    body, inside = made.graph, set(_graph.model_nodes(made))
    kinds = _types(made)
    weights = {each.name: each for each in body.initializer}
    half: dict[str, str] = {}  # name of the float16 copy of each float32 tensor that enters the model
    nodes: list[NodeProto] = []
    for node in body.node:
        if node.name in inside:
            for place, name in enumerate(node.input):
                if kinds.get(name) != TensorProto.FLOAT or place in FLOAT32_INPUTS.get(node.op_type, ()):
                    continue
                if name not in half:
                    half[name] = f"{name}.half"
                    if name in weights:
                        body.initializer.append(_halved(weights[name], half[name]))
                    else:
                        nodes.append(helper.make_node("Cast", [name], [half[name]], f"{name}.to_half", to=TensorProto.FLOAT16))
                node.input[place] = half[name]
            _retype(node)
            half.update({name: name for name in node.output})
        nodes.append(node)
    nodes.append(_widened(made, nodes))
    del body.node[:]
    body.node.extend(nodes)
    taken = {name for node in nodes for name in node.input}
    kept = [each for each in body.initializer if each.name in taken]
    del body.initializer[:], body.value_info[:]
    body.initializer.extend(kept)
    body.value_info.extend(_external.shaped(made, strict=True).graph.value_info)
    return made


def _types(graph: ModelProto) -> dict[str, int]:
    """Element type of every tensor by name."""
    inferred = _external.shaped(graph).graph
    known = [*inferred.value_info, *inferred.input, *inferred.output]
    found = {each.name: each.type.tensor_type.elem_type for each in known}
    return found | {each.name: each.data_type for each in inferred.initializer}


def _halved(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    if values.size and (most := float(np.abs(values).max())) > LARGEST:
        raise DisagreeError(
            f"weight too large for float16 ({tensor.name}, {most:.3g}, limit {LARGEST:,.0f}); use --precision fp32; nothing published"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _retype(node: NodeProto) -> None:
    """Constants that a node creates in float32 become float16."""
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_halved(attribute.t, attribute.t.name))


def _widened(graph: ModelProto, nodes: list[NodeProto]) -> NodeProto:
    """The last node: the output converted back to float32 under its name; its producer and consumers use another name."""
    name = graph.graph.output[0].name
    for node in nodes:
        for names in (node.input, node.output):
            for place, other in enumerate(names):
                if other == name:
                    names[place] = f"{name}.half"
    return helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.to_float", to=TensorProto.FLOAT)
