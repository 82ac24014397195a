"""Read the outline of an ONNX file without any library: its tensors' external data and a digest of its content.

Protocol buffers' wire format (fields of varint, 8 bytes, length and bytes, 4 bytes), as far as ONNX uses it. Only the few
needed strings are decoded, so that a file of arbitrary bytes is reported as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
}
"""Fields of onnx.proto's messages that lead to tensors."""
DEPTH = 100
GRAPH, METADATA = 7, 14
OTHER = "damaged, or another format"


@dataclass
class Tensor:
    """Header of a TensorProto; ``external`` is empty if its values are in the file."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    external: dict[str, str] = field(default_factory=dict)


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message; ValueError if it is malformed."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError(OTHER)
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(OTHER)
        if size > len(data) - at:
            raise ValueError("cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("cut off")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(OTHER)


def tensors(data: memoryview) -> list[Tensor]:
    """Every tensor of a ModelProto, in subgraphs and functions too; ValueError if it is malformed or has no graph."""
    found: list[Tensor] = []
    graphs = 0
    waiting: list[tuple[str, memoryview, int]] = [("model", data, 0)]
    while waiting:
        kind, part, depth = waiting.pop()
        if depth > DEPTH:
            raise ValueError("nested too deeply")
        for number, value in fields(part):
            child = CHILDREN[kind].get(number)
            if child is None:
                continue
            if not isinstance(value, memoryview):
                raise ValueError(OTHER)
            graphs += kind == "model" and number == GRAPH
            if child == "tensor":
                found.append(_tensor(value))
            else:
                waiting.append((child, value, depth + 1))
    if not graphs:
        raise ValueError("no graph")
    return found


def _tensor(data: memoryview) -> Tensor:
    made = Tensor()
    for number, value in fields(data):
        if number == 1:
            made.dims += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            made.kind = value
        elif number == 8 and isinstance(value, memoryview):
            made.name = text(value)
        elif number == 13 and isinstance(value, memoryview):
            entry = {key: text(part) for key, part in fields(value) if isinstance(part, memoryview)}
            made.external[entry.get(1, "")] = entry.get(2, "")
        elif number == 14 and value == 1:
            made.external.setdefault("location", "")
    return made


def _packed(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def text(data: memoryview) -> str:
    """Bytes as text for a message: UTF-8, with escapes for other bytes."""
    return bytes(data).decode("utf-8", "backslashreplace")


def metadata(data: memoryview) -> dict[str, str]:
    """The metadata_props of a ModelProto."""
    found = {}
    for number, value in fields(data):
        if number == METADATA and isinstance(value, memoryview):
            entry = {key: text(part) for key, part in fields(value) if isinstance(part, memoryview)}
            found[entry.get(1, "")] = entry.get(2, "")
    return found


def content_sha256(data: memoryview) -> str:
    """sha256 over everything in a ModelProto but its metadata_props, weights included, in the order of the file."""
    found = hashlib.sha256()
    for number, value in fields(data):
        if number != METADATA:
            raw = str(value).encode() if isinstance(value, int) else value
            found.update(f"{number} {len(raw)}\n".encode())
            found.update(raw)
    return found.hexdigest()


def receipt_sha256(facts: dict[str, str]) -> str:
    """sha256 over the metadata except the digest itself."""
    pairs = [f"{len(key)} {key} {len(value)} {value}\n" for key, value in sorted(facts.items()) if key != "receipt_sha256"]
    return hashlib.sha256("".join(pairs).encode()).hexdigest()
