"""A model with weights from anywhere, without a run: what ``zoo export MODEL --weights FILE`` exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from zoo import model_files, recipe, registry, weights
from zoo.console import print_line
from zoo.data._read import read
from zoo.errors import DataError, FileError, UsageError
from zoo.export import _cases, _input
from zoo.spec import DataSet, ModelSpec
from zoo.training.model_specs import model_spec
from zoo.weights._names import in_head, renamed

CALIBRATION = 2000
"""Most training images to calibrate and select an int8 file by."""


def model(
    name: str,
    source: str,
    *,
    data: str = "",
    data_dir: str = "",
    labels: Path | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    images: int = 1000,
    skip_bad: bool = False,
    calibrated: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """A model with its weights, and the arguments of :func:`zoo.export.program` that describe it.

    ``name`` is a model of the registry, ``timm/NAME`` or ``FILE.py:NAME``; ``data`` names a data set, whose test images are compared
    and whose classes name the outputs; ``labels`` is a text file with a class per line instead. If the file will be ``calibrated``,
    training images of the data are added.

    Raises:
        UsageError: no such model or data set, or another number of channels than ``mean`` and ``std`` have.
        FileError: weights that do not fit, also a last layer of another size than the classes. DataError: data that cannot be read.
    """
    if not (model_files.is_file(name) or name.startswith("timm/") or name in registry.names("models")):
        raise UsageError(f"no model {name!r}; --weights needs a model (zoo models), timm/NAME or FILE.py:NAME before it")
    spec = model_spec(model_files.named(name) if model_files.is_file(name) else name)
    found = data_set(data, data_dir, spec.input[1], skip_bad=skip_bad) if data else None
    classes = _input.class_names(labels) if labels else tuple(found.classes) if found else None
    made = _built(spec, source, classes)
    given: dict[str, Any] = {"input": spec.input, "classes": classes}
    given["mean"], given["std"] = _normalisation(spec, source, mean, std)
    if found:
        chosen = _cases.places(found.test, images)
        numbers = _outputs_of(found, classes, labels)
        given |= {"images": np.asarray(found.test.images[chosen]), "targets": numbers[found.test.targets[chosen]]}
        if calibrated and len(found.train):
            given["calibration"] = np.asarray(found.train.images[_cases.places(found.train, CALIBRATION)])
    return made, given


def data_set(name: str, folder: str, size: int, *, skip_bad: bool = False, tested: bool = True) -> DataSet:
    """A data set by name or folder, for a network that reads ``size`` pixels; DataError if it is ``tested`` but has no test images."""
    settings = recipe.resolve("demo", {"data.name": name, **({"data.dir": folder} if folder else {})}).data
    found = read(settings.name, settings.dir, size=size, val=0.0, seed=0, layout=settings.layout, skip_bad=skip_bad)
    if tested and not len(found.test):
        raise DataError(f"no test images ({found.name}); name a data set with a test split")
    return found


def _outputs_of(data: DataSet, classes: Sequence[str] | None, labels: Path | None) -> np.ndarray:
    """The output of each class of the data (C,), by its name; DataError for a class that is not in the file ``labels``."""
    names = list(classes or ())
    if missing := [each for each in data.classes if each not in names]:
        raise DataError(
            f"class of the data is not in --classes ({data.name}, {missing[0]!r}; {labels}: {', '.join(names[:3])}, ...); use the same names"
        )
    return np.array([names.index(each) for each in data.classes], np.int64)


def _built(spec: ModelSpec, source: str, classes: tuple[str, ...] | None) -> nn.Module:
    """The model with the weights and as many outputs as there are classes, or as the weights have."""
    count = len(classes) if classes else _outputs(spec, source)
    made = spec.build(count)
    notes = weights.load_weights(made, source, spec)
    for note in notes:
        print_line(f"weights  {note}")
    if notes.fresh:
        there = _outputs(spec, source)
        if there == count:
            raise FileError(f"{' and '.join(notes.fresh[:3])} missing in the weights ({source}); use the complete file")
        raise FileError(
            f"the last layer of the weights does not fit ({source}: {there} classes, expected {count}); "
            "name the classes that it was trained on by --classes FILE or --data"
        )
    return made.eval()


def _outputs(spec: ModelSpec, source: str) -> int:
    """Classes of the weights: the rows of their last layer; the model's own number if they have none."""
    named, _ = renamed(spec.build(spec.classes).state_dict(), weights.find(source, spec), spec)
    heads = [value for key, value in named.items() if in_head(key, spec) and value.ndim]
    return len(heads[0]) if heads else spec.classes


def _normalisation(spec: ModelSpec, source: str, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Any, Any]:
    """Mean and standard deviation per channel of the images that the weights expect."""
    _input.check_pair(mean, std)
    if mean:
        return mean, std
    known = weights.statistics(source, spec)
    if known is None:
        raise _input.unknown_normalisation("the weights expect is", source)
    print_line(
        f"images   normalised with mean {known[0]}, std {known[1]}, those of the model's weights (override: --mean, --std)"
    )
    return known
