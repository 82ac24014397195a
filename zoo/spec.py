"""Records of the registry: models, losses, data sets, export targets, and the options that they declare (imports no torch).

Every file in ``models``, ``losses``, ``data`` and ``export`` ends with a table of these records; :mod:`zoo.registry` reads them
without importing the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np


@dataclass(frozen=True)
class Option:
    """One setting of a recipe: its type, default, range and one line of help.

    A loss declares its options in ``LossSpec.options``; all fields are literals, so that the registry can read them from the source
    text. The recipe's ``[loss]`` table, ``zoo losses``, ``zoo train --help`` and ``zoo recipes --keys`` are made from them.
    """

    type: str
    """``float``, ``int``, ``bool``, ``str``, ``list[float]``, ``list[int]`` or ``list[str]``."""
    default: Any
    help: str
    gt: float | None = None
    """Bounds of a number, or of each number in a list: greater than, at least, less than, at most."""
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    choices: tuple[Any, ...] = ()
    """All allowed values, of one type; empty: any value."""

    @property
    def range(self) -> str:
        """``>= 0 and < 1``, ``one of a, b`` or an empty string."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        ends = {">": self.gt, ">=": self.ge, "<": self.lt, "<=": self.le}
        return " and ".join(f"{sign} {value:.15g}" for sign, value in ends.items() if value is not None)


@dataclass(frozen=True)
class Download:
    """A published weights file."""

    url: str
    file: str
    """File name in torch hub's ``checkpoints`` folder."""
    read: Callable[[Path], dict[str, Any]] | None = None
    """Converts the file to a state dict of the model (default: the file contains a state dict)."""


@dataclass(frozen=True)
class ModelSpec:
    """One architecture.

    ``build(classes)`` returns a freshly initialised ``nn.Module`` mapping float (N, \\*input) to logits (N, classes).
    """

    build: Callable[..., Any]
    input: tuple[int, int, int]
    """Channels, height, width of one sample."""
    params: int
    """Number of parameters with ``classes`` outputs."""
    macs: int
    """Multiply-accumulates of one sample; 0: not counted."""
    paper: str
    head: str
    """Name in ``named_modules`` of the module with the classifier layers (for two heads, both names separated by a space)."""
    data: tuple[str, ...]
    """Suitable data sets; the first is the default of ``zoo train MODEL`` (empty: none)."""
    new_head: str = ""
    """Name of the last linear layer, replaced for another number of classes (default: ``head``)."""
    stages: tuple[tuple[str, ...], ...] = ()
    """Modules and parameters of each stage, from the input (the stem is stage 0); for ``freeze=stage<=N``."""
    layers: tuple[tuple[str, ...], ...] = ()
    """The same in smaller groups, for ``layer_decay`` (default: ``stages``); other parameters have the classifier's rate."""
    classes: int = 10
    cosine: bool = False
    """Whether the logits are scaled cosines, which some losses need."""
    weights: tuple[str, ...] = ()
    """Names of downloadable weights; the first is the default."""
    download: Callable[[str], Download] | None = None
    """Source of each name in ``weights``."""
    mean: tuple[float, ...] = ()
    """Channel means, for images scaled to [0, 1], that the downloadable weights were trained with (default: the data set's)."""
    std: tuple[float, ...] = ()
    """Channel standard deviations that belong to ``mean``."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Recipe values of ``zoo train MODEL``, by dotted key, such as ``{"optim.lr": 0.1}``."""


@dataclass(frozen=True)
class Given:
    """Objects passed from Python that replace what a recipe names; no file stores them."""

    model: Any = None
    """A module, or a class or function of the number of classes that returns one."""
    data: DataSet | None = None
    loss: Any = None
    """A module that maps logits (N, C) and targets to a scalar."""


