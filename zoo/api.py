"""Training from Python: ``zoo.train`` is ``zoo train`` with objects as arguments and a run as the result."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import model_files, run_folders, training
from zoo import recipe as recipes
from zoo.data import _arrays
from zoo.files import expanded
from zoo.recipe import Recipe
from zoo.run import ModelLike, Run, load
from zoo.spec import DataSet, Given
from zoo.training.signals import Interrupted


class _Function(nn.Module):
    """A function as a loss."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.function(logits, target)

    def _get_name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def _plain(value: Any) -> Any:
    """A NumPy number, a path or a device, converted to the type that a recipe uses."""
    if isinstance(value, (Path, torch.device)):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def data_set(
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    val: tuple[Any, Any] | float = 0.1,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    seed: int = 0,
) -> DataSet:
    """A data set of arrays, tensors or lists for ``zoo.train(..., data=...)``.

    ``train``, ``test`` and ``val`` are pairs of images and labels; a number for ``val`` is the share of the training images that is
    held out, chosen by ``seed``. Images are (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, 3, H, W), of bytes, or of floats of 0 to 1
    or 0 to 255; images that are not square are cropped to the centre. Labels are numbers (N,) from 0 on, or one-hot (N, C).
    ``classes`` are their names.

    Raises:
        DataError: images or labels of another form or range. ValueError: ``val`` is not in [0, 1).
    """
    pairs = {"train": train, "test": test}
    for split, pair in pairs.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{split} is {type(pair).__name__}; give a pair of images and labels: arrays, tensors or lists")
    if isinstance(val, tuple):
        pairs["val"] = val
    elif not 0 <= val < 1:
        raise ValueError(f"val = {val} is not allowed; give a share in [0, 1), or a pair of images and labels")
    return _arrays.data_set(pairs, classes, name, 0.0 if isinstance(val, tuple) else val, seed)


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
        raise TypeError(f"data is {type(data).__name__}; give a name, a folder or a file, or zoo.data_set(...) of arrays")
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

    ``what`` is a :class:`zoo.Recipe` or an argument of ``zoo train``: a model, a recipe, a recipe file or a run; or your own
    model. ``model``, ``data`` and ``loss`` are names, as on the command line, or objects: a module, whose copy is trained from the
    module's weights, or a class or function that is called with the number of classes; a data set; and a module or function that is
    called with logits (N, C) and targets (N,). Objects are not stored in the recipe: pass them again to resume. ``overrides`` are
    settings by name (``lr=0.05``), with dots written as two underscores (``data__val=0.2``). ``on_epoch`` receives the rows of
    each epoch. ``profile`` is ``zoo train --profile``.

    Raises:
        UsageError, DataError, FileError, DivergedError, DiskError, BusyError: as in :func:`zoo.training.train`.
        TypeError: an argument has the wrong type. KeyboardInterrupt: after an interrupt, with the state saved.
    """
    what, given, names = _objects(what, model, data, loss)
    if on_epoch is not None and not callable(on_epoch):
        raise TypeError(f"on_epoch is {type(on_epoch).__name__}; give a function of the rows of an epoch")
    changes = names | {key.replace("__", "."): _plain(value) for key, value in overrides.items()}
    recipe = recipes.changed(what, changes) if isinstance(what, Recipe) else recipes.resolve(run_folders.named(what), changes)
    place = expanded(out) if out is not None else None
    more: dict[str, Any] = {"on_epoch": on_epoch, "given": given, "profile": profile}
    try:
        return load(training.train(recipe, out=place, resume=resume, force=force, **more), data=given.data, model=given.model)
    except Interrupted as error:
        if error.number != signal.SIGINT or not error.saved:
            raise
        folder = str(getattr(error, "run", out))
        stopped = KeyboardInterrupt(f"the state is saved; resume with the same arguments and out={folder!r}, resume=True")
        raise stopped from error
