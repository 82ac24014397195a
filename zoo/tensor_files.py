"""Files of tensors with a digest of each: neither safetensors nor torch notice a flipped bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from zoo.errors import FileError
from zoo.files import publish

FORMAT = 1


def digest(tensor: Tensor) -> str:
    """First 16 hex digits of the sha256 of a tensor's values in row-major order."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:16]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able ``meta`` to a safetensors file with a digest of every tensor, atomically."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    digests = {name: digest(value) for name, value in plain.items()}
    header = {"zoo": json.dumps({"format": FORMAT, "version": zoo.__version__, "digests": digests, **meta})}
    publish(path, lambda temporary: save_file(plain, temporary, header), size=size_of(plain.values()) + len(header["zoo"]))


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the values of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote and check every digest.

    Raises:
        FileError: missing, not a zoo file, written by a newer zoo, torn, or a checksum differs (names the tensor).
    """
    if not path.is_file():
        raise FileError(f"no checkpoint ({path.absolute()}); train first: zoo train, or name another run")
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["zoo"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # one boundary around the parser: it raises many types, some without a text
        raise FileError(f"not a zoo checkpoint ({path}, {type(error).__name__}); use a file that zoo train wrote") from error
    if meta["format"] > FORMAT:
        raise FileError(
            f"written by a newer zoo ({path}, zoo {meta.get('version', '?')} format {meta['format']}, "
            f"this is zoo {zoo.__version__} format {FORMAT}); upgrade zoo"
        )
    for name, tensor in tensors.items():
        if digest(tensor) != meta["digests"].get(name):
            raise FileError(f"checksum differs in tensor {name} ({path}); the file is damaged, use another checkpoint")
    return tensors, meta


def load_into(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Put tensors by name into a model; FileError naming ``where`` they are from if they are of another one."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise FileError(f"weights do not fit the model ({where}, {first[:90]}); use the run they are of") from error