@dataclass(frozen=True)
class LossSpec:
    """One loss; ``build(**options)`` returns a module mapping (logits (N, C), target (N,)) to a scalar.

    The module has a buffer ``weight``, (C,) or None, which deferred re-weighting sets, and may have four more methods:
    ``with_stats(logits, target)`` returns ``loss`` and ``p`` (N,), the softmax probability of each label, from one pass;
    ``set_epoch(epoch)`` is called before the first step of an epoch and on resuming; ``end_epoch(epoch)`` is called after the last
    step and returns numbers for the epoch's row; ``divisor(target)`` returns the sum of weights by which a batch is divided, if that is
    not the number of rows, so that accumulated batches make the step of a large batch. State that is kept between epochs must be in buffers, so that a run can resume.
    """

    build: Callable[..., Any]
    reference: Callable[..., Any]
    """The plain formula, with the arguments of the module's call and its options; the tests use it in float64."""
    paper: str
    options: Mapping[str, Option] = field(default_factory=dict)
    """Keyword arguments of ``build`` that the recipe's ``[loss]`` table sets; ``weight`` is passed in addition."""
    counts: bool = False
    """Whether ``build`` and ``reference`` take ``counts``, the training samples of each class."""
    soft: bool = False
    """Whether the target may be class shares (N, C), as in mixup and cutmix."""
    fused: bool = False
    """Whether the loss uses the fused op."""
    weighted_mean: bool = False
    """Whether the loss is divided by the sum of the batch's class weights, so that their scale cancels, instead of by the rows."""
    cosine: bool = False
    """Whether the logits must be scaled cosines."""


class ImageArray(Protocol):
    """Images (N, H, W, 3) uint8, in memory or read from a file when indexed: a NumPy array, or an object that is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True)
class Split:
    """Samples: ``images`` (N, H, W, 3) uint8, ``targets`` (N,) int64."""

    images: ImageArray
    targets: np.ndarray
    files: Sequence[str]
    """One name per sample, for messages: a path, or a text such as ``train[17]``."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class DataSet:
    """A data set with its three disjoint splits; ``val`` is split from the training images (may be empty)."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, float, float]
    """Channel means of images scaled to [0, 1]."""
    std: tuple[float, float, float]
    digest: str
    """SHA-256 digest of the images and targets of all splits, in order."""
    notes: tuple[str, ...] = ()
    """Decisions made while loading, one line each."""
    skipped: tuple[str, ...] = ()
    """Errors of the images that were skipped because of ``data.skip_bad``, one line each."""
    manifest: np.ndarray | None = None
    """(n, 2) uint64, for the samples of all splits: a digest of the name, and one of pixels and target, to report what changed."""


@dataclass(frozen=True)
class DataSpec:
    """One data set; ``build(folder, *, size, val, seed)`` returns a :class:`DataSet`.

    ``folder`` is the user's ``--data-dir`` or None, ``size`` is the requested height and width in pixels, and ``val`` is the share
    of the training images held out for validation, in [0, 1).
    """

    build: Callable[..., DataSet]
    classes: int
    """Number of classes; 0: known only after reading."""
    shape: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    counts: tuple[int, int]
    """Training (before ``val`` is split off) and test samples; (0, 0): known only after reading."""
    source: str
    balanced: bool = False
    """Whether every class has the same number of training samples."""
    options: tuple[str, ...] = ()
    """Further arguments of ``build``: ``layout`` (of the recipe's ``[data]`` table), ``variant`` (the text after the name's colon)."""
    margin: bool = False
    """Whether images are stored an eighth larger than ``size``, for random crops in training."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Recipe values that suit this data set, by dotted key."""


@dataclass(frozen=True)
class TargetSpec:
    """One file of ``zoo/export``: a format in one precision. Its fields are literals, which :mod:`zoo.registry` reads from the source."""

    format: str
    """Value of ``zoo export --format``."""
    suffix: str
    tolerance: float
    """Largest absolute difference of class probabilities or normalised logits that passes."""
    precision: str = "fp32"
    """Value of ``zoo export --precision``; all except fp32 must satisfy ``--max-drop`` as well."""
    needs: tuple[str, ...] = ()
    """Packages that must be installed besides torch."""
    beside: tuple[str, ...] = ()
    """Suffixes of the files that are written next to the first."""
    calibrated: bool = False
    """Whether activation ranges are calibrated on training images, so that saturated and constant images are out of range."""


SHOTS: Mapping[str, tuple[float, float]] = {"many": (101, math.inf), "medium": (20, 100), "few": (0, 19)}
"""Training images of a class, first and last, of Liu et al. 2019's splits (section 4.1: above 100, 20 to 100, below 20)."""


def shots_text(name: str) -> str:
    """``over 100``, ``20 to 100``, ``under 20``."""
    first, last = SHOTS[name]
    return f"over {first - 1}" if last == math.inf else f"under {last + 1}" if first == 0 else f"{first} to {last}"
