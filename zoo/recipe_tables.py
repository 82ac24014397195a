"""The tables of a recipe: type, default, range and description of each setting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from zoo import registry
from zoo.recipe_types import HUGE, MOST, about
from zoo.spec import Option


def loss_options(name: str) -> dict[str, Option]:
    """The options that a loss declares."""
    return registry.table("losses").get(str(name), {}).get("options", {})  # a recipe file can give another type


class Data(msgspec.Struct, frozen=True):
    """``[data]``: which images, how they are split, thinned and augmented."""

    name: Annotated[
        str, about("data set (zoo data), torchvision:NAME, a folder of class folders, a CSV or Parquet list or an .npz file")
    ] = "synthetic"
    dir: Annotated[str, about("folder of the data set; empty: the cache, or a download")] = ""
    layout: Annotated[
        Literal["auto", "splits", "classes"], about("meaning of the subfolders of data.dir if it is ambiguous")
    ] = "auto"
    skip_bad: Annotated[bool, about("skip images that cannot be read; the result reports their number")] = False
    val: Annotated[float, about("share of the training images held out for validation", ge=0, lt=1)] = 0.1
    imbalance: Annotated[
        str, about("long tail: none, exp:F or step:F, where F is the share of images that the rarest class keeps")
    ] = "none"
    augment: Annotated[
        list[str], about("augmentations in order: crop, flip, altflip, rcrop, colour, cutout, trivial, v2:NAME")
    ] = msgspec.field(default_factory=lambda: ["crop", "flip"])
    per_class: Annotated[int, about("training images per class; 0: all", ge=0, le=MOST)] = 0
    size: Annotated[int, about("side of the model's input in pixels; 0: the model's own", ge=0, le=4096)] = 0
    views: Annotated[
        int,
        about(
            "augmented views per image for which features are computed if all layers but the head are frozen; 0: none",
            ge=0,
            le=1000,
        ),
    ] = 0
    mean: Annotated[
        list[Annotated[float, msgspec.Meta(ge=0, le=1)]],
        about("channel means of the images in [0, 1]; empty: those of the weights"),
    ] = msgspec.field(default_factory=list)
    std: Annotated[
        list[Annotated[float, msgspec.Meta(gt=0, le=HUGE)]], about("channel standard deviations that belong to mean")
    ] = msgspec.field(default_factory=list)

    @property
    def own(self) -> bool:
        """The set is a folder or file of the user's, which ``dir`` identifies."""
        name, _, variant = self.name.partition(":")
        return bool(self.dir) and not variant and registry.table("data").get(name, {}).get("classes") == 0

    @property
    def label(self) -> str:
        """Name of the set in titles; of a user's folder or file, its file name."""
        name, _, variant = self.name.partition(":")
        return variant or (Path(self.dir).absolute().name if self.own else name)


class Loss(msgspec.Struct, frozen=True):
    """``[loss]``: the loss, its options, and class weights from the training counts.

    ``options`` has every option that the loss declares (:class:`zoo.spec.Option`); in a file they are in the same table as ``name``. The
    class weights act once ``drw_epoch`` epochs are done (deferred re-weighting, Cao et al. 2019).
    """

    name: Annotated[str, about("loss; list them with: zoo losses")] = "cross_entropy"
    class_weights: Annotated[
        Literal["none", "effective", "inverse", "sqrt_inverse", "given"],
        about("class weights, computed from the images per class"),
    ] = "none"
    given_weights: Annotated[
        list[Annotated[float, msgspec.Meta(ge=0, le=HUGE)]], about("the weights for class_weights = given")
    ] = msgspec.field(default_factory=list)
    beta: Annotated[
        float, about("beta of the effective number of samples (Cui et al. 2019), for effective class weights", ge=0, lt=1)
    ] = 0.9999
    drw_epoch: Annotated[int, about("epochs before class weights apply", ge=0, le=MOST)] = 0
    options: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, option in loss_options(self.name).items():
            self.options.setdefault(name, option.default)


class Distil(msgspec.Struct, frozen=True):
    """``[distil]``: finished runs whose outputs the model learns in addition to the labels (:mod:`zoo.training.distil`)."""

    teacher: Annotated[list[str], about("finished runs to learn from, by name or folder")] = msgspec.field(default_factory=list)
    weight: Annotated[float, about("weight of the distance to the teachers; that of the loss is 1 - weight", ge=0, le=1)] = 0.9
    temperature: Annotated[float, about("softmax temperature of the model and the teachers", gt=0, le=1000)] = 4.0


