"""Trace, clean, save and check ONNX graphs made by torch's exporter."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import ModelProto

from zoo import files
from zoo.errors import UsageError
from zoo.export import _external, _session, _shortcut, _tracing, _wire
from zoo.export._graph import Exported

OPSETS = range(18, 24)
"""torch's exporter silently writes 18 for less; 23 is the newest that all supported versions of torch can write."""


OPSET = 20


ORT_OPSETS = (((1, 14), 18), ((1, 16), 19), ((1, 17), 20), ((1, 18), 21), ((1, 21), 22), ((1, 23), 23))
"""onnxruntime versions and their newest opset; 1.15 lists 19 but lacks its Reshape (tested: 1.15 to 1.20)."""


def check_opset(opset: int | None, target_ort: str | None = None) -> int:
    """The opset to use: the requested one, or the newest (up to the default) that onnxruntime ``target_ort`` reads.

    Raises:
        UsageError: outside the range, both given, or an onnxruntime that is too old or not a version.
    """
    if opset is not None and target_ort:
        raise UsageError(f"opset {opset} and target-ort {target_ort} both select the operator set; give one of them")
    if target_ort:
        numbers = target_ort.split(".")
        if len(numbers) < 2 or not all(part.isdecimal() for part in numbers):
            raise UsageError(f"target-ort {target_ort[:20]!r} is not a version; write e.g. 1.17")
        version = (int(numbers[0]), int(numbers[1]))
        fitting = [newest for since, newest in ORT_OPSETS if since <= version]
        if not fitting:
            first = ".".join(map(str, ORT_OPSETS[0][0]))
            raise UsageError(
                f"onnxruntime {target_ort} cannot read opset {OPSETS[0]} or newer; the oldest supported version is {first}"
            )
        return min(OPSET, fitting[-1])
    if opset is not None and opset not in OPSETS:
        raise UsageError(f"opset {opset} is not supported; use one from {OPSETS[0]} to {OPSETS[-1]}")
    return opset or OPSET


def trace(model: Exported, *, opset: int = OPSET) -> ModelProto:
    """The graph: input ``image``, output ``logits`` or ``probabilities``, first dimension ``batch``.

    Raises:
        FileError: the model cannot be traced, or ONNX lacks one of its operators.
    """
    return _shortcut.convolved(written(model, opset=opset))


def written(model: Exported, *, opset: int = OPSET) -> ModelProto:
    """:func:`trace` without clean-up; the nodes are those of the model's code."""
    example, free = model.example()
    with _tracing.tracing():
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=opset, external_data=False, optimize=True, verbose=False,
            input_names=["image"], output_names=["probabilities" if model.softmax else "logits"], dynamic_shapes=free,
        )  # fmt: skip
    assert program is not None
    graph = program.model_proto
    _name_by_module(graph)
    clean(graph)
    return graph


def _name_by_module(graph: ModelProto) -> None:
    """Prefix the names of the model's nodes with their PyTorch module: ``layer1.0.conv1/Conv_373``.

    Names of weights are preferred to the exporter's scopes: the scope of a folded BatchNorm is on the convolution.
    """
    weights = {each.name for each in graph.graph.initializer}
    for node in graph.graph.node:
        owners = [
            name.removeprefix("model.").rpartition(".")[0]
            for name in node.input
            if name in weights and name.startswith("model.")
        ]
        scopes: list[str] = next(
            (ast.literal_eval(each.value) for each in node.metadata_props if each.key.endswith("name_scopes")), []
        )
        inner = [str(scope).removeprefix("model.") for scope in scopes[:-1] if str(scope).startswith("model.")]
        if owner := next(iter(owners), inner[-1] if inner else ""):
            node.name = f"{owner}/{node.name.removeprefix('node_')}"


def clean(graph: ModelProto) -> None:
    """Remove debugging data of the exporter (stack traces with paths of this machine) and unused imports."""
    inside = [*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer]
    for part in [graph, graph.graph, *inside, *graph.functions]:
        del part.metadata_props[:]
        part.ClearField("doc_string")
    used = {node.domain for node in graph.graph.node} | {node.domain for each in graph.functions for node in each.node}
    imports = [entry for entry in graph.opset_import if entry.domain in used]
    del graph.opset_import[:]
    graph.opset_import.extend(imports)
    # the oldest format that has these operators, so that older runtimes read it; 8 came with opset 17
    graph.ir_version = max(8, onnx.helper.find_min_ir_version_for(imports))


def save(graph: ModelProto, path: Path, metadata: Mapping[str, str], *, external_data: bool = False) -> list[Path]:
    """Publish a graph with these metadata_props, after onnx's full check and a test load by onnxruntime.

    Returns:
        ``path`` and, with ``external_data`` or large weights, the data file next to it. Its checksum is in the graph and thus
        part of ``content_sha256``.

    Raises:
        DiskError: a file cannot be written; both are then unchanged.
    """
    import zoo

    graph.producer_name, graph.producer_version = "zoo", zoo.__version__
    del graph.metadata_props[:]
    with _external.placed(graph, path, asked=external_data) as (made, beside):
        content = _wire.content_sha256(memoryview(made.SerializeToString(deterministic=True)))
        facts = dict(metadata) | {"content_sha256": content}
        facts["receipt_sha256"] = _wire.receipt_sha256(facts)
        onnx.helper.set_model_props(made, facts)
        files.publish(path, lambda part: part.write_bytes(made.SerializeToString(deterministic=True)), _check)
    return [path, *beside]


def _check(path: Path) -> None:
    onnx.checker.check_model(str(path), full_check=True)
    _session.open_session(path)
