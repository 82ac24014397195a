"""What a model file reads and answers, and images in that form: for files of other tools as well; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zoo.errors import FileError, UsageError
from zoo.files import as_disk_error

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey pixel (ITU-R BT.601, as Pillow's mode L)."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """What a model reads and answers, as far as it is known; ``label`` names it in messages, ``advice`` ends them."""

    label: str
    shape: tuple[int, ...]
    """Of one image, channels first or last."""
    dtype: str
    outputs: int
    side: int = 0
    """Pixels of the network's input, to which the images are cut; 0: the height in ``shape``."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    whole: bool = False
    """Whether it reads bytes (H, W, 3) of any size and preprocesses them itself."""
    advice: str = "run it in onnxruntime"

    @property
    def channel(self) -> int:
        """The axis of the channels in ``shape``; FileError unless it is that of square images with 1 or 3 channels."""
        shape = self.shape
        found = next((axis for axis in (0, 2) if len(shape) == 3 and shape[axis] in (1, 3)), None)
        if found is None or shape[1] != shape[2 - found]:
            sizes = " x ".join(map(str, shape))
            raise FileError(f"input is not a square image with 1 or 3 channels ({self.label}, {sizes}); {self.advice}")
        return found

    def fed(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (N, S, S, 3) uint8, S at least ``side``, as inputs of the model: cut, normalised, (N, *shape); unchanged for ``whole``."""
        if self.whole:
            return np.ascontiguousarray(pixels)
        edge, channel = (pixels.shape[1] - self.side) // 2, self.channel
        values = pixels[:, edge : edge + self.side, edge : edge + self.side]
        if grey := self.shape[channel] == 1:
            values = (values @ np.array(GREY)).round().astype(np.uint8)[..., None]
        if self.dtype != "uint8":
            mean, std = (np.array(each[:1] if grey else each, np.float32) for each in (self.mean, self.std))
            values = (values.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if channel == 0 else values, self.dtype)


def normalised(model: Input, mean: Sequence[float], std: Sequence[float]) -> Input:
    """The input with its side and a normalisation: its own, or ``mean`` and ``std``, one number or one per channel.

    Raises:
        UsageError: a normalisation that is missing, incomplete, or that the model has itself. FileError: a model that does not
            read square images of bytes or floats.
    """
    check_pair(mean, std)
    channels = 3 if model.whole else model.shape[model.channel]
    known = model.whole or bool(model.mean) or model.dtype == "uint8"
    if known and mean:
        stated = model.whole or model.mean
        why = "--mean and --std are known from the model" if stated else "the model reads bytes, which are not normalised"
        raise UsageError(f"{why} ({model.label}); omit {'them' if stated else '--mean and --std'}")
    model = replace(model, side=model.side or model.shape[1])
    if known:
        return model
    if not model.dtype.startswith("float"):
        raise FileError(f"input is neither of bytes nor of floats ({model.label}, {model.dtype}); {model.advice}")
    if not mean:
        raise unknown_normalisation("the model expects is", model.label)
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"{option} has {len(values)} numbers for {channels} channels ({model.label}); give one per channel"
            )
    if min(std) <= 0:
        raise UsageError(f"--std must be above 0 ({min(std):g})")
    if not 0 <= min(mean) <= max(mean) <= 1 or max(std) > 2:
        raise UsageError(
            f"--mean {mean[0]:g} and --std {std[0]:g} are not of pixels from 0 to 1; divide those of 0 to 255 by 255"
        )
    mean, std = (tuple(values) * (3 if len(values) == 1 else 1) for values in (mean, std))
    return replace(model, mean=mean, std=std)


def names(model: Input, labels: Path | None) -> tuple[str, ...]:
    """The class of each output, of the model or the text file ``labels``; empty if they are not known.

    Raises:
        UsageError: the file contradicts the model. FileError: it is no text, or there are more or fewer names than outputs.
    """
    found = class_names(labels) if labels else model.classes
    if labels and not found:
        raise FileError(f"no class names ({labels} is empty); give one per line")
    if model.classes and found != model.classes:
        raise UsageError(f"--classes {labels} differs from the class names in the file ({model.label}); omit it")
    if found and len(found) != model.outputs:
        raise FileError(
            f"{len(found)} class names for {model.outputs} outputs ({labels or model.label}); give one line per output"
        )
    return found


def class_names(path: Path) -> tuple[str, ...]:
    """The lines of a text file; FileError if it is none."""
    with as_disk_error(path):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise FileError(f"not a text file ({path}); give one class name per line") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def check_pair(mean: Sequence[float], std: Sequence[float]) -> None:
    """UsageError unless both or neither are given."""
    if bool(mean) != bool(std):
        raise UsageError("--mean and --std belong together; give both or neither")


def unknown_normalisation(what: str, place: str) -> UsageError:
    """The error where nothing tells how images are normalised for ``what``, read from ``place``."""
    return UsageError(
        f"the normalisation that {what} not known ({place}); give it, for values from 0 to 1: "
        "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
    )
