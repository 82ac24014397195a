"""What can be checked before the first step: the settings of a recipe, the files and names in it, data that is passed as an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from zoo import hub, model_files, registry, run_folders
from zoo import recipe as recipes
from zoo.console import print_line
from zoo.data import _folders, _ops
from zoo.data._arrays import Scaled, untensored
from zoo.data._image import shown
from zoo.data._parts import leaks, part
from zoo.errors import DataError, FileError, UsageError
from zoo.files import exists, expanded
from zoo.recipe import Recipe
from zoo.spec import DataSet, Given


def check_settings(recipe: Recipe, given: Given | None = None) -> None:
    """UsageError unless the settings are consistent; those that an object of ``given`` replaces do not count."""
    given = given or Given()
    recipes.check(recipe)
    _ops.check(recipe.data.augment)
    if recipe.ema and recipe.lookahead:
        raise UsageError(
            f"ema = {recipe.ema:g} and lookahead = {recipe.lookahead:g} both average the weights; set one of them to 0"
        )
    if (recipe.mixup or recipe.cutmix) and given.loss is None and not registry.find("losses", recipe.loss.name).soft:
        soft = ", ".join(name for name, fields in registry.table("losses").items() if fields.get("soft"))
        raise UsageError(
            f"mixup and cutmix need soft targets, which loss {recipe.loss.name!r} does not support; losses that do: {soft}"
        )
    if given.data is None:
        known = registry.entry("data", recipe.data.name)["classes"]  # a user's data may have its own validation images
        if recipe.schedule.name == "plateau" and recipe.select_on == "val" and not recipe.data.val and known:
            raise no_validation()


def no_validation() -> UsageError:
    """The error of a schedule that follows the validation accuracy where there is none."""
    return UsageError("schedule = plateau needs validation images (data.val = 0); set data.val=0.1")


def check_names(recipe: Recipe) -> Sequence[str]:
    """Check what a recipe names without reading it: model, frozen layers, weights, teachers, data; the table of frozen layers.

    Raises:
        UsageError, FileError, DataError: as in training.
    """
    own = model_files.is_own(recipe.model)
    frozen: Sequence[str] = ()
    if recipe.freeze != "none" or recipe.unfreeze:
        frozen = freeze_lines(recipe)
    elif recipe.data.size or own or recipe.model.startswith("timm/"):
        from zoo.training import model_specs

        model_specs.sized_spec(recipe.model, recipe.data.size)
    published = (model_files.entry(recipe.model) if own else registry.table("models").get(recipe.model, {})).get("weights", ())
    # a model of timm knows the names of its weights only once it is imported
    if not (
        recipe.weights in ("none", "default", *published) or hub.is_hub(recipe.weights) or recipe.model.startswith("timm/")
    ):
        path = run_folders.weights_path(recipe.weights)
        known = ("a file", "a run folder", *(("default", *published) if published else ()))
        if not exists(path):
            raise FileError(f"no weights file ({path.absolute()}); name {', '.join(known)}")
    for name in recipe.distil.teacher:
        teacher(name)
    if recipe.data.dir:
        if recipe.data.name == "synthetic":
            raise UsageError(
                f"synthetic images are generated, not read from data.dir ({recipe.data.dir}); did you mean --data?"
            )
        _check_place(recipe.data.name, expanded(recipe.data.dir))
    return frozen


def freeze_lines(recipe: Recipe, classes: int = 0) -> list[str]:
    """Frozen layers at the start of a recipe, part by part, without reading weights or data (:func:`zoo.training.freezing.lines`).

    ``classes`` is the number of classes of a user's data, if it is known.
    """
    import torch

    from zoo.training import freezing
    from zoo.training.model_specs import sized_spec

    spec = sized_spec(recipe.model, recipe.data.size)
    with torch.device("meta"):
        model = spec.build(classes or registry.entry("data", recipe.data.name)["classes"] or spec.classes)
    plan = freezing.plan(model, spec, recipe.freeze, recipe.unfreeze, recipe.epochs)
    random = recipe.weights == "none" and not recipe.allow_random_frozen
    table = freezing.freeze(model, recipe.freeze, spec, fresh=tuple(model.state_dict()) if random else ())
    return freezing.lines(table, plan)


def _check_place(name: str, place: Path) -> None:
    """DataError unless the folder or file of a data set exists."""
    if name in ("list", "npz"):
        if not place.is_file():
            raise DataError(f"no data file ({shown(place.absolute())}); check --data")
    elif name == "folder" or not exists(place):  # a data set of a plug-in may be a file
        _folders.check_folder(place)


def teacher(name: str) -> Path:
    """The folder of a run to learn from; FileError if it has no weights yet."""
    folder = run_folders.find(name)
    if not (folder / "weights.safetensors").is_file():
        raise FileError(f"teacher has no weights ({folder}); finish its training, or choose another run")
    return folder


def check_data(data: DataSet) -> None:
    """DataError unless images and labels of every split have the right types, shapes and ranges, before hours of training."""
    if not isinstance(data.name, str) or not data.name:
        raise DataError(f"name is {data.name!r}; give the data set a name")
    if isinstance(data.classes, str) or len(set(data.classes)) < len(data.classes):
        raise DataError(f"class names are not distinct ({data.name}, {shown(str(data.classes))[:80]}); give one name per class")
    if other := [each for each in data.classes if not isinstance(each, str)]:
        raise DataError(f"class names are not text ({data.name}, {other[0]!r} is {type(other[0]).__name__}); give str(name)")
    if len(data.classes) < 2:
        raise DataError(f"too few classes ({data.name}, {len(data.classes)}); a classifier needs at least 2")
    means, stds = (np.asarray(values, np.float64) for values in (data.mean, data.std))
    if not (means.shape == stds.shape == (3,) and ((means >= 0) & (means <= 1)).all() and ((stds > 0) & (stds <= 1)).all()):
        raise DataError(
            f"mean {data.mean} or std {data.std} cannot be used ({data.name}); give three numbers each, of images scaled to [0, 1]"
        )
    if not len(data.test):
        raise DataError(f"the test split is empty ({data.name}); a run ends with its test: give some images")
    for name in ("train", "val", "test"):
        part = getattr(data, name)
        if name == "val" and not (len(part.images) or len(part.targets)):
            continue
        shape, kind = tuple(np.shape(part.images)), getattr(part.images, "dtype", type(part.images).__name__)
        if kind != np.uint8:
            raise DataError(f"images are not uint8 ({data.name}, {name}, {kind}); give whole numbers from 0 to 255")
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise DataError(f"images are not square and in colour ({data.name}, {name}, shape {shape}); give (n, s, s, 3)")
        if not isinstance(part.targets, np.ndarray) or part.targets.ndim != 1 or part.targets.dtype.kind not in "iu":
            found = getattr(part.targets, "dtype", type(part.targets).__name__)
            raise DataError(f"labels are not whole numbers ({data.name}, {name}, {found}); give an array (n,) of int64")
        if not len(part.targets) == len(part.files) == shape[0]:
            n = f"{shape[0]} images, {len(part.targets)} labels, {len(part.files)} files"
            raise DataError(f"lengths differ ({data.name}, {name}, {n}); give one label and one name for each image")
        if len(wrong := np.flatnonzero((part.targets < 0) | (part.targets >= len(data.classes)))):
            file, label = part.files[wrong[0]], part.targets[wrong[0]]
            raise DataError(f"label out of range ({file}, label {label}, {len(data.classes)} classes); correct the data set")


def given_data(data: DataSet, side: int) -> DataSet:
    """A data set that was passed as an object, checked, with numbers as plain floats and images of ``side`` pixels.

    Images of another size are resized when they are read, as those of files are. Arrays in memory are searched for images that
    are in two splits.

    Raises:
        DataError: as :func:`check_data`.
    """
    splits = [
        replace(each, images=untensored(each.images), targets=untensored(each.targets))
        for each in (data.train, data.val, data.test)
    ]
    train, val, test = splits
    data = replace(data, train=train, val=val, test=test)
    check_data(data)
    (a, b, c), (d, e, f) = map(float, data.mean), map(float, data.std)
    notes = list(data.notes)
    if all(isinstance(each.images, np.ndarray) for each in splits):
        notes += [
            note for note in leaks(*(part(np.asarray(s.images), s.targets, s.files) for s in splits)) if note not in notes
        ]
    if sizes := sorted({each.images.shape[1] for each in splits if len(each)} - {side}):
        notes.append(f"images of {', '.join(map(str, sizes))} pixels are resized to {side}")
        splits = [replace(each, images=Scaled(each.images, side)) if len(each) else each for each in splits]
    train, val, test = splits
    return replace(data, train=train, val=val, test=test, mean=(a, b, c), std=(d, e, f), notes=tuple(notes))


def check_counts(recipe: Recipe, counts: np.ndarray, names: Sequence[str]) -> None:
    """DataError if a class has no training image in ``counts`` (C,), or a warning if the recipe allows it; ``names`` are shown."""
    if not (empty := int((counts == 0).sum())):
        return
    what = f"{empty} {'class has' if empty == 1 else 'classes have'} no training image"
    if not recipe.allow_empty_class:
        raise DataError(f"{what} ({', '.join(names)}); lower the imbalance, remove them, or use --allow-empty-class")
    print_line(f"warning  {what} and cannot be learned ({', '.join(names)})")
