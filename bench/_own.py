"""Labelled images of any data set for a model file or a run: ``zoo bench FILE.onnx --data NAME`` measures the accuracy on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from zoo.bench import Images
from zoo.console import note, print_line
from zoo.data import _augment
from zoo.errors import DataError, FileError, UsageError
from zoo.export import _foreign
from zoo.spec import DataSet, ImageArray

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey pixel (ITU-R BT.601, as Pillow's mode L)."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """What a model reads and answers, as far as it is known; ``label`` names it in messages."""

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

    @property
    def channel(self) -> int:
        """The axis of the channels in ``shape``; FileError unless it is that of square images with 1 or 3 channels."""
        shape = self.shape
        found = next((axis for axis in (0, 2) if len(shape) == 3 and shape[axis] in (1, 3)), None)
        if found is None or shape[1] != shape[2 - found]:
            sizes = " x ".join(map(str, shape))
            raise FileError(f"input is not a square image with 1 or 3 channels ({self.label}, {sizes}); omit --data")
        return found


@dataclass(frozen=True)
class Labelled:
    """Images (N, S, S, 3) uint8 with the numbers of the outputs that are right (N,), for one model."""

    pixels: ImageArray
    targets: np.ndarray
    input: Input

    def take(self, most: int) -> tuple[Tensor, Tensor]:
        """Up to ``most`` of them, evenly, as inputs of the model."""
        chosen = np.unique(np.linspace(0, len(self.targets) - 1, min(most, len(self.targets))).astype(np.int64))
        pixels = torch.from_numpy(np.ascontiguousarray(self.pixels[chosen]))
        return _inputs(pixels, self.input), torch.from_numpy(self.targets[chosen])


def images(given: Images, model: Input) -> Labelled:
    """The images, matched to the outputs of the model by the names of their classes.

    Raises:
        DataError: data that cannot be read, or classes that the model does not have. UsageError: a normalisation that is missing, or
        that the file has itself. FileError: a model that does not classify images, or another number of names than outputs.
    """
    model = _normalised(given, model)
    model = replace(model, side=model.side or model.shape[1])
    data = _foreign.data_set(given.data, given.folder, model.side, skip_bad=given.skip_bad, tested=given.split == "test")
    parts = [data.test] if given.split == "test" else [part for part in (data.train, data.val, data.test) if len(part)]
    numbers = np.array(_numbers(given, data, model), np.int64)
    targets = np.concatenate([part.targets for part in parts])
    whole = parts[0].images if len(parts) == 1 else np.concatenate([np.asarray(part.images[:]) for part in parts])
    kind, hint = ("test images", " (all splits: --split all)") if given.split == "test" else ("images (all splits)", "")
    for text in data.notes:
        note("data", text)
    print_line(f"images   {len(targets):,} {kind} of {data.name} for the accuracy of {model.label}{hint}")
    return Labelled(whole, numbers[targets], model)


def _normalised(given: Images, model: Input) -> Input:
    """The model's input with its normalisation."""
    _foreign.check_pair(given.mean, given.std)
    channels = 3 if model.whole else model.shape[model.channel]
    known = model.whole or bool(model.mean) or model.dtype == "uint8"
    if known and given.mean:
        raise UsageError(f"--mean and --std are known from the model ({model.label}); omit them")
    if known:
        return model
    if not model.dtype.startswith("float"):
        raise FileError(f"input is neither of bytes nor of floats ({model.label}, {model.dtype}); omit --data")
    if not given.mean:
        raise _foreign.unknown_normalisation("the model expects is", model.label)
    for option, values in (("--mean", given.mean), ("--std", given.std)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"{option} has {len(values)} numbers for {channels} channels ({model.label}); give one per channel"
            )
    if min(given.std) <= 0:
        raise UsageError(f"--std must be above 0 ({min(given.std):g})")
    mean, std = ((values * 3)[:3] if len(values) == 1 else values for values in (given.mean, given.std))
    return replace(model, mean=mean, std=std)


def _names(given: Images, model: Input) -> tuple[str, ...]:
    """The class of each output, if known."""
    names = _foreign.class_names(given.labels) if given.labels else model.classes
    if model.classes and names != model.classes:
        raise UsageError(f"--classes {given.labels} differs from the class names in the file ({model.label}); omit it")
    if names and len(names) != model.outputs:
        raise FileError(
            f"{len(names)} class names for {model.outputs} outputs ({given.labels or model.label}); give one line per output"
        )
    return names


def _numbers(given: Images, data: DataSet, model: Input) -> list[int]:
    """The output of each class of the data, by name; by position if the outputs have no names and are as many."""
    names = _names(given, model)
    if not names and len(data.classes) == model.outputs:
        first = ", ".join(data.classes[:3])
        print_line(
            f"classes  outputs of {model.label} are taken in the order of the data: {first}, ... (other order: --classes FILE)"
        )
        return list(range(model.outputs))
    if not names:
        raise DataError(
            f"{len(data.classes)} classes of {data.name} for {model.outputs} outputs ({model.label}); "
            "name the output of each class by --classes FILE, one line per output"
        )
    if missing := [each for each in data.classes if each not in names]:
        raise DataError(
            f"class of the data is not one of the model's ({data.name}, {missing[0]!r}; {model.label}: {', '.join(names[:3])}, ...); "
            "name the model's outputs as the data does, by --classes FILE"
        )
    if twice := [each for each in data.classes if names.count(each) > 1]:  # ImageNet's lists have such names, e.g. crane
        raise FileError(f"two outputs have the name of a class ({given.labels or model.label}, {twice[0]!r}); rename one")
    return [names.index(each) for each in data.classes]


def _inputs(pixels: Tensor, model: Input) -> Tensor:
    """Pixels (N, S, S, 3) as inputs (N, *shape)."""
    if model.whole:
        return pixels
    side, channel = model.side, model.channel
    kind = getattr(torch, model.dtype)
    if model.shape[channel] == 1:
        grey = (pixels.float() * torch.tensor(GREY)).sum(-1, keepdim=True).round()
        pixels = grey.to(torch.uint8).expand(-1, -1, -1, 3)
    if model.dtype == "uint8":
        edge = max(0, pixels.shape[1] - side) // 2
        first = pixels[:, edge : edge + side, edge : edge + side].permute(0, 3, 1, 2)
    else:
        first = _augment.normalise(pixels, model.mean, model.std, size=side)
    first = first[:, : model.shape[channel]]
    return (first if channel == 0 else first.permute(0, 2, 3, 1)).to(kind).contiguous()
