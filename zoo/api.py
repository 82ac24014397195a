"""Training from Python: ``zoo.train`` is ``zoo train`` with objects as arguments and a run as the result."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from zoo import model_files, run_folders, training
from zoo import recipe as recipes
from zoo.console import print_line
from zoo.data import _arrays, _datasets
from zoo.errors import UsageError
from zoo.files import expanded
from zoo.recipe import Recipe
from zoo.run import ModelLike, Run, load
from zoo.spec import DataSet, Given
from zoo.training.signals import Interrupted

OF_NAMED_DATA = ("data.name", "data.dir", "data.layout", "data.val", "data.skip_bad")
"""Settings that do not apply to a data set given as an object."""


class _Function(nn.Module):
    """A function as a loss."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.function(logits, target)

    def _get_name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def _changes(overrides: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """The settings by dotted name; UsageError for those of data or of a loss that an object replaces."""
    found = {recipes.full_key(key.replace("__", ".")): value for key, value in overrides.items()}
    if given.data is not None and (unused := next((key for key in found if key in OF_NAMED_DATA), "")):
        raise UsageError(f"{unused} has no effect on a data set given in Python; give it to zoo.data_set, or omit it")
    if given.loss is not None:
        kept = ("loss.name", "loss.class_weights", "loss.drw_epoch")  # which another message explains
        if unused := next((key for key in found if key.startswith("loss.") and key not in kept), ""):
            raise UsageError(f"{unused} has no effect on a loss given in Python; give it to the loss, or omit it")
    return found


def data_set(
    train: Any,
    test: Any,
    val: Any = 0.1,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    size: int = 0,
    seed: int = 0,
) -> DataSet:
    """A data set of arrays, tensors or lists, or of data sets of PyTorch or Hugging Face, for ``zoo.train(..., data=...)``.

    ``train``, ``test`` and ``val`` are pairs of images and labels, or data sets with ``len()`` whose items are pairs, or have the
    columns ``image`` and ``label``. A data set is read once, into memory; a random transform is therefore applied once, and
    ``data.augment`` takes its place. A number for ``val`` is the share of the training images that is held out, chosen by ``seed``.

    Images are (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, 3, H, W), of bytes, or of floats of 0 to 1 or 0 to 255, not normalised;
    images that are not square are cropped to the centre. Labels are numbers (N,) from 0 on, or one-hot (N, C).

    Args:
        classes: names of the labels (default: those of the data sets, else the numbers).
        size: side in pixels to which Pillow images of data sets are resized; required if their sizes differ.

    Raises:
        DataError: images or labels of another form or range, or other class names in another split. ValueError: ``val`` is not in
            [0, 1). TypeError: an iterable without items, such as a DataLoader.
    """
    given = {"train": train, "test": test}
    if not isinstance(size, (int, np.integer)) or size < 0 or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"size is {size!r} and seed {seed!r}; give whole numbers, size >= 0")
    val = val.item() if isinstance(val, np.generic) else val
    if not isinstance(val, (int, float)):
        given["val"] = val
    elif not 0 <= val < 1:
        raise ValueError(f"val = {val} is not allowed; give a share in [0, 1), or a pair of images and labels")
    sets = {split: each for split, each in given.items() if _datasets.is_dataset(each)}
    for split, each in given.items():
        if split not in sets and (not isinstance(each, (tuple, list)) or len(each) != 2):
            raise TypeError(
                f"{split} is {type(each).__name__}; give a pair of images and labels (arrays, tensors or lists), or a data set "
                "whose items are such pairs"
            )
    classes = _datasets.class_names(sets) if classes is None else classes
    pairs = given | {split: _datasets.pair(each, split, int(size)) for split, each in sets.items()}
    names = None if classes is None else [str(each) for each in classes]
    return _arrays.data_set(pairs, names, name, 0.0 if "val" in given else val, int(seed))


