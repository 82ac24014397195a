"""Features of a frozen part on disk, by image: a second run, another seed or another split computes only missing ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import files, tensor_files
from zoo.console import print_line
from zoo.errors import DiskError, FileError

LARGEST = 2 << 30
"""Largest number of bytes of features per file."""


def digest(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """16 hex digits over the values of the frozen layers and the settings that the features depend on."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in tensors.items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def image_key(pixels: np.ndarray, draws: np.ndarray, ops: Sequence[str]) -> int:
    """A key for one image (H, W, 3) uint8 augmented with ``draws`` (K,): 63 bits of their sha256."""
    found = hashlib.sha256(" ".join(ops).encode())
    found.update(np.ascontiguousarray(pixels).tobytes())
    if ops:
        found.update(np.ascontiguousarray(draws).tobytes())
    return int.from_bytes(found.digest()[:8], "little") >> 1


@dataclass
class FeatureCache:
    """Stored features of frozen layers (``part`` is their :func:`digest`), read from a file and extended."""

    part: str
    rows: dict[int, int] = field(default_factory=dict)
    """Index of each image's features by its key."""
    values: list[Tensor] = field(default_factory=list)
    added: int = 0
    """Features that are not written yet."""
    computed: int = 0
    """Features that were added to those read."""

    @property
    def path(self) -> Path:
        """Its file in zoo's cache folder."""
        return files.cache_folder() / "features" / f"{self.part}.safetensors"

    @classmethod
    def read(cls, part: str) -> FeatureCache:
        """Features stored by earlier runs; empty if there are none, or, with a warning, if the file is damaged."""
        cache = cls(part)
        if not cache.path.is_file():
            return cache
        try:
            tensors, _ = tensor_files.load_tensors(cache.path)
            keys, values = tensors["keys"].tolist(), list(tensors["features"])
        except (FileError, KeyError) as error:
            print_line(f"warning  stored features are ignored and computed again: {error}")
            return cache
        if len(keys) == len(values):
            cache.rows, cache.values = {key: row for row, key in enumerate(keys)}, values
        return cache

    def missing(self, keys: Sequence[int]) -> list[int]:
        """Indices into ``keys`` of images without features, each image once."""
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self.rows}
        return sorted(first.values())

    def add(self, keys: Sequence[int], features: Tensor) -> None:
        """Store the features (n, ...) of images by key."""
        for key, value in zip(keys, features.cpu(), strict=True):
            self.rows[key] = len(self.values)
            self.values.append(value.clone())
        self.added += len(keys)
        self.computed += len(keys)

    def clear(self) -> None:
        """Forget all features; the next :meth:`write` replaces the file."""
        self.rows, self.values, self.added, self.computed = {}, [], 0, 0

    def get(self, keys: Sequence[int]) -> Tensor:
        """The features (n, ...) of images that are all stored."""
        return torch.stack([self.values[self.rows[key]] for key in keys])

    def write(self) -> None:
        """Write added features; a full or read-only disk causes a warning and only costs the saved time."""
        if not self.added or tensor_files.size_of(self.values) > LARGEST:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"keys": torch.tensor(list(self.rows)), "features": torch.stack(self.values)}
            tensor_files.save_tensors(self.path, kept, {"features": self.part})
        except (DiskError, OSError) as error:
            print_line(f"warning  features are not stored on disk: {error}")
        self.added = 0
