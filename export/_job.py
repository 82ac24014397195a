"""A model with its images (:class:`Subject`), and one export of it (:class:`Job`)."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import nn

from zoo import machine, model_files, runtimes, sampling, tensor_files
from zoo import recipe as recipes
from zoo.console import print_line
from zoo.data._image import shown
from zoo.data._pixels import View
from zoo.errors import DataError, DisagreeError, FileError, UsageError
from zoo.export import _accuracy, _cases, _feed, _graph
from zoo.spec import Split
from zoo.training import freezing

if TYPE_CHECKING:
    from onnx import ModelProto

    from zoo.run import Run

NOISE = 64
"""Number of noise images if the data is not available."""


@dataclass(frozen=True)
class Layer:
    """A node with weights and the nodes after it up to the next one."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    sqnr: float = float("inf")
    """SQNR of the network's output with only this layer in 8 bits, in dB."""


@dataclass(frozen=True)
class Subject:
    """A model, its images and its metadata."""

    model: nn.Module
    name: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    """Shape of one input of the model."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stored: int
    """Side in pixels of the stored images of the data set."""
    images: np.ndarray
    """To compare on: (N, stored, stored, 3) uint8, or (N, \\*shape) float32 as the model takes them."""
    source: str
    """Description of these images."""
    at: np.ndarray | None = None
    """Their numbers in ``test``, if they are images of it."""
    train: Split | None = None
    """Images to calibrate on."""
    val: Split | None = None
    """Images to select by: validation images, or training images if there are none."""
    test: Split | None = None
    """Images to measure accuracy on."""
    split: str = "train"
    """Which images ``train`` are: ``train``, ``calibration`` (given besides those to compare on), or ``given`` (the latter)."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Metadata specific to this kind of subject."""
    folder: Path = Path()
    """Folder of its files unless a path is given."""
    frozen: Mapping[str, str] = field(default_factory=dict)
    """sha256 by name of the tensors that were frozen in training."""
    module: bool = False
    """Whether it is a module, not a run."""
    qat_bits: int = 0
    """Bits of the weights that quantisation-aware training rounded to; 0 without it, or if they are not recorded."""
    accuracy: str = ""
    """Accuracy of the run in its own precision, in words."""
    probabilities: bool = False
    """Whether the model returns probabilities, not logits."""
    normalised: bool = True
    """Whether the normalisation of its images is known."""

    def wrapped(self, preprocess: str, *, softmax: bool) -> _graph.Exported:
        """The model for tracing."""
        size = self.shape[-1]
        return _graph.Exported(
            self.model,
            self.mean,
            self.std,
            size=size,
            stored=self.stored,
            preprocess=preprocess,
            softmax=softmax,
            shape=self.shape,
            probabilities=self.probabilities,
        )

    def check_weights(self) -> None:
        """Check that the weights are finite and the frozen ones unchanged.

        Raises:
            FileError: a weight is not finite. DisagreeError: a frozen tensor changed in training (a damaged file is a
                FileError).
        """
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                where = f"{self.folder}, tensor {name}" if self.folder.parts else f"tensor {name}"
                raise FileError(f"weights are not finite ({where}); train again, or use an earlier checkpoint")
        after = freezing.frozen_digest(self.model, self.frozen)
        if changed := [name for name, digest in self.frozen.items() if after[name] != digest]:
            raise DisagreeError(
                f"frozen tensors differ from those of the run's weights ({self.folder}, {len(changed)} of {len(self.frozen)}, first "
                f"{changed[0]}); train again, or export a model that you changed: zoo.export.onnx(run.model, PATH, input=run.input, "
                "classes=run.classes, mean=run.mean, std=run.std); nothing published"
            )
        if self.frozen:
            print_line(f"frozen   verified: {len(self.frozen)} frozen tensors unchanged")


