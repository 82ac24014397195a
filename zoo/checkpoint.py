"""Files of a run folder that hold numbers: weights, the state to resume from, rows of metrics.

Everything is safetensors or JSON. Each tensor carries a digest, since neither safetensors nor torch notice a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from zoo.files import publish, publish_text, telling_disk_faults
from zoo.spec import DivergedError, FileError

FORMAT = 1
CHOOSING = {"val": "val", "test": "test each epoch"}
"""For each ``select_on`` of a recipe the name of the split in ``metrics.jsonl`` by which the epoch to keep was chosen."""
KEPT = 2
"""States kept in ``last/``: the newest and one to fall back on."""


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


def room(model: nn.Module, optimizer: torch.optim.Optimizer, *, averaged: bool) -> int:
    """Bytes that the states and weights of a run take at the most, a temporary file included."""
    one = size_of(model.state_dict().values())
    slots = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    trained = size_of(p for group in optimizer.param_groups for p in group["params"])
    return (KEPT + 1) * (one * (2 if averaged else 1) + slots * trained) + 2 * one


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


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Publish a state to resume from and drop all but the newest :data:`KEPT`.

    Raises:
        DivergedError: a value is not finite; the states that are there stay.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DivergedError(
                f"{name} is not finite (step {step}); the last good state is kept: lower optim.lr or set optim.clip=1"
            )
    path = folder / "last" / f"state-{step:09d}.safetensors"
    save_tensors(path, tensors, meta)
    for old in states(folder)[KEPT:]:
        old.unlink()


def states(folder: Path) -> list[Path]:
    """State files of a run, newest first."""
    return sorted((folder / "last").glob("state-*.safetensors"), reverse=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The newest state that is whole, with one warning for each newer one that isn't; FileError if there is none."""
    warnings: list[str] = []
    for path in states(folder):
        try:
            return *load_tensors(path), warnings
        except FileError as error:
            warnings.append(f"skipping a damaged state: {error}")
    if warnings:
        raise FileError("no state can be read; " + "; ".join(warnings))
    raise FileError(f"no state to resume from ({(folder / 'last').absolute()}); start again with --force")


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors named ``<parameter>.<key>`` and JSON-able scalars."""
    tensors, scalars = {}, {}
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{key}"] = value
            elif value is not None:
                scalars[f"{number}.{key}"] = value
    return tensors, scalars


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Put back what :func:`pack_optimizer` took, in the memory layout of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **scalars}.items():
        number, _, key = name.partition(".")
        if isinstance(value, Tensor) and value.shape == parameters[int(number)].shape and value.dim() > 0:
            value = torch.empty_like(parameters[int(number)], dtype=value.dtype).copy_(value)
        state.setdefault(int(number), {})[key] = value
    full = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": full["param_groups"]})


def append_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to ``metrics.jsonl``, flushed to disk: all of them, or on a full disk (DiskError) none."""
    path = folder / "metrics.jsonl"
    with telling_disk_faults(path), path.open("ab") as file:
        before = file.tell()
        try:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; a last line cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_rows(folder: Path, epochs: int) -> None:
    """Drop rows of epochs after the first ``epochs`` (they will be run again)."""
    rows = [row for row in read_rows(folder) if row["epoch"] <= epochs and row["split"] != "test"]
    publish_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
