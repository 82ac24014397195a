"""Small ONNX files as other programs write them, and what ``zoo bench`` does with each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from reads_cases import Case
from torch import nn

FLOAT, HALF, BYTE, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64
Ends = Sequence[tuple[str, int, Sequence[int | str]]]


def graph(
    nodes: list[onnx.NodeProto], inputs: Ends, outputs: Ends, weights: dict[str, np.ndarray], opset: int = 17
) -> onnx.ModelProto:
    ends = [[helper.make_tensor_value_info(*each) for each in part] for part in (inputs, outputs)]
    made = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(value, name) for name, value in weights.items()])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(made, opset_imports=imports, ir_version=8)


def values(*shape: int, kind: Any = np.float32) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) / 4).astype(kind)


def net(
    shape: Sequence[int | str] = ("n", 3, 8, 8), *, kind: int = FLOAT, opset: int = 17, name: str = "x", softmax: bool = False,
    permute: Sequence[int] = (), reshape: Sequence[int] = (), extra: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """Convolution, mean over the sides, linear layer to 4 classes, from an input of ``shape``."""
    dtype = np.float16 if kind == HALF else np.float32
    real = HALF if kind == HALF else FLOAT
    nodes, at = [], name
    if kind == BYTE:
        nodes.append(helper.make_node("Cast", [at], [at := "cast"], to=FLOAT))
    if permute:
        nodes.append(helper.make_node("Transpose", [at], [at := "permuted"], perm=permute))
    weights = {"w": values(5, 3, 3, 3, kind=dtype), "v": values(5, 4, kind=dtype)}
    nodes += [helper.make_node("Conv", [at, "w"], ["c"], name="conv"), helper.make_node("GlobalAveragePool", ["c"], ["p"])]
    if reshape:
        weights["s"] = np.array(reshape, np.int64)
        nodes.append(helper.make_node("Reshape", ["p", "s"], ["f"]))
    else:
        nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(helper.make_node("MatMul", ["f", "v"], ["l"], name="linear"))
    nodes.append(helper.make_node("Softmax" if softmax else "Identity", ["l"], ["y"]))
    outputs: list[tuple[str, int, Sequence[int | str]]] = [("y", real, [shape[0], 4])]
    if extra:
        nodes.append(helper.make_node("Identity", ["f"], ["features"]))
        outputs.insert(0, ("features", real, [shape[0], 5]))
    return graph(nodes, [(name, kind, shape)], outputs, weights, opset)


def two_inputs() -> onnx.ModelProto:
    node = helper.make_node("Add", ["a", "b"], ["y"])
    return graph([node], [("a", FLOAT, ["n", 3]), ("b", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])], {})


def skl(*, zipmap: bool) -> onnx.ModelProto:
    """A logistic regression as written by skl2onnx: rows of features to a label, and probabilities as a tensor or a list of maps."""
    nodes = [
        helper.make_node(
            "LinearClassifier", ["X"], ["label", "raw"], domain="ai.onnx.ml", classlabels_ints=[0, 1, 2], multi_class=1,
            post_transform="SOFTMAX", coefficients=values(12).tolist(), intercepts=[0.0, 0.1, 0.2],
        )
    ]  # fmt: skip
    outputs: Ends = [("label", INT, ["n"]), ("raw", FLOAT, ["n", 3])]
    model = graph(nodes, [("X", FLOAT, ["n", 4])], outputs, {})
    if zipmap:
        model.graph.node.append(
            helper.make_node("ZipMap", ["raw"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
        )
        del model.graph.output[:]
        kind = helper.make_sequence_type_proto(helper.make_map_type_proto(INT, helper.make_tensor_type_proto(FLOAT, [])))
        model.graph.output.append(helper.make_value_info("maps", kind))
    return model


def ending(op: str, **attributes: Any) -> onnx.ModelProto:
    """The net with another last node."""
    model = net()
    model.graph.node[-1].CopyFrom(helper.make_node(op, ["l"], ["y"], **attributes))
    return model


def infinite() -> onnx.ModelProto:
    """The net followed by the logarithm of a negative number."""
    model = net()
    model.graph.node[-1].CopyFrom(helper.make_node("Sub", ["l", "l"], ["zero"]))
    model.graph.node.append(helper.make_node("Log", ["zero"], ["y"]))
    return model


def noisy() -> onnx.ModelProto:
    """The net with noise added to its output, as by dropout in training mode."""
    model = net()
    model.graph.node[-1].CopyFrom(helper.make_node("RandomNormalLike", ["l"], ["noise"]))
    model.graph.node.append(helper.make_node("Add", ["l", "noise"], ["y"]))
    return model


def texts() -> onnx.ModelProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    return graph([node], [("x", TensorProto.STRING, ["n", 1])], [("y", TensorProto.STRING, ["n", 1])], {})


def by_torch(path: Path, *, dynamo: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    image = torch.zeros(2, 3, 16, 16)
    free = {"dynamic_shapes": ({0: "n"},)} if dynamo else {"dynamic_axes": {"image": {0: "n"}}, "input_names": ["image"]}
    torch.onnx.export(model.eval(), (image,), str(path), dynamo=dynamo, verbose=False, **free)


def saved(make: Callable[..., onnx.ModelProto], **options: Any) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(make(**options).SerializeToString())


def case(what: str, does: str, write: Callable[[Path], object], code: int = 0) -> Case:
    return Case("ONNX files, by `zoo bench`", what, does, write, code)


TABLE = "measured"
CASES = [
    *(case(f"opset {opset}", TABLE, saved(net, opset=opset)) for opset in (7, 11, 13, 18, 21, 23)),
    case("from torch.onnx.export with dynamo=True", TABLE, lambda path: by_torch(path, dynamo=True)),
    case("from torch.onnx.export with dynamo=False", TABLE, lambda path: by_torch(path, dynamo=False)),
    case("tf2onnx: NHWC with a Transpose in front", TABLE, saved(net, shape=("unk__1", 8, 8, 3), permute=(0, 3, 1, 2), name="input_1:0")),
    case("skl2onnx: a label and a tensor of probabilities", TABLE, saved(skl, zipmap=False)),
    case("skl2onnx: probabilities as a list of maps", "no output is a tensor of numbers", saved(skl, zipmap=True), 4),
    case("a fixed batch of 4", "accepts only batches of 4", saved(net, shape=(4, 3, 8, 8))),
    case("a dynamic batch size that the graph reshapes to 1", "accepts only batches of 1", saved(net, reshape=(1, 5))),
    case("an input that is not square", TABLE, saved(net, shape=("n", 3, 8, 12))),
    case("an input with dynamic height and width", "leaves sizes open: 3 x 224 x 224 is used", saved(net, shape=("n", 3, "h", "w"))),
    case("a uint8 input", TABLE, saved(net, kind=BYTE)),
    case("a float16 input", TABLE, saved(net, kind=HALF)),
    case("an input with another name", TABLE, saved(net, name="serving_default_image:0")),
    case("probabilities instead of logits", TABLE, saved(net, softmax=True)),
    case("several outputs", "has 2 outputs: features is used", saved(net, extra=True)),
    case("two inputs", "model has 2 inputs", saved(two_inputs), 4),
    case("a string input", "input is not a batch of numbers", saved(texts), 4),
    case("an output that is not finite", "output is not finite", saved(infinite), 4),
    case("an output that differs from run to run", "output differs between runs", saved(noisy), 4),
    case("one number for a whole batch", "returns one number per batch", saved(ending, op="ReduceSum", keepdims=0), 4),
    case("an operator that onnxruntime lacks", "not a model that onnxruntime can run", saved(ending, op="Nonesuch"), 4),
]  # fmt: skip