@dataclass
class Job:
    """One export of a subject; the argument of a target's ``make``."""

    subject: Subject
    exported: _graph.Exported
    opset: int
    seed: int = 0
    max_drop: float = 0.5
    """Largest loss of accuracy in points of a precision other than fp32."""
    reduce_range: bool = False
    """Whether weights of int8 have 7 bits even if 8 bits are right on this CPU."""
    full_test: bool = False
    """Whether the accuracy of float32 is measured on all test images, not only on those compared with PyTorch."""
    external_data: bool = False
    explain: bool = False
    """Whether to measure the error of each layer and write it next to the file."""
    ranked: list[Layer] = field(default_factory=list)
    """The layers with their individual SQNR, if ``make`` ranked them or ``explain`` is set."""
    calibration: dict[str, Any] | None = None
    """Calibration of a target, for the receipt; set by ``make``."""
    chosen: Any = None
    """What ``make`` selected, if the target has ``others``."""
    exact_hits: Any = None
    """Which test images float32 classifies correctly, once known."""

    @cached_property
    def exact(self) -> ModelProto:
        """The float32 ONNX graph."""
        from zoo.export import _onnx

        return _onnx.trace(self.exported, opset=self.opset)


def public(settings: recipes.Recipe) -> recipes.Recipe:
    """A recipe without paths of this machine."""
    model = Path(settings.model).name if model_files.is_file(settings.model) else settings.model
    weights, *teachers = (
        Path(name).name if Path(name).is_absolute() else name for name in (settings.weights, *settings.distil.teacher)
    )
    replace = msgspec.structs.replace
    data, distil = replace(settings.data, dir=""), replace(settings.distil, teacher=teachers)
    return replace(settings, model=model, weights=weights, data=data, distil=distil)


def of_run(run: Run, images: int) -> Subject:
    """A run with up to ``images`` test images of all classes, or noise if the run's data is not available."""
    settings = public(run.recipe)
    facts = {
        "recipe": recipes.dump(settings), "data": run.recipe.data.label,
        "data_sha256": str(run.env.get("data_digest", "")),
    }  # fmt: skip
    if run.temperature != 1:  # the graph divides the logits by it
        facts["temperature"] = f"{run.temperature:.6g}"
    weights = run.path / "weights.safetensors"
    frozen = tensor_files.load_tensors(weights)[1].get("frozen", {}) if weights.is_file() else {}
    seen = _cases.pictures(run, images)
    known: dict[str, Any] = {}
    if seen.data is not None:
        data = seen.data
        own = run.recipe.data
        chosen = sampling.training_index(data.train.targets, own.imbalance, own.per_class, run.recipe.seed)
        # only drawn images are copied: a large set is memory-mapped
        known["train"] = Split(View(data.train.images, chosen), data.train.targets[chosen], [])
        known["val"] = data.val if len(data.val) else known["train"]
        known["test"] = data.test if len(data.test) else None
    return Subject(
        run.model, settings.model, run.classes, run.input, run.mean, run.std, run.stored, seen.pixels, seen.source, seen.at, **known,
        facts=facts, folder=run.path, frozen=frozen, accuracy=_accuracy.of_run(run),
        qat_bits=int(run.env.get("qat_bits") or run.recipe.qat_bits) if run.recipe.qat else 0,
    )  # fmt: skip


def _shape(shape: Any) -> tuple[int, ...]:
    """The shape as ints; UsageError for anything else, or for a size below 1."""
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UsageError(f"input {shape!r} is not a shape; give the sizes of one input, e.g. input=(3, 224, 224)")
    return sizes


