"""Weights in a second file (ONNX's external data): above the size limit of one file, or on request.

The data file is named by its content, ``model.3f2a90c1.onnx.data``: it is on disk before the graph that names it replaces an
older one, so that both files change in one step and no graph is read with another's data.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import set_external_data

from zoo import files
from zoo.export import _session

LIMIT = 2_000_000_000
"""Largest size of weights in one file, in bytes; the limit of protobuf is 2 GiB."""
SMALL = 1024
"""Largest size of a tensor that stays in the graph, in bytes, as in onnx: shape inference reads small tensors."""
PAGE = 4096
"""Alignment of tensors, as recommended by ONNX, so that runtimes can map them."""


def too_large(graph: ModelProto) -> bool:
    """Whether the weights need a second file."""
    return sum(len(each.raw_data) for each in graph.graph.initializer) > LIMIT


def shaped(graph: ModelProto, *, strict: bool = False) -> ModelProto:
    """The graph with every shape that can be inferred, without its large weights; ``strict`` raises on a wrong type."""
    return onnx.shape_inference.infer_shapes(_without(graph, _large(graph)), strict_mode=strict)


def without_weights(graph: ModelProto) -> ModelProto:
    """A copy of the graph without the bytes of its large weights."""
    return _without(graph, _large(graph))


def session(graph: ModelProto, **options: Any) -> Any:
    """:func:`_session.open_session` of a graph in memory."""
    with tempfile.TemporaryDirectory() as folder:
        return _session.open_session(dump(graph, Path(folder) / "model.onnx"), **options)


def dump(graph: ModelProto, path: Path) -> Path:
    """Write a graph to ``path`` for a library that reads files."""
    with placed(graph, path) as (made, _):
        path.write_bytes(made.SerializeToString())
    return path


@contextlib.contextmanager
def placed(graph: ModelProto, path: Path, *, asked: bool = False) -> Iterator[tuple[ModelProto, list[Path]]]:
    """Context with the final graph of ``path`` and its data file, already written next to it, if any.

    At the end, data files of earlier graphs at ``path`` are removed, or the new one on an error. Another export to the same
    folder waits, so that neither removes the other's data.

    Raises:
        DiskError: the data file cannot be written.
    """
    large = _large(graph) if asked or too_large(graph) else []
    with files.alone(path):
        if not large:
            yield graph, []
            _sweep(path)
            return
        made, data, size = _apart(graph, large, path)
        new = not data.exists()
        files.publish(data, partial(_write, large), size=size)
        try:
            yield made, [data]
        except BaseException:
            if new:
                data.unlink(missing_ok=True)
            raise
        _sweep(path, data)


def _apart(graph: ModelProto, large: Sequence[TensorProto], path: Path) -> tuple[ModelProto, Path, int]:
    """The graph with ``large`` weights in a file next to ``path``, that file's name and size."""
    made, digest = _without(graph, large), hashlib.sha1(usedforsecurity=False)  # required by the ONNX specification
    for block in _blocks(large):
        digest.update(block)
    data = path.with_name(f"{path.stem}.{digest.hexdigest()[:8]}{path.suffix}.data")
    offset, outside = 0, (each for each in made.graph.initializer if each.data_location == TensorProto.EXTERNAL)
    for tensor, whole in zip(outside, large, strict=True):
        tensor.raw_data = b""  # required by onnx
        set_external_data(tensor, data.name, offset, len(whole.raw_data), digest.hexdigest())
        tensor.ClearField("raw_data")
        offset += len(whole.raw_data) + _gap(whole.raw_data)
    return made, data, offset


def _large(graph: ModelProto) -> list[TensorProto]:
    return [each for each in graph.graph.initializer if len(each.raw_data) >= SMALL]


def _without(graph: ModelProto, large: Sequence[TensorProto]) -> ModelProto:
    """A copy of a graph of zoo's in which ``large`` weights have no bytes."""
    made = ModelProto(ir_version=graph.ir_version, producer_name=graph.producer_name, producer_version=graph.producer_version)
    made.opset_import.extend(graph.opset_import)
    made.functions.extend(graph.functions)
    body, names = graph.graph, {each.name for each in large}
    made.graph.name = body.name
    for name in ("node", "input", "output", "value_info"):
        getattr(made.graph, name).extend(getattr(body, name))
    for each in body.initializer:
        outside = TensorProto(name=each.name, data_type=each.data_type, dims=each.dims, data_location=TensorProto.EXTERNAL)
        made.graph.initializer.append(outside if each.name in names else each)
    return made


def _blocks(large: Sequence[TensorProto]) -> Iterator[bytes]:
    for tensor in large:
        yield tensor.raw_data
        yield bytes(_gap(tensor.raw_data))


def _gap(raw: bytes) -> int:
    return -len(raw) % PAGE


def _write(large: Sequence[TensorProto], path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(_blocks(large))


def _sweep(path: Path, *keep: Path) -> None:
    """Remove data files of ``path`` from earlier or killed exports, except those to ``keep``."""
    name = rf"{re.escape(path.stem)}\.[0-9a-f]{{8}}{re.escape(path.suffix)}"
    own = re.compile(rf"{name}\.data|\.{name}\.\w{{8}}{re.escape(files.TEMPORARY)}\.data")
    for other in path.parent.iterdir():
        if own.fullmatch(other.name) and other not in keep:
            other.unlink(missing_ok=True)