def _objects(what: Any, model: Any, data: Any, loss: Any) -> tuple[Recipe | str, Given, dict[str, str]]:
    """The recipe, the objects and the names among the arguments of :func:`train`; TypeError for anything else."""
    if not isinstance(what, (Recipe, str, Path)):
        if model is not None or not callable(what):
            raise TypeError(
                f"what is {type(what).__name__}; give a Recipe, the name of a model or recipe, or your model: a module"
            )
        what, model = model_files.object_name(what), what
    if isinstance(model, str) and not isinstance(what, Recipe):
        raise TypeError(f"the name of a model is the first argument: zoo.train({model!r}, ...)")
    if not (model is None or isinstance(model, str) or callable(model)):
        raise TypeError(f"model is {type(model).__name__}; give a module, or a class or function of the number of classes")
    if not isinstance(data, (str, Path, DataSet, type(None))):
        raise TypeError(f"data is {type(data).__name__}; give a name, a folder or a file, or zoo.data_set(...) of it")
    if isinstance(loss, type):
        raise TypeError(f"loss is the class {loss.__name__}; give an instance: {loss.__name__}()")
    if not (loss is None or isinstance(loss, str) or callable(loss)):
        raise TypeError(f"loss is {type(loss).__name__}; give a module or function that maps logits and targets to a scalar")
    named = {"model": model, "data.name": data, "loss.name": loss}
    names = {key: str(value) for key, value in named.items() if isinstance(value, (str, Path))}
    model, data, loss = (None if isinstance(value, (str, Path)) else value for value in named.values())
    if model is not None:
        names["model"] = model_files.object_name(model)
    if loss is not None and not isinstance(loss, nn.Module):
        loss = _Function(loss)
    return what if isinstance(what, Recipe) else str(what), Given(model, data, loss), names


def train(
    what: Recipe | str | Path | ModelLike,
    *,
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
    model: str | ModelLike | None = None,
    data: DataSet | str | Path | None = None,
    loss: str | nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    profile: bool = False,
    **overrides: Any,
) -> Run:
    """Train as ``zoo train`` does and return the finished run. In a notebook, an interrupt saves the state.

    Objects passed as ``model``, ``data`` or ``loss`` are not stored in the recipe: pass them again to resume.

    Args:
        what: a :class:`zoo.Recipe`, an argument of ``zoo train`` (a model, a recipe, a recipe file or a run), or your own model.
        on_epoch: function that receives the rows of each epoch.
        model: a name; a module, of which a copy is trained, starting from its weights; or a class or function that is called with
            the number of classes.
        data: a name, folder or file as for ``zoo train --data``, or a data set.
        loss: a name, or a module or function that is called with logits (N, C) and targets (N,).
        out: run folder (default: a new folder in the runs folder).
        resume: resume the run in ``out``.
        force: replace the run in ``out``.
        profile: profile the run, as ``zoo train --profile`` does.
        overrides: settings by name (``lr=0.05``), with dots written as two underscores (``data__val=0.2``).

    Raises:
        UsageError, DataError, FileError, DivergedError, DiskError, BusyError: as in :func:`zoo.training.train`.
        TypeError: an argument has the wrong type. KeyboardInterrupt: after an interrupt, with the state saved. SystemExit: after
            another signal that ends the process, such as SIGTERM, likewise.
    """
    what, given, names = _objects(what, model, data, loss)
    if on_epoch is not None and not callable(on_epoch):
        raise TypeError(f"on_epoch is {type(on_epoch).__name__}; give a function of the rows of an epoch")
    changes = names | _changes(overrides, given)
    recipe = recipes.changed(what, changes) if isinstance(what, Recipe) else recipes.resolve(run_folders.named(what), changes)
    if isinstance(what, str):
        objects = {"model": given.model, "data": given.data, "loss": given.loss}
        run_folders.check_objects(run_folders.named(what), recipe, [name for name, each in objects.items() if each is not None])
    place = expanded(out) if out is not None else None
    more: dict[str, Any] = {"on_epoch": on_epoch, "given": given, "profile": profile}
    try:
        return load(training.train(recipe, out=place, resume=resume, force=force, **more), data=given.data, model=given.model)
    except Interrupted as error:
        folder = str(getattr(error, "run", out))
        again = f"the state is saved; resume with the same arguments and out={folder!r}, resume=True"
        if error.number == signal.SIGINT:
            raise KeyboardInterrupt(again if error.saved else "there is nothing to resume") from error
        print_line(f"zoo.train: stopped by {error}; {again if error.saved else 'there is nothing to resume'}")
        raise SystemExit(error.code) from error
