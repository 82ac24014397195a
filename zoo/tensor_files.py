"""Files of tensors with a digest of each tensor and of the header: neither safetensors nor torch detects a flipped bit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from zoo.errors import FileError
from zoo.files import publish
from zoo.recipe_types import converted

FORMAT = 2
"""Format 1, which zoo still reads, has no digest of the header."""
SIDE = 1 << 20
"""Largest height, width or number of channels in a header."""
Length = Annotated[int, msgspec.Meta(gt=0, le=SIDE)]
Triple = tuple[float, float, float]
H = TypeVar("H", bound="Header")


class Header(msgspec.Struct):
    """Header of a file; subclasses declare the fields that their readers use."""

    format: int
    version: str
    digests: dict[str, str]

    def check(self) -> None:
        """ValueError for a field with the right type and a wrong value."""


class WeightsHeader(Header):
    """Header of ``weights.safetensors``: the model and its input; ``frozen`` are the tensors that training did not change."""

    model: str
    classes: tuple[str, ...]
    input: tuple[Length, Length, Length]
    mean: Triple
    std: Triple
    epoch: int = 0
    chosen_on: str = ""
    chosen_accuracy: float | None = None
    """Accuracy on ``chosen_on`` that selected the epoch; the mean over classes if the recipe selects by macro accuracy."""
    frozen: dict[str, str] = {}

    def check(self) -> None:
        """ValueError if class names are missing or repeated, or the statistics cannot normalise an image."""
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: names must be distinct")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("mean, std: must be finite, std above 0")


def digest(tensor: Tensor) -> str:
    """First 16 hex digits of the sha256 of a tensor's values in row-major order."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:16]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able ``meta`` to a safetensors file with a digest of every tensor and of the header, atomically."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    digests = {name: digest(value) for name, value in plain.items()}
    text = json.dumps({"format": FORMAT, "version": zoo.__version__, "digests": digests, **meta})
    header = {"zoo": text, "sha256": _header_digest(text, plain)}
    publish(path, lambda temporary: save_file(plain, temporary, header), size=size_of(plain.values()) + len(text))


def _header_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 over ``text`` and the names, types and shapes of all tensors, which the digests of their bytes do not cover."""
    found = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        found.update(f"\n{name} {value.dtype} {tuple(value.shape)}".encode())
    return found.hexdigest()


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the values of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote and check every digest.

    Raises:
        FileError: missing, not a zoo file, written by a newer zoo, truncated, or a checksum differs (names the tensor).
    """
    if not path.is_file():
        raise FileError(f"no checkpoint ({path.absolute()}); train first: zoo train, or name another run")
    try:
        with safe_open(path, "pt") as file:
            stored = file.metadata() or {}
            meta = json.loads(stored["zoo"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # the parser raises many types, some without a text
        raise FileError(f"not a zoo checkpoint ({path}, {type(error).__name__}); use a file written by zoo train") from error
    header = typed(meta, Header, path)
    if header.format > FORMAT:
        raise FileError(
            f"written by a newer zoo ({path}, zoo {header.version} format {header.format}, "
            f"this is zoo {zoo.__version__} format {FORMAT}); upgrade zoo"
        )
    if (header.format > 1 or "sha256" in stored) and stored.get("sha256") != _header_digest(stored["zoo"], tensors):
        raise FileError(f"checksum differs in the header ({path}); the file is damaged, use another checkpoint")
    for name in sorted(header.digests.keys() | tensors.keys()):
        if name not in tensors or digest(tensors[name]) != header.digests.get(name):
            raise FileError(f"checksum differs in tensor {name} ({path}); the file is damaged, use another checkpoint")
    return tensors, meta


def typed(meta: Any, kind: type[H], path: Path) -> H:
    """The header ``meta`` of ``path`` as a record; FileError naming the first field that is missing or invalid."""
    try:
        header = converted(meta, kind)
        header.check()
    except ValueError as error:  # msgspec.ValidationError is one
        raise FileError(f"header cannot be used ({path}, {error}); use a file written by zoo train") from error
    return header


def load_weights(path: Path) -> tuple[dict[str, Tensor], WeightsHeader]:
    """:func:`load_tensors` of ``weights.safetensors``: finite tensors with their header.

    Raises:
        FileError: as :func:`load_tensors`; a field is missing or invalid; a weight is not finite.
    """
    tensors, meta = load_tensors(path)
    header = typed(meta, WeightsHeader, path)
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise FileError(f"weights are not finite ({path}, tensor {name}); train again, or use an earlier checkpoint")
    return tensors, header


def load_into(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Load tensors into a model by name; FileError naming their source ``where`` if they belong to another model."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise FileError(f"weights do not fit the model ({where}, {first[:90]}); use the run that wrote them") from error
