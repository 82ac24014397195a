"""Files of a run folder that hold numbers: weights, the state to resume from, rows of metrics.

Everything is safetensors or JSON. Each tensor carries a digest, since neither safetensors nor torch notice a flipped bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import tensor_files
from zoo.errors import DivergedError, FileError
from zoo.files import as_disk_error, publish_text

CHOOSING = {"val": "val", "test": "test each epoch"}
"""For each ``select_on`` of a recipe the name of the split in ``metrics.jsonl`` by which the epoch to keep was chosen."""
KEPT = 2
"""States kept in ``last/``: the newest and one to fall back on."""


def room(model: nn.Module, optimizer: torch.optim.Optimizer, *, averaged: bool) -> int:
    """Bytes that the states and weights of a run take at the most, a temporary file included."""
    one = tensor_files.size_of(model.state_dict().values())
    slots = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    trained = tensor_files.size_of(p for group in optimizer.param_groups for p in group["params"])
    return (KEPT + 1) * (one * (2 if averaged else 1) + slots * trained) + 2 * one


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
    tensor_files.save_tensors(path, tensors, meta)
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
            return *tensor_files.load_tensors(path), warnings
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
    with as_disk_error(path), path.open("ab") as file:
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


def write_tensorboard(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows of an epoch to the events in ``tensorboard/``; DiskError on a full disk."""
    from torch.utils.tensorboard import SummaryWriter

    place = folder / "tensorboard"
    with as_disk_error(place), SummaryWriter(str(place)) as writer:
        for row in rows:
            for key in ("loss", "accuracy", "lr", "images_per_s"):
                if key in row:
                    writer.add_scalar(f"{row['split']}/{key}", row[key], row["epoch"])


def data_changes(folder: Path, manifest: np.ndarray | None) -> str:
    """How many images were added, removed and changed since the run's manifest was written; empty if that is unknown."""
    path = folder / "last" / "manifest.npy"
    if not path.is_file() or manifest is None:
        return ""
    before, now = (dict(each.tolist()) for each in (np.load(path), manifest))
    changed = sum(now[name] != content for name, content in before.items() if name in now)
    return f"{len(now.keys() - before.keys())} added, {len(before.keys() - now.keys())} removed, {changed} changed"
