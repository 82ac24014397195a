"""Runs as objects, with model, data and predictions, and models created by name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from msgspec import structs
from PIL import Image
from torch import Tensor, nn

from zoo import calibration, files, machine, metrics, model_files, run_folders, tensor_files
from zoo import recipe as recipes
from zoo.console import counted, note, print_line
from zoo.data import _augment
from zoo.data._arrays import checked_ranges, coloured, top_of, untensored
from zoo.data._image import listed, read_image, shown
from zoo.data._pixels import square
from zoo.data._read import stored
from zoo.errors import DataError, FileError, UsageError
from zoo.recipe import Recipe
from zoo.spec import DataSet, Given, Split
from zoo.training import build, checkpoint, checks, freezing, model_specs
from zoo.training.loop import predict
from zoo.training.views import KINDS, AveragedViews
from zoo.weights import load_and_report

SPLITS = ("train", "val", "test")

ModelLike = nn.Module | Callable[[int], nn.Module]
"""A module, or a class or function of the number of classes that returns one."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished or stopped run, loaded: ``model`` is in eval mode, float32, on the CPU."""

    path: Path
    model: nn.Module = field(repr=False)
    recipe: Recipe = field(repr=False)
    classes: tuple[str, ...]
    input: tuple[int, int, int]
    """Channels, height and width of the model's input."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    metrics: list[dict[str, Any]] = field(repr=False)
    env: dict[str, Any] = field(repr=False)
    temperature: float = 1.0
    """Divisor of the model's logits (:func:`calibrate`); 1: not calibrated."""
    weights: str = ""
    """Digest of the model's weights."""
    given: Given = field(default=Given(), repr=False)
    """Its model and data set if they are objects from Python, which no file has."""

    @property
    def unfinished(self) -> str:
        """How far a run is whose training has not finished, such as ``epoch 97 of 400``; empty for a finished one."""
        if not self.metrics or not (self.path / "recipe.toml").is_file() or run_folders.is_finished(self.path):
            return ""
        return f"epoch {self.metrics[-1]['epoch']} of {self.recipe.epochs}"

    @property
    def stored(self) -> int:
        """Side length in pixels of the data set's stored images: that of the model's input, or larger (then centre-cropped)."""
        return stored(self.recipe.data.name, self.input[1])

    def dataset(self) -> DataSet:
        """The data set of the run, with the splits of the training.

        Raises:
            FileError: the data set has other classes. DataError: it is missing, it was passed as an object
                (``zoo.train(data=...)``) and is not in memory any more, or its images have changed since training: each split could then contain training images.
        """
        if self.given.data is not None:
            return self.given.data
        if given := self.env.get("data_given"):
            raise DataError(f"the run was trained on a DataSet given in Python ({given}); pass it: zoo.load(RUN, data=...)")
        data = build.dataset(self.recipe, self.input[1])
        if self.env.get("data_digest", data.digest) != data.digest:
            check_classes(self, data)
            changes = checkpoint.data_changes(self.path, data)
            if changes.added != 0 or changes.removed != 0:
                raise DataError(
                    f"data changed since the run was trained ({data.name}, {changes}): its splits could contain training images; "
                    "restore it, or pass other images to zoo.run.evaluate(run, data=...)"
                )
            print_line(f"warning  the contents of images changed since the run was trained ({data.name}, {changes})")
        return data

    @machine.torch_defaults()
    def predict(
        self, images: Iterable[str | Path | Image.Image | np.ndarray | Tensor], *, top: int = 3
    ) -> list[dict[str, Any]]:
        """Classify images: ``{"file", "top": [(class, probability), ...]}`` for each, or ``{"file", "error"}`` if it cannot be read.

        An image is a path, a Pillow image, or an array or tensor (H, W), (H, W, 3) or (3, H, W) of bytes, or of floats of 0 to 1 or
        0 to 255, red first, of any size, not normalised. The name ``file`` of an image without a path is ``images[2]``.

        Raises:
            TypeError: ``images`` is one image or has anything else. DataError: arrays of another form or range. ValueError: ``top`` is below 1.
        """
        given = listed(images, top, (str, Path, Image.Image, np.ndarray, Tensor))
        arrays = {
            f"images[{at}]": np.asarray(
                untensored(each.float() if isinstance(each, Tensor) and each.is_floating_point() else each)
            )
            for at, each in enumerate(given)
            if isinstance(each, (np.ndarray, Tensor))
        }
        for line in checked_ranges("images", arrays):
            note("data", line)
        highest = top_of(arrays.values())
        with torch.inference_mode(), machine.eval_mode(self.model):
            numbered = counted(enumerate(given), len(given), "predict  classified")
            return [self._answer(image, f"images[{at}]", arrays, highest, top) for at, image in numbered]

    def _answer(self, image: Any, name: str, arrays: dict[str, np.ndarray], highest: float, top: int) -> dict[str, Any]:
        """The answer of :meth:`predict` for one image, which is in ``arrays`` under its ``name`` or a path or a Pillow image."""
        if name in arrays:
            pixels = coloured(arrays[name][None], name, highest)[0][0]
        else:
            name = str(image) if isinstance(image, (str, Path)) else name
            try:
                pixels = read_image(image, self.stored, name)
            except DataError as error:
                return {"file": name, "error": str(error)}
        inputs = self._input(square(pixels, self.stored))[None].to(next(self.model.parameters()).device)
        best = self.model(inputs).float().softmax(1)[0].topk(min(top, len(self.classes)))
        found = [(self.classes[i], round(p, 6)) for p, i in zip(best.values.tolist(), best.indices.tolist())]
        return {"file": name, "top": found}

    def _input(self, image: np.ndarray) -> Tensor:
        """The model's input (3, h, w) of an image as the data set stores it, (H, W, 3) uint8."""
        return _augment.normalise(
            torch.tensor(np.ascontiguousarray(image))[None], self.mean, self.std, torch.float32, size=self.input[1]
        )[0]

    def reloaded(self) -> Run:
        """The same run, read again from its folder, with another copy of the model."""
        return load(self.path, data=self.given.data, model=self.given.model)


