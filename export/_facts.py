"""The metadata that zoo writes to an ONNX file, read with types and checked; imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from zoo.errors import FileError
from zoo.recipe_types import converted

Side = Annotated[int, msgspec.Meta(gt=0, le=1 << 16)]
Triple = tuple[float, float, float]
Mode = Literal["none", "normalize", "full"]


class Steps(msgspec.Struct, frozen=True):
    """Preprocessing: what of it the graph does itself (``mode``), the input's side, and the length of the shorter side after resizing."""

    mode: Mode
    size: Side
    resize: Side
    mean: Triple
    std: Triple


class Facts(msgspec.Struct, frozen=True):
    """Class names, preprocessing, and whether the outputs are probabilities."""

    classes: tuple[str, ...]
    preprocessing: Steps
    softmax: bool


def of_zoo(written: Mapping[str, str]) -> bool:
    """Whether a file's metadata states its preprocessing as zoo does; other tools may use the same keys."""
    return "preprocessing" in written and "zoo.version" in written


def read(written: Mapping[str, str], path: Path) -> Facts:
    """The facts in a file's metadata.

    Raises:
        FileError: one is missing, or has a wrong type or value.
    """
    try:
        facts = converted({name: json.loads(written[name]) for name in Facts.__struct_fields__}, Facts)
        _check(facts)
    except KeyError as error:
        raise FileError(f"no zoo metadata in the model ({path}, {error}); export it with: zoo export --onnx") from error
    except (ValueError, RecursionError) as error:
        why = str(error)[:100]
        raise FileError(f"metadata of the model cannot be used ({path}, {why}); export it again: zoo export --onnx") from error
    return facts


def names(written: Mapping[str, str]) -> tuple[str, ...]:
    """The class names in a file's metadata, also of one that does not state its preprocessing; empty if there are none."""
    try:
        found = converted(json.loads(written["classes"]), tuple[str, ...])
    except (KeyError, ValueError, RecursionError):
        return ()
    return found if len(set(found)) == len(found) else ()


def _check(facts: Facts) -> None:
    steps = facts.preprocessing
    if not facts.classes or len(set(facts.classes)) != len(facts.classes):
        raise ValueError("classes: names must be distinct")
    if steps.size > steps.resize:
        raise ValueError(f"size {steps.size} is above resize {steps.resize}")
    if not all(map(math.isfinite, (*steps.mean, *steps.std))) or min(steps.std) <= 0:
        raise ValueError("mean, std: must be finite, std above 0")
