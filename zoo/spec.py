"""Records of the registry: models, losses, data sets, export targets, and the options that they declare (imports no torch).

Every file below ``models``, ``losses``, ``data`` and ``export`` ends in a table of these records; see
:mod:`zoo.registry` for how they are read without importing the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np


@dataclass(frozen=True)
class Option:
    """One setting of a recipe: its type, default, range and one line of help.

    A loss declares its own in ``LossSpec.options``, all fields literals, so that the registry reads them from the source text.
    The recipe's ``[loss]`` table, ``zoo losses``, ``zoo train --help`` and ``zoo recipes --keys`` are made from them.
    """

    type: str
    """``float``, ``int``, ``bool``, ``str``, ``list[float]``, ``list[int]`` or ``list[str]``."""
    default: Any
    help: str
    gt: float | None = None
    """Bounds of a number, or of each in a list: greater than, at least, less than, at most."""
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    choices: tuple[Any, ...] = ()
    """All values that are allowed, of one type; empty: any."""

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
    """Its name in torch hub's ``checkpoints`` folder."""
    read: Callable[[Path], dict[str, Any]] | None = None
    """Turns the file into a state dict of the model (default: the file holds one)."""


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
    """Name of the module that holds the classifier layers, by ``named_modules`` (two heads: both, with a space between)."""
    data: tuple[str, ...]
    """Suitable data sets; the first is the default of ``zoo train MODEL`` (empty: none)."""
    new_head: str = ""
    """Name of the last linear layer, replaced for another number of classes (default: ``head``)."""
    stages: tuple[tuple[str, ...], ...] = ()
    """Modules and parameters of each stage from the input on, the stem being stage 0; for ``freeze=stage<=N``."""
    layers: tuple[tuple[str, ...], ...] = ()
    """The same in smaller steps, for ``layer_decay`` (default: ``stages``); parameters in none have the classifier's rate."""
    classes: int = 10
    cosine: bool = False
    """Whether the logits are scaled cosines, which some losses need."""
    weights: tuple[str, ...] = ()
    """Names of downloadable weights; the first is the default."""
    download: Callable[[str], Download] | None = None
    """Source of each name in ``weights``."""
    mean: tuple[float, ...] = ()
    """Channel means of images scaled to [0, 1] with which the downloadable weights were trained (default: the data set's)."""
    std: tuple[float, ...] = ()
    """Channel standard deviations that belong to ``mean``."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Recipe values of ``zoo train MODEL``, by dotted key, e.g. ``{"optim.lr": 0.1}``."""


@dataclass(frozen=True)
class LossSpec:
    """One loss; ``build(**options)`` returns a module mapping (logits (N, C), target (N,)) to a scalar.

    The module has a buffer ``weight``, (C,) or None, which deferred re-weighting sets, and may have three methods more:
    ``with_stats(logits, target)``, which gives ``loss`` and ``p`` (N,), the softmax probability of each label, from one pass;
    ``set_epoch(epoch)``, called before the first step of an epoch and on resuming; ``end_epoch(epoch)``, called after the last,
    which returns numbers for the epoch's row. State that is kept from one epoch to the next is in buffers, so that a run
    resumes.
    """

    build: Callable[..., Any]
    reference: Callable[..., Any]
    """The plain formula, same arguments as the module's call plus its options, used by the tests in float64."""
    paper: str
    options: Mapping[str, Option] = field(default_factory=dict)
    """Keyword arguments of ``build`` that the recipe's ``[loss]`` table sets; ``weight`` is passed in addition."""
    counts: bool = False
    """Whether ``build`` and ``reference`` take ``counts``, the training samples of each class."""
    soft: bool = False
    """Whether the target may be shares (N, C), as in mixup and cutmix."""
    fused: bool = False
    """Whether it runs on the fused op."""
    weighted_mean: bool = False
    """Whether it divides by the sum of the class weights of the batch, so that their scale cancels, or by its rows."""
    cosine: bool = False
    """Whether the logits must be scaled cosines."""


class ImageArray(Protocol):
    """(N, H, W, 3) uint8 in memory, or read from a file when it is indexed: a numpy array, or what is indexed like one."""

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
    """One name per sample, for messages: a path or ``train[17]``."""

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
    """sha256 over images and targets of all splits, in order."""
    notes: tuple[str, ...] = ()
    """Decisions made while loading, one line each."""
    skipped: tuple[str, ...] = ()
    """Errors of the images that were skipped on request (``data.skip_bad``), one line each."""
    manifest: np.ndarray | None = None
    """(n, 2) uint64 over the samples of all splits: digests of its name and of its pixels and target, to name what changed."""


@dataclass(frozen=True)
class DataSpec:
    """One data set; ``build(folder, *, size, val, seed)`` returns a :class:`DataSet`.

    ``folder`` is the user's ``--data-dir`` or None, ``size`` the wanted height and width in pixels, ``val`` the share
    of the training images held out for validation in [0, 1).
    """

    build: Callable[..., DataSet]
    classes: int
    """Number of classes; 0: known once read."""
    shape: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    counts: tuple[int, int]
    """Training (before ``val`` is split off) and test samples; (0, 0): known once read."""
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
    """Whether its ranges are calibrated on training images, so that saturated and constant images are out of range."""
