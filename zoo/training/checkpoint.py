"""Numeric files of a run folder: weights, the state to resume from, rows of metrics.

Everything is safetensors or JSON. Each tensor, header and row has a checksum: neither safetensors nor torch detects a flipped
bit.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from zoo import tensor_files
from zoo.errors import DataError, DivergedError, FileError
from zoo.files import as_disk_error, check_own, own_folder, publish, publish_text
from zoo.recipe_types import converted
from zoo.spec import DataSet

CHOOSING = {"val": "val", "test": "test each epoch"}
"""For each ``select_on`` of a recipe the name in ``metrics.jsonl`` of the split that selects the epoch."""
KEPT = 2
"""Number of states kept in ``last/``: the newest and one fallback."""


Count = Annotated[int, msgspec.Meta(ge=0)]


class StateHeader(tensor_files.Header):
    """Header of a state: progress of the run, and what must match when it is resumed (None in older states: unknown)."""

    epoch: Count
    skip: Count
    best: float
    best_epoch: Count
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    totals: tuple[float, Count, Count]
    """Of the unfinished epoch: sum of losses, correct predictions, samples seen."""
    optim: dict[str, bool | int | float | str | None]
    """State of the optimizer that is not tensors."""
    data_digest: str
    frozen: dict[str, str]
    scaler: dict[str, float] | None = None
    plateau: dict[str, float] | None = None
    model: str | None = None
    classes: int | None = None
    optimizer: str | None = None
    teachers: list[str] | None = None
    """Digests of the weights that are distilled."""
    threads: int | None = None
    torch: str | None = None
    device: str | None = None
    precision: str | None = None
    processes: int | None = None


def room(model: nn.Module, optimizer: torch.optim.Optimizer, *, averaged: bool) -> int:
    """Largest total size of the states and weights of a run in bytes, including a temporary file."""
    one = tensor_files.size_of(model.state_dict().values())
    slots = 1 if type(optimizer).__name__ in ("SGD", "Lion") else 2  # by name: importing Lion would import timm
    trained = tensor_files.size_of(p for group in optimizer.param_groups for p in group["params"])
    return (KEPT + 1) * (one * (2 if averaged else 1) + slots * trained) + 2 * one


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Publish a state to resume from and drop all but the newest :data:`KEPT`.

    Raises:
        DivergedError: a value is not finite; existing states are kept.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DivergedError(
                f"{name} is not finite (step {step}); the last good state is kept: lower optim.lr or set optim.clip=1"
            )
    path = own_folder(folder / "last") / f"state-{step:09d}.safetensors"
    tensor_files.save_tensors(path, tensors, meta)
    for old in states(folder)[KEPT:]:
        old.unlink()


def states(folder: Path) -> list[Path]:
    """State files of a run, newest first."""
    return sorted((folder / "last").glob("state-*.safetensors"), reverse=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], StateHeader, list[str]]:
    """The newest intact state, with one warning per damaged newer one; FileError if there is none."""
    warnings: list[str] = []
    for path in states(folder):
        try:
            tensors, meta = tensor_files.load_tensors(path)
            return tensors, tensor_files.typed(meta, StateHeader, path), warnings
        except FileError as error:
            warnings.append(f"skipping a damaged state: {error}")
    if warnings:
        raise FileError("no state can be read; " + "; ".join(warnings))
    raise FileError(f"no state to resume from ({(folder / 'last').absolute()}); start again with --force")


def check_same(folder: Path, header: StateHeader, identity: Mapping[str, Any], data: DataSet) -> None:
    """FileError unless a state belongs to a run of this ``identity``; DataError unless it was trained on this data."""
    there = {key: getattr(header, key) for key in identity}
    stored = {key: value if there[key] is None else there[key] for key, value in identity.items()}
    if stored != identity:
        saved, here = ("/".join(map(str, each.values())) for each in (stored, identity))
        raise FileError(f"checkpoint is {saved}, run is {here} ({folder}); resume with the settings of the checkpoint")
    if header.data_digest != data.digest:
        raise DataError(
            f"data changed since the run began ({data.name}, {data_changes(folder, data)}); restore it or train a new run"
        )


def changes(header: StateHeader, setting: Mapping[str, Any]) -> list[str]:
    """``key before -> now`` of each value of ``setting`` that differs from a state's; values unknown to the state are equal."""
    before = {key: getattr(header, key) for key in setting}
    return [f"{key} {before[key]} -> {now}" for key, now in setting.items() if before[key] not in (None, now)]


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a state called ``name.*``, without that prefix."""
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


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
    """Restore the output of :func:`pack_optimizer`, in the memory layout of the parameters."""
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
    """Add lines to ``metrics.jsonl``, flushed to disk: all of them, or on a full disk (DiskError) none.

    Each line ends with a CRC-32 of itself and of the lines before it. An incomplete last line is replaced.

    Raises:
        FileError: the existing lines are damaged.
        DiskError: no space, or the file is a link, which may point out of the run folder.
    """
    path = folder / "metrics.jsonl"
    check_own(path)
    known, whole, crc = _parsed(path)
    text, _ = _signed(rows, crc, legacy=bool(known) and not crc)
    joint = b"\n" if known and path.read_bytes()[whole - 1 : whole] != b"\n" else b""
    with as_disk_error(path), path.open("ab") as file:
        file.truncate(whole)
        try:
            file.write(joint + text)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), whole)
            raise


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; an incomplete last line is ignored.

    Raises:
        FileError: a line is missing, changed, or not a row of numbers.
    """
    return _parsed(folder / "metrics.jsonl")[0]