@machine.torch_defaults()
def of_module(
    model: nn.Module, *, shape: Sequence[int], images: Any = None, targets: Any = None, classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, calibration: Any = None,
) -> Subject:  # fmt: skip
    """Any module that maps float32 (N, \\*shape) to (N, classes).

    Args:
        images: (N, \\*shape) floats as the module takes them, or (N, H, W, 3) uint8 with ``mean`` and ``std``; noise if None.
        targets: (N,) class numbers of the images, to measure accuracy.
        calibration: images of the same form, to calibrate and select int8 by (default: ``images``).

    Raises:
        UsageError: the module, or an argument, does not fit ``shape``.
    """
    shape = _shape(shape)
    outputs, probabilities = _outputs(model, shape)
    names = _names(classes, outputs)
    if targets is not None and images is None:
        raise UsageError("targets without images have no effect; give images= too")
    pixels, source = _pixels(images, shape, stored=mean is not None and std is not None)
    part = learned = _labelled(pixels, targets, outputs) if images is not None else None
    if calibration is not None:
        held, _ = _pixels(calibration, shape, stored=True)
        if images is None or held.dtype != pixels.dtype or held.shape[1:] != pixels.shape[1:]:
            raise UsageError(
                f"calibration does not fit the images ({held.dtype} {held.shape}, images {pixels.dtype} {pixels.shape}); give both in one form"
            )
        learned = _labelled(held, None, outputs)
    if (mean is None) != (std is None) or (pixels.dtype == np.uint8 and mean is None):
        raise UsageError("uint8 images need mean and std; give both, e.g. mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)")
    known = mean is not None
    mean, std = _numbers("mean", mean, (0.0,) * shape[0]), _numbers("std", std, (1.0,) * shape[0])
    if not all(0 <= each <= 1 for each in mean) or not all(0 < each <= 2 for each in std):
        raise UsageError(
            f"mean {mean} and std {std} are not of pixels from 0 to 1; divide those of pixels from 0 to 255 by 255"
        )
    if len(mean) != shape[0] or len(std) != shape[0]:
        raise UsageError(
            f"mean and std have {len(mean)} and {len(std)} values, the input {shape[0]} channels; give one per channel"
        )
    stored = pixels.shape[1] if pixels.dtype == np.uint8 else shape[-1]
    return Subject(
        model, type(model).__name__, names, shape, mean, std, stored, pixels, source,
        at=np.arange(len(pixels)) if targets is not None else None, train=learned, val=learned,
        split="given" if calibration is None else "calibration", test=part if targets is not None else None, module=True, probabilities=probabilities, normalised=known,
    )  # fmt: skip


