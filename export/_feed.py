"""Inputs for models that zoo did not export: noise of the declared shape and type, in accepted batch sizes.

Used by the trial in a child process and by the measurement; imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import FileError, UsageError

TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool",
}  # fmt: skip
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
FREE = 224
"""Pixels of a free height or width."""


@dataclass(frozen=True)
class Feed:
    """The input of a model by name, its shape without the batch, numpy's name of its type; ``output`` is compared."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    batch: int
    """The batch size that the model declares, or 0 if it is free."""
    output: str
    open: bool = False
    """Whether sizes of ``shape`` are free in the model."""

    def noise(self, batch: int) -> np.ndarray:
        """:func:`noise` for this input, (batch, *shape)."""
        return noise(batch, self.shape, self.dtype)


def noise(batch: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The same (batch, *shape) values each time: normal with unit variance, bytes 0 to 255, other integers (indices) 0 or 1."""
    rng = np.random.default_rng(0)
    if dtype.startswith("float"):
        return rng.standard_normal((batch, *shape), np.float32).astype(dtype, copy=False)
    return rng.integers(0, 256 if dtype == "uint8" else 2, (batch, *shape)).astype(dtype)


def of(session: Any, path: Path, *, size: int = 0, classes: int = 0) -> Feed:
    """The input description of an opened model; ``size`` replaces free heights and widths, ``classes`` chooses among several outputs.

    Raises:
        FileError: several inputs, none, one without a batch or of a type that noise cannot fill; no tensor as output.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        named = ", ".join(each.name for each in inputs[:3]) or "none"
        raise FileError(f"model has {len(inputs)} inputs ({path}, {named}); zoo runs models with one input")
    entry = inputs[0]
    if entry.type not in TYPES or not entry.shape:
        raise FileError(f"input is not a batch of numbers ({path}, {entry.name}: {entry.type} {entry.shape}); export it again")
    first, *rest = entry.shape
    shape = tuple(each if isinstance(each, int) and each > 0 else size or FREE for each in rest)
    batch = first if isinstance(first, int) and first > 0 else 0
    return Feed(entry.name, shape, TYPES[entry.type], batch, output(session, path, classes), open=shape != tuple(rest))


def check_size(feed: Feed, path: Path, size: int, *, known: bool) -> None:
    """UsageError for a ``size`` of a file that does not leave it open, or whose metadata states it (``known``)."""
    if size and (known or not feed.open):
        raise UsageError(f"--size is known from the model ({path}); omit it")


def scores(session: Any, feed: Feed, path: Path, advice: str) -> np.ndarray:
    """Outputs (batch, classes) for noise, perhaps with axes of size 1; FileError, ended by ``advice``, if they are not a score per class."""
    found = np.asarray(session.run([feed.output], {feed.name: feed.noise(feed.batch or 1)})[0])
    check_batch(feed, found, path, advice)
    if max((*found.shape[1:], 0)) != math.prod(found.shape[1:]):
        sizes = " x ".join(map(str, found.shape[1:])) or "none"
        raise FileError(f"output is not one score per class ({path}, {feed.output}: {found.dtype} {sizes}); {advice}")
    return found


def check_batch(feed: Feed, answer: np.ndarray, path: Path, advice: str) -> None:
    """FileError, ended by ``advice``, for a model of one image (C, H, W), whose channels would be taken for a batch."""
    if feed.batch > 1 and len(feed.shape) == 2 and answer.shape[:1] == (1,):
        raise FileError(f"input has no batch axis ({path}, {feed.batch} x {' x '.join(map(str, feed.shape))}); {advice}")


def remarks(session: Any, feed: Feed, path: Path) -> list[str]:
    """Choices for a file with open sizes or several outputs, as lines to print."""
    found = []
    if feed.open:
        found.append(f"input    {path.name} leaves sizes open: {' x '.join(map(str, feed.shape))} is used")
    if len(session.get_outputs()) > 1:
        found.append(f"output   {path.name} has {len(session.get_outputs())} outputs: {feed.output} is used")
    return found


def output(session: Any, path: Path, classes: int = 0) -> str:
    """The output that is compared or has the class scores: the first tensor of floats, with ``classes`` of them if they are known.

    Else the first of any numbers; FileError if there is none.
    """
    if classes:
        fitting = [
            each.name for each in session.get_outputs() if each.type in FLOATS and each.shape and each.shape[-1] == classes
        ]
        if fitting:
            return str(fitting[0])
    found = {each.name: each.type for each in session.get_outputs() if each.type in TYPES}
    if not found:
        raise FileError(f"no output is a tensor of numbers ({path}); export it without ZipMap and the like")
    return next((name for name, kind in found.items() if kind in FLOATS), next(iter(found)))