def keep_rows(folder: Path, epochs: int) -> None:
    """Drop rows of epochs after the first ``epochs`` (they will be run again)."""
    rows = [row for row in read_rows(folder) if row["epoch"] <= epochs and row["split"] != "test"]
    text, _ = _signed(rows, 0)
    publish_text(folder / "metrics.jsonl", text.decode())


class Row(msgspec.Struct):
    """Fields of every row of ``metrics.jsonl``; the others are numbers by name."""

    epoch: Annotated[int, msgspec.Meta(ge=0)]
    split: str
    loss: float
    accuracy: float


SIGNED = re.compile(rb'(\{.+), "crc": "([0-9a-f]{8})"\}')


def _signed(rows: Sequence[Mapping[str, Any]], crc: int, *, legacy: bool = False) -> tuple[bytes, int]:
    """Lines of ``metrics.jsonl``, each with the CRC-32 of all bytes up to it, continued from ``crc``; none in a ``legacy`` file."""
    lines = []
    for row in rows:
        body = json.dumps(row)[:-1].encode()
        crc = zlib.crc32(body, crc)
        lines.append(body + (b"}\n" if legacy else b', "crc": "%08x"}\n' % crc))
    return b"".join(lines), crc


def _parsed(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """The rows of a file, their length in bytes, and the CRC-32 of the last (0 in a file of an older zoo without CRCs)."""
    raw = path.read_bytes() if path.is_file() else b""
    rows: list[dict[str, Any]] = []
    whole = crc = 0
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        if not line.endswith(b"\n") and whole + len(line) == len(raw) and not _ended(line):
            break  # cut off by a crash
        try:
            row, crc = _row(line.removesuffix(b"\n"), crc, legacy=bool(rows) and not crc)
        except ValueError as error:
            why = f"line {number}: {error}"
            raise FileError(
                f"damaged file ({path}, {why[:120]}); restore it, or repeat the run from its recipe.toml"
            ) from error
        rows.append(row)
        whole += len(line)
    return rows, whole, crc


def _ended(line: bytes) -> bool:
    """Whether a last line without a line break is a complete row."""
    return b"}" in line


def _row(line: bytes, crc: int, *, legacy: bool) -> tuple[dict[str, Any], int]:
    """The row of a line and its CRC-32; ValueError if it is not a row, or the lines up to it were changed."""
    found = SIGNED.fullmatch(line)
    if found:
        crc = zlib.crc32(found[1], crc)
        if legacy or f"{crc:08x}" != found[2].decode():
            raise ValueError("checksum differs")
        line = found[1] + b"}"
    elif crc:
        raise ValueError("no checksum")
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    converted(row, Row)
    if not found and any(isinstance(value, str) for key, value in row.items() if key != "split"):
        raise ValueError("text instead of a number")
    return row, crc


def write_tensorboard(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Publish the rows of an epoch as one file of events in ``tensorboard/``, or replace that of the epoch; DiskError on a full disk.

    Not by torch's SummaryWriter: it writes in a thread, which prints a traceback on a full disk, and leaves a partial file.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar

    now = time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    for row in rows:
        for key in ("loss", "accuracy", "lr", "images_per_s"):
            if key in row:
                summary = scalar(f"{row['split']}/{key}", row[key])
                events.append(Event(wall_time=now, step=row["epoch"], summary=summary))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())

    publish(own_folder(folder / "tensorboard") / f"events.out.tfevents.{rows[-1]['epoch']:010d}.zoo", write)


class Changes(NamedTuple):
    """How many images of a data set were added, removed and changed since a run; all None if the run has no manifest."""

    added: int | None
    removed: int | None
    changed: int | None
    digest: str

    def __str__(self) -> str:
        if self.added is None:
            return f"digest {self.digest[:12]}"
        return f"{self.added} added, {self.removed} removed, {self.changed} changed"


def data_changes(folder: Path, data: DataSet) -> Changes:
    """The changes since the run's manifest was written; unknown if it is missing or damaged."""
    path = folder / "last" / "manifest.npy"
    stored = _manifest(path) if path.is_file() else None
    if stored is None or data.manifest is None:
        return Changes(None, None, None, data.digest)
    before, now = (dict(each.tolist()) for each in (stored, data.manifest))
    changed = sum(now[name] != content for name, content in before.items() if name in now)
    return Changes(len(now.keys() - before.keys()), len(before.keys() - now.keys()), changed, data.digest)


def _manifest(path: Path) -> np.ndarray | None:
    """Digests of the names and contents of a data set's files (n, 2), or None if the file is damaged."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if isinstance(found, np.ndarray) and found.ndim == 2 and found.shape[1] == 2 else None