def _numbers(name: str, values: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    """A number per channel; TypeError for anything else."""
    try:
        return default if values is None else tuple(map(float, values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is {shown(repr(values))[:40]}; give a number per channel, e.g. (0.5, 0.5, 0.5)") from error


def _names(classes: Any, outputs: int) -> tuple[str, ...]:
    """Names of the outputs, by default their numbers; TypeError for anything without an order, UsageError for another number."""
    if classes is not None and (isinstance(classes, (str, Mapping, Set)) or not isinstance(classes, Iterable)):
        raise TypeError(f"classes is {type(classes).__name__}; give a list of the names in the order of the outputs")
    names = tuple(map(str, range(outputs) if classes is None else classes))
    if len(names) != outputs:
        raise UsageError(f"classes differ (names {len(names)}, model {outputs}); give one name per output of the model")
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise UsageError(f"class names are not distinct ({repeated!r} is given {names.count(repeated)} times); give each once")
    return names


def _outputs(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, bool]:
    """Number of classes that the module returns for two zero inputs, and whether they are probabilities: at least 0, with a sum of 1.

    UsageError unless that is a (2, classes) tensor.
    """
    what = f"{type(model).__name__}, input {('N', *shape)}".replace("'", "")
    device = next((each.device for each in model.state_dict().values()), torch.device("cpu"))
    try:
        with torch.no_grad(), machine.eval_mode(model):
            given = model(torch.zeros(2, *shape, device=device))
    except Exception as error:  # a caller's module may raise anything
        why = " ".join(str(error).split())[:80]
        raise UsageError(f"module fails ({what}: {type(error).__name__}: {why}); it must accept one float32 tensor") from error
    if not isinstance(given, torch.Tensor) or given.ndim != 2 or len(given) != 2:
        found = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise UsageError(
            f"module returns {found} for two inputs ({what}); expected one tensor of logits, (2, classes): wrap the module in one that "
            "returns that"
        )
    if given.shape[1] < 2:
        raise UsageError(f"module returns one number per input ({what}); expected a logit for each of at least two classes")
    return given.shape[1], bool((given >= 0).all() and torch.allclose(given.float().sum(1), torch.ones(2, device=given.device)))


def _pixels(images: Any, shape: tuple[int, ...], *, stored: bool) -> tuple[np.ndarray, str]:
    """Images as an array, and their description; UsageError for another shape or type. Noise is of pixels if they are ``stored``."""
    if images is None:
        pictures = stored and len(shape) == 3 and shape[0] == 3 and shape[1] == shape[2]
        made = _feed.noise(NOISE, (*shape[1:], 3), "uint8") if pictures else _feed.noise(NOISE, shape, "float32")
        return made, "noise (no images were given)"
    array = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError("images have values that are not finite; give others to compare with PyTorch")
    if array.dtype.kind == "f" and array.shape[1:] == shape and len(array):
        return np.ascontiguousarray(array, np.float32), "the given images"
    square = array.ndim == 4 and array.shape[1] == array.shape[2] >= shape[-1] and array.shape[3] == 3 and len(shape) == 3
    if array.dtype == np.uint8 and square and len(array) and shape[0] == 3 and shape[1] == shape[2]:
        return array, "the given images"
    raise UsageError(
        f"images do not fit the model ({array.dtype} {array.shape}, input {shape}); give float32 (N, {', '.join(map(str, shape))}), or "
        "square uint8 (N, H, W, 3)"
    )


def _labelled(pixels: np.ndarray, targets: Any, classes: int) -> Split:
    """Images with their targets, -1 where there are none."""
    if targets is None:
        return Split(pixels, np.full(len(pixels), -1), [])
    array = np.asarray(targets.detach().cpu() if isinstance(targets, torch.Tensor) else targets)
    if (
        array.shape != (len(pixels),)
        or array.dtype.kind not in "iu"
        or not len(array)
        or not 0 <= array.min() <= array.max() < classes
    ):
        raise UsageError(
            f"targets do not fit ({array.dtype} {array.shape}); give {len(pixels)} class numbers from 0 to {classes - 1}"
        )
    return Split(pixels, array.astype(np.int64), [])


def need_training_images(subject: Subject, precision: str) -> Split:
    """The images to calibrate on; DataError if there are none."""
    if subject.train is None:
        data = subject.facts.get("data")
        hint = (
            f"which were not found ({data}); give its data.dir"
            if data
            else "which were not given; give images= (zoo export: --data)"
        )
        raise DataError(f"{precision} is calibrated on training images, {hint}")
    if not len(subject.train):
        raise DataError(
            f"no training images to calibrate on ({subject.facts.get('data', '')}); use the training data of the run"
        )
    return subject.train


def facts(subject: Subject, exported: _graph.Exported, *, opset: int, frozen: dict[str, str]) -> dict[str, str]:
    """Metadata for readers of the file, as ONNX's metadata_props, without paths of this machine."""
    import onnx

    import zoo

    steps = {
        "mode": exported.preprocess, "takes": _graph.PREPROCESS[exported.preprocess], "size": exported.size, "resize": exported.stored,
        "mean": exported.mean, "std": exported.std,
    }  # fmt: skip
    found: dict[str, Any] = {
        "zoo.version": zoo.__version__,
        "model": subject.name,
        "classes": json.dumps(subject.classes, ensure_ascii=False),
        "preprocess": exported.preprocess,
        "softmax": json.dumps(exported.softmax),
        "weights_sha256": _graph.weights_sha256(subject.model),
        "frozen_sha256": json.dumps(frozen),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": runtimes.onnxruntime().__version__,
        "opset": opset,
    }
    if subject.normalised and exported.mean and exported.shape == (3, exported.size, exported.size):
        found["preprocessing"] = json.dumps(steps)
    return {key: str(value) for key, value in (found | dict(subject.facts)).items()}