class Sampler(msgspec.Struct, frozen=True):
    """``[sampler]``: how often each sample is drawn (:func:`zoo.sampling.chances`)."""

    name: Annotated[
        Literal["none", "class_balanced", "square_root", "progressive", "focal"],
        about("how often each image is drawn; none: once per epoch"),
    ] = "none"
    exponent: Annotated[float, about("exponent of 1 - p_t in the focal sampler", ge=0, le=100)] = 2.0


class Optim(msgspec.Struct, frozen=True):
    """``[optim]``: the optimizer.

    A typed table, not options that each optimizer declares as losses do: nearly all of these settings belong to several
    optimizers, so that a declaration per optimizer would repeat them.

    ``lr_head`` multiplies the rate of the new head, ``layer_decay`` that of each stage once more per stage below the top.
    """

    name: Annotated[Literal["sgd", "adamw", "nadamw", "cadamw", "lion", "muon"], about("optimizer")] = "sgd"
    lr: Annotated[float, about("peak learning rate", gt=0, le=HUGE)] = 0.1
    momentum: Annotated[float, about("momentum of sgd and muon", ge=0, lt=1)] = 0.9
    nesterov: Annotated[bool, about("Nesterov momentum in sgd and muon")] = True
    weight_decay: Annotated[float, about("weight decay", ge=0, le=HUGE)] = 5e-4
    clip: Annotated[float, about("largest gradient norm (clipping); 0: no limit", ge=0, le=HUGE)] = 0.0
    accumulate: Annotated[int, about("batches per optimizer step (gradient accumulation)", ge=1, le=MOST)] = 1
    lr_head: Annotated[float, about("learning rate of the new head, as a multiple of lr", gt=0, le=HUGE)] = 1.0
    norm_bias_lr: Annotated[
        float, about("learning rate of the biases of normalisation layers, as a multiple of lr", gt=0, le=HUGE)
    ] = 1.0
    layer_decay: Annotated[float, about("learning-rate factor for each stage below the top", gt=0, le=1)] = 1.0


class Schedule(msgspec.Struct, frozen=True):
    """``[schedule]``: the learning rate over the run."""

    name: Annotated[
        Literal["constant", "step", "multistep", "cosine", "onecycle", "plateau"], about("learning-rate schedule")
    ] = "cosine"
    warmup: Annotated[float, about("epochs of linear warm-up", ge=0, le=MOST)] = 0.0
    start_factor: Annotated[float, about("learning rate at the start of the warm-up, as a share of lr", ge=0, le=1)] = 0.0
    end_factor: Annotated[float, about("learning rate at the end of cosine and onecycle, as a share of lr", ge=0, le=1)] = 0.0
    steps: Annotated[
        list[Annotated[int, msgspec.Meta(ge=1, le=MOST)]], about("epochs at which multistep lowers the learning rate")
    ] = msgspec.field(default_factory=list)
    step_size: Annotated[int, about("epochs between two steps of the step schedule", ge=1, le=MOST)] = 30
    lr_gamma: Annotated[float, about("learning-rate factor in step, multistep and plateau", gt=0, le=1)] = 0.1
    plateau_epochs: Annotated[
        int, about("epochs without a better validation accuracy before plateau lowers the learning rate", ge=0, le=MOST)
    ] = 5


class Course(msgspec.Struct, frozen=True, omit_defaults=True):
    """Reported values of one epoch: mean of (1 - p_t)^gamma, the loss's scale from then on, shares of easy and hard draws."""

    epoch: Annotated[int, msgspec.Meta(ge=1)]
    mean_factor: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    focal_scale: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    easy: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    hard: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class Reported(msgspec.Struct, frozen=True):
    """``[reported]``: published results of this recipe, shown next to the measured ones; nothing depends on them."""

    accuracy: Annotated[float, about("reported accuracy", ge=0, le=1)] = 0.0
    source: Annotated[str, about("source of the reported accuracy, and its test images")] = ""
    classes: Annotated[list[Annotated[float, msgspec.Meta(ge=0, le=1)]], about("reported accuracy of each class, in order")] = (
        msgspec.field(default_factory=list)
    )
    course: Annotated[list[Course], about("reported values by epoch")] = msgspec.field(default_factory=list)
    note: Annotated[str, about("known differences from the reported experiment")] = ""
    analogue: Annotated[str, about("comparable recipe with weights from a Python package")] = ""