def create_model(
    name: str, classes: int | None = None, weights: str | Path | None = None, freeze: str | None = None
) -> nn.Module:
    """Build a registered model.

    Args:
        classes: number of outputs, any integer type; None for the model's own number.
        weights: ``default`` (the published weights), a file or a run; None or ``none`` for random initialisation.
        freeze: a role (:func:`zoo.training.freezing.freeze`); None or ``none`` trains all layers.

    Raises:
        UsageError: unknown name or role.
        FileError: the weights cannot be found or do not fit.
        TypeError, ValueError: an argument has the wrong type, or ``classes`` is below 1.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {type(name).__name__}; give the name of a model, e.g. 'resnet32'")
    if isinstance(classes, bool) or not isinstance(classes, (SupportsIndex, type(None))):
        raise TypeError(f"classes = {classes!r} is not an int; give the number of classes, or None for the model's own")
    classes = None if classes is None else operator.index(classes)
    if classes is not None and classes < 1:
        raise ValueError(f"classes = {classes} is not allowed; give at least 1, or None for the model's own")
    if not isinstance(weights, (str, Path, type(None))):
        raise TypeError(f"weights is {type(weights).__name__}; give 'default', a file, a run, or None for random weights")
    if not isinstance(freeze, (str, type(None))):
        raise TypeError(f"freeze is {type(freeze).__name__}; give a role such as 'conv', a glob over layers, or None")
    spec = model_specs.model_spec(model_files.named(name) if model_files.is_file(name) else name)
    model = spec.build(classes or spec.classes)
    fresh = load_and_report(model, str(weights or "none"), spec)
    freezing.freeze(model, freeze or "none", spec, fresh=fresh)
    return model


@machine.torch_defaults()
def load(
    name: str | Path | None = None, *, skip_bad: bool = False, data: DataSet | None = None, model: ModelLike | None = None
) -> Run:
    """Load a run by folder, name or unique prefix (default: the latest run), with its best weights.

    ``skip_bad`` is as in :class:`zoo.recipe_tables.Data`. ``data`` and ``model`` are the data set and the model of a run that
    was trained on objects from Python; ``model`` gets the weights of the run in a copy, or is called with the number of classes.

    Raises:
        UsageError: no such run, or ``model`` is missing or cannot be used.
        FileError: there is no run yet, or the weights are missing or damaged, or ``data`` has other classes.
        DataError: ``data`` cannot be used.
        TypeError: an argument has the wrong type.
    """
    if not isinstance(name, (str, Path, type(None))) or not isinstance(data, (DataSet, type(None))):
        raise TypeError(
            f"name is {type(name).__name__}, data {type(data).__name__}; give a run's folder or name (None: the latest), and a DataSet"
        )
    path = run_folders.find(name).absolute()  # the process may change its folder
    recipe = recipes.read(path / "recipe.toml")
    if skip_bad:
        recipe = structs.replace(recipe, data=structs.replace(recipe.data, skip_bad=True))
    tensors, header = tensor_files.load_weights(path / "weights.safetensors")
    if header.model != recipe.model:
        raise FileError(
            f"weights are for {header.model}, the recipe names {recipe.model} ({path}); restore the run's own weights"
        )
    if model is not None and not recipe.model.startswith(model_files.OBJECT):
        raise TypeError(f"model is not used, as the run has a model that zoo finds ({recipe.model}); omit it")
    net = model_specs.sized_spec(recipe.model, header.input[1], path, model).build(len(header.classes))
    tensor_files.load_into(net, tensors, path)
    env = files.read_facts(path / "env.json")
    rows = checkpoint.read_rows(path)
    digest = calibration.digest_of(header.digests)
    if found := calibration.read(path, digest):
        calibration.apply(net, found.temperature)
    temperature = found.temperature if found else 1.0
    run = Run(
        path, net.eval(), recipe, header.classes, header.input, header.mean, header.std, rows, env, temperature, digest, Given(model)
    )  # fmt: skip
    if run.unfinished:
        print_line(f"warning  training of {path.name} is not finished ({run.unfinished}); these are its best weights so far")
    if data is None:
        return run
    check_classes(run, data)
    return replace(run, given=Given(model, checks.given_data(data, run.stored)))


@machine.torch_defaults()
def evaluate(
    run: Run, split: str = "test", data: DataSet | None = None, *, views: str = "none"
) -> tuple[metrics.Result, Tensor, Tensor]:
    """Result, logits (N, C) and targets (N,) of a run's best weights on one split of its data.

    ``views`` averages the probabilities of several views of each image: ``flip``, ``shift`` or ``crops`` (:mod:`zoo.training.views`).

    Raises:
        FileError: the data has other classes. DataError: as in :meth:`Run.dataset`, or ``data`` cannot be used, or the split is empty.
        TypeError, ValueError: an argument has the wrong type, or the split or kind of views is unknown.
    """
    if not isinstance(run, Run) or not isinstance(data, (DataSet, type(None))):
        raise TypeError(
            f"run is {type(run).__name__}, data {type(data).__name__}; give zoo.load(...), and a zoo.spec.DataSet or None"
        )
    if split not in SPLITS or views not in KINDS:
        raise ValueError(
            f"split {split!r} or views {views!r} is unknown; give one of {', '.join(SPLITS)} and of {', '.join(KINDS)}"
        )
    data = run.dataset() if data is None else checks.given_data(data, run.stored)
    check_classes(run, data)
    part: Split = getattr(data, split)
    if not len(part):
        advice = "train with data.val above 0" if split == "val" else "choose another --split"
        raise DataError(f"the {split} split is empty ({data.name}, data.val {run.recipe.data.val}); {advice}")
    device, precision = _place(run)
    batches = build.eval_batches(
        part, replace(data, mean=run.mean, std=run.std), device, run.stored if views == "crops" else run.input[1], precision
    )
    home = next(run.model.parameters()).device
    with machine.eval_mode(run.model):
        try:
            model = run.model.to(device).to(memory_format=torch.channels_last)
            logits, targets = predict(
                model if views == "none" else AveragedViews(model, run.input[1], views), batches, precision
            )
        finally:
            run.model.to(home)
    return metrics.evaluate(logits, targets), logits, targets


def _place(run: Run) -> tuple[torch.device, str]:
    """Device and precision of the run, or what this machine has instead; a line names another precision."""
    try:
        device = machine.device(run.recipe.device)
    except UsageError:  # trained on another machine
        device = machine.device("auto")
    try:
        return device, machine.precision(run.recipe.precision, device)
    except UsageError:
        precision = machine.precision("auto", device)
        print_line(f"eval     {run.recipe.precision} is not available on {device}: {precision} is used")
        return device, precision


def check_classes(run: Run, data: DataSet) -> None:
    """Raise FileError with the first difference unless a data set has the classes of a run; independent of the locale."""
    of_model, of_data = (tuple(map(files.as_utf8, names)) for names in (run.classes, data.classes))
    if of_model != of_data:
        raise FileError(f"classes differ ({_difference(of_model, of_data)}); use the data the run was trained on")


def calibrate(run: Run, data: DataSet | None = None) -> tuple[Run, calibration.Calibration]:
    """Fit a temperature on the run's validation images and store it in the run folder; return the calibrated run and the result.

    Raises:
        DataError: the run has no validation images, or these do not determine a temperature. ValueError: the weights of ``run.model`` were changed.
    """
    digests = {name: tensor_files.digest(value) for name, value in run.model.state_dict().items()}
    if run.weights and calibration.digest_of(digests) != run.weights:
        raise ValueError(
            f"run.model has other weights than the run ({run.path}), whose temperature is fitted; use zoo.load(...)"
        )
    _, logits, targets = evaluate(run, "val", data)
    found = calibration.of(logits * run.temperature, targets, split="val", weights=run.weights)
    calibration.save(run.path, found)
    return run.reloaded(), found


def _difference(of_model: Sequence[str], of_data: Sequence[str]) -> str:
    """The first class in which two lists differ."""
    at = next((i for i, (a, b) in enumerate(zip(of_model, of_data)) if a != b), min(len(of_model), len(of_data)))
    named = [shown(classes[at]) if at < len(classes) else "none" for classes in (of_model, of_data)]
    return f"class {at}: model {named[0]}, data {named[1]}; {len(of_model)} and {len(of_data)} classes"


@machine.torch_defaults()
def read_input(run: Run, path: Path) -> tuple[np.ndarray, Tensor]:
    """Read an image file: as the run's data set stores it, (H, W, 3) uint8, and as the model's input, (3, h, w) normalised.

    Raises:
        DataError: the file is not an image.
    """
    image = square(read_image(path, run.stored), run.stored)
    return image, run._input(image)
