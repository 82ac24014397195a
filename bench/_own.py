"""Labelled images of any data set for a model file or a run: ``zoo bench FILE.onnx --data NAME`` measures the accuracy on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.bench import Images
from zoo.console import note, print_line
from zoo.errors import DataError, FileError
from zoo.export import _foreign, _input
from zoo.export._input import Input
from zoo.spec import DataSet, ImageArray


@dataclass(frozen=True)
class Labelled:
    """Images (N, S, S, 3) uint8 with the numbers of the outputs that are right (N,), for one model."""

    pixels: ImageArray
    targets: np.ndarray
    input: Input

    def take(self, most: int) -> tuple[Tensor, Tensor]:
        """Up to ``most`` of them, evenly, as inputs of the model."""
        chosen = np.unique(np.linspace(0, len(self.targets) - 1, min(most, len(self.targets))).astype(np.int64))
        return torch.from_numpy(self.input.fed(self.pixels[chosen])), torch.from_numpy(self.targets[chosen])


def images(given: Images, model: Input) -> Labelled:
    """The images, matched to the outputs of the model by the names of their classes.

    Raises:
        DataError: data that cannot be read, or classes that the model does not have. UsageError: a normalisation that is missing, or
        that the file has itself. FileError: a model that does not classify images, or another number of names than outputs.
    """
    model = _input.normalised(model, given.mean, given.std)
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


def _numbers(given: Images, data: DataSet, model: Input) -> list[int]:
    """The output of each class of the data, by name; by position if the outputs have no names and are as many."""
    names = _input.names(model, given.labels)
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
