"""A recipe holds every setting of a run: typed, frozen, read from a file, overridden by ``key=value``, stored with the run.

Later sources override earlier ones: defaults, the data set's values, the model's values, the recipe file, the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tomli_w

from zoo import hub, model_files, recipe_text, registry
from zoo.console import note
from zoo.errors import UsageError, did_you_mean
from zoo.files import exists
from zoo.recipe_tables import Data, Distil, Loss, Optim, Reported, Sampler, Schedule, loss_options
from zoo.recipe_text import Written, flatten
from zoo.recipe_types import MOST, about, converted, declared, not_allowed, option_type
from zoo.spec import Option

NOT_THE_RECIPE = {"seed", "data.dir", "device", "precision", "compile"}
"""Keys that may differ between two runs of one recipe."""
BARE_GAMMA = (
    "no setting 'gamma': the loss's exponent is focal_gamma (--focal-gamma), the schedule's factor lr_gamma (--lr-gamma)"
)


class Recipe(msgspec.Struct, frozen=True):
    """Every setting that a run depends on."""

    model: Annotated[str, about("model (zoo models), or timm/NAME")] = "cnn_small"
    weights: Annotated[
        str, about("initial weights: none, default (pretrained), a name (zoo models), a file, a run or hf:OWNER/NAME")
    ] = "none"
    head_init: Annotated[
        Literal["default", "zero"], about("initialisation of a head without pretrained weights: the model's own, or zeros")
    ] = "default"
    freeze: Annotated[
        str, about("frozen layers: none, conv, fc, fc:all, backbone, bn, stage<=N or a glob of parameter names; + combines")
    ] = "none"
    unfreeze: Annotated[list[str], about("frozen layers after N epochs, as N:SELECTION")] = msgspec.field(default_factory=list)
    allow_random_frozen: Annotated[bool, about("allow freezing randomly initialised layers")] = False
    epochs: Annotated[int, about("passes over the training images", ge=1, le=MOST)] = 10
    batch_size: Annotated[int, about("images per batch, over all processes", ge=1, le=MOST)] = 128
    seed: Annotated[int, about("seed of all random number generators", ge=0, lt=2**31)] = 0
    device: Annotated[str, about("auto, cpu, cuda, cuda:N or another torch device")] = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], about("data type of the forward and backward pass")] = "auto"
    qat: Annotated[
        bool, about("quantisation-aware training: round the weights and inputs of layers as an exported int8 file does")
    ] = False
    qat_bits: Annotated[
        Literal[0, 7, 8],
        about("bits of the weights with qat: 8, or 7 for x86 CPUs without VNNI; 0: as this CPU requires"),
    ] = 0
    ema: Annotated[float, about("decay of the exponential moving average of the weights; 0: none", ge=0, lt=1)] = 0.0
    lookahead: Annotated[float, about("final decay per step of Lookahead's slow weights; 0: none", ge=0, lt=1)] = 0.0
    mixup: Annotated[float, about("parameter of mixup's Beta distribution; 0: no mixup", ge=0, le=1000)] = 0.0
    cutmix: Annotated[float, about("parameter of cutmix's Beta distribution; 0: no cutmix", ge=0, le=1000)] = 0.0
    mix_prob: Annotated[float, about("probability with which mixup and cutmix change an image", gt=0, le=1)] = 1.0
    mix_with: Annotated[
        Literal["any", "rare"],
        about(
            "partner image in mixup and cutmix: any of the batch, or one whose class is drawn in proportion to 1 / class size"
        ),
    ] = "any"
    patience: Annotated[int, about("epochs without a better accuracy before training stops; 0: never", ge=0, le=MOST)] = 0
    select_on: Annotated[
        Literal["val", "test"], about("split that selects the best epoch; test makes the test result optimistic")
    ] = "val"
    select_by: Annotated[
        Literal["accuracy", "macro"], about("accuracy that selects the best epoch: overall, or macro (the mean over classes)")
    ] = "accuracy"
    allow_empty_class: Annotated[bool, about("train even if a class has no images")] = False
    deterministic: Annotated[bool, about("use only deterministic operations: repeated runs are bit-identical")] = False
    compile: Annotated[bool, about("train with torch.compile: about a minute at the start, then faster steps")] = False
    features_with: Annotated[
        Literal["torch", "onnxruntime", "openvino"],
        about("runtime that computes the features of frozen layers, once, in fp32 on the CPU"),
    ] = "torch"
    save_every: Annotated[int, about("steps between checkpoints; 0: one per epoch", ge=0, le=MOST)] = 0
    on_full: Annotated[Literal["stop", "keep-training"], about("action if the disk is full")] = "stop"
    data: Data = msgspec.field(default_factory=Data)
    loss: Loss = msgspec.field(default_factory=Loss)
    distil: Distil = msgspec.field(default_factory=Distil)
    sampler: Sampler = msgspec.field(default_factory=Sampler)
    optim: Optim = msgspec.field(default_factory=Optim)
    schedule: Schedule = msgspec.field(default_factory=Schedule)
    reported: Reported = msgspec.field(default_factory=Reported)


@functools.cache
def options() -> dict[str, Option]:
    """Every setting of a recipe file by dotted key, the options of all losses included."""
    losses: dict[str, Option] = {}
    for entry in registry.table("losses").values():
        losses |= {
            key: dataclasses.replace(option, help=f"{option.help}; losses: {', '.join(registry.takers(key))}")
            for key, option in entry["options"].items()
            if key not in losses
        }
    return declared(Recipe, {"loss.options": losses})


def shipped() -> dict[str, Path]:
    """The recipes included in zoo, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}


def resolve(what: str | None, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe for ``zoo train WHAT``: a file, a shipped recipe, or a model with its own defaults.

    ``hf:owner/name`` stands for the model of that repository, with its weights. Weights of the hub get the commit that they have now.
    The folder of a run stands for its recipe, with its weights.

    ``overrides`` are dotted keys or leaf names that only one table has (``lr`` for ``optim.lr``); ``data``, ``loss``,
    ``sampler``, ``optim`` and ``schedule`` alone stand for their ``name``. If they select another loss, options in the file that
    this loss does not have are dropped; each that differs from its default is reported.

    Raises:
        UsageError: unknown name, key, type or range. FileError: a repository of the hub that cannot be used.
    """
    values = {full_key(key): recipe_text.plain(value) for key, value in overrides.items()}
    registry.check_place(str(values.get("data.name", "")), values.get("data.dir") or "")
    if hub.is_hub(what):
        _, stored = of_hub(str(what))
        what, values = stored.model, {"weights": what, "data.size": stored.data.size, **values}
    found = _resolved(what, values)
    return msgspec.structs.replace(found, weights=hub.pinned(found.weights)) if hub.is_hub(found.weights) else found


def of_hub(name: str) -> tuple[Path, Recipe]:
    """The run folder made from a repository of the hub, and its recipe.

    Raises:
        UsageError, FileError: as :func:`zoo.hub.run_folder`; UsageError also for a recipe that is invalid or whose model is a
            Python file, which is not fetched.
    """
    folder = hub.run_folder(name)
    found = read(folder / "recipe.toml")
    if model_files.is_file(found.model):
        file = Path(found.model).name
        raise UsageError(
            f"the model of {name} is code ({file}), which zoo does not fetch; use: zoo train {file} --weights {name}"
        )
    return folder, found


def _resolved(what: str | None, values: dict[str, Any]) -> Recipe:
    """:func:`resolve` with full keys and without the hub."""
    if model_files.is_file(str(values.get("model", ""))):
        values["model"] = model_files.named(values["model"])
    if what is None:
        what = str(values.get("model", "demo"))
    path = Path(what)
    if what in shipped():
        path = shipped()[what]
    if path.suffix in recipe_text.SUFFIXES or what in shipped():
        written = _known(recipe_text.read(path))
        base = _suited(str(values.get("model", written.values.get("model", Recipe().model))), written.values | values)
        kept = _of_loss(base | written.values, values.get("loss.name"), path.name)
        return _typed(kept | values, written, values)
    if model_files.is_file(what):
        what = model_files.named(what)
    elif not what.startswith(("timm/", model_files.OBJECT)) and what not in registry.names("models"):
        if exists(path / "recipe.toml"):
            return _continued(path, values)
        names = [*registry.names("models"), *shipped()]
        raise UsageError(f"no model {what!r}{did_you_mean(what, names)}; list them with: zoo models")
    values.setdefault("model", what)
    return _typed(_suited(str(values["model"]), values) | values)


def _continued(folder: Path, values: Mapping[str, Any]) -> Recipe:
    """The recipe of a finished run, which starts from the weights of the run; with ``qat``, a short run at a low rate.

    Five epochs at 1 % of the learning rate, without warm-up: Krishnamoorthi 2018, "Quantizing deep convolutional networks", section 4.
    """
    old = msgspec.structs.replace(read(folder / "recipe.toml"), reported=Reported())
    start: dict[str, Any] = {"weights": str(folder.absolute()), "head_init": "default", "unfreeze": [], "loss.drw_epoch": 0}
    if old.unfreeze:  # as at the end of the run, in the loss too
        start["freeze"] = old.unfreeze[-1].partition(":")[2]
    if "switch_epoch" in old.loss.options:
        start["loss.switch_epoch"] = 0
    if model_files.is_file(old.model) and (copy := folder.absolute() / model_files.COPY).is_file():
        start["model"] = f"{copy}:{old.model.rpartition(':')[2]}"
    if values.get("qat"):
        start |= {
            "freeze": "none",
            "epochs": 5,
            "optim.lr": old.optim.lr / 100,
            "schedule.name": "cosine",
            "schedule.warmup": 0.0,
        }
    return changed(old, start | dict(values))


def changed(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with other settings, by dotted key or leaf name; UsageError as :func:`resolve`."""
    values = {full_key(key): recipe_text.plain(value) for key, value in overrides.items()}
    return _typed(_of_loss(flatten(_tree(recipe)), values.get("loss.name")) | values)


def check(recipe: Recipe) -> None:
    """UsageError unless the settings are consistent; separate from :func:`resolve` because a sweep changes one at a time."""
    loss, data = recipe.loss, recipe.data
    registry.entry("losses", loss.name)
    if (data.mean or data.std) and not len(data.mean) == len(data.std) == 3:
        raise UsageError(
            f"data.mean has {len(data.mean)} numbers, data.std {len(data.std)}; give three of each, "
            "e.g. data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5]"
        )
    from zoo import sampling  # here, as it imports numpy

    sampling.parse_imbalance(recipe.data.imbalance)
    if loss.drw_epoch >= recipe.epochs:
        raise UsageError(
            f"loss.drw_epoch = {loss.drw_epoch} is past the end ({recipe.epochs} epochs), so the class weights would never apply; "
            f"use less than {recipe.epochs}"
        )
    if (loss.class_weights == "given") != bool(loss.given_weights):
        raise UsageError("class_weights = 'given' and loss.given_weights=[...], a weight per class, need each other; set both")
    if loss.given_weights and not any(loss.given_weights):
        raise UsageError("loss.given_weights are all 0, so nothing would be learned; set at least one above 0")


def read(path: Path) -> Recipe:
    """The recipe stored in a run folder; missing keys get the defaults of :class:`Recipe`.

    Earlier versions stored the options of every loss; those of other losses are dropped.
    """
    return _typed(_known(written := recipe_text.read(path), stored=True).values, written, stored=True)


def dump(recipe: Recipe) -> str:
    """The recipe as TOML text with every key."""
    return tomli_w.dumps(_tree(recipe))


def same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes differ at most in :data:`NOT_THE_RECIPE`; a user's own data set is identified by its folder."""
    free = NOT_THE_RECIPE - {"data.dir"} if one.data.own else NOT_THE_RECIPE
    return all(line.partition(":")[0] in free for line in differences(one, other))


def parse_override(text: str) -> tuple[str, Any]:
    """``lr=0.1`` as a full key and a TOML value; anything that is not a TOML value is a string, or a list where one is expected.

    >>> parse_override("lr=1e-3")
    ('optim.lr', 0.001)
    >>> parse_override("augment=crop,v2:RandomRotation(degrees=(5, 9))")
    ('data.augment', ['crop', 'v2:RandomRotation(degrees=(5, 9))'])
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"cannot read {text!r}; write settings as key=value, e.g. optim.lr=0.1")
    name, found = full_key(key.strip()), recipe_text.value(value)
    kind = options()[name].type
    if kind == "str" and not isinstance(found, str):
        found = value.strip()  # a folder named 2024
    if kind.startswith("list") and not isinstance(found, list):
        found = [part if kind == "list[str]" else recipe_text.value(part) for part in recipe_text.listed(value)]
    return name, found


def full_key(key: str) -> str:
    """``lr`` to ``optim.lr``, ``data`` to ``data.name``, ``data_dir`` to ``data.dir``; UsageError with the nearest keys otherwise."""
    known = list(options())
    for name in (key, f"{key}.name", key.replace("_", ".", 1)):
        if name in known:
            return name
    if key.rpartition(".")[2] == "gamma":
        raise UsageError(BARE_GAMMA)
    leaf = [name for name in known if name.endswith(f".{key}") and name.count(".") == 1 and key != "name"]
    if len(leaf) == 1:
        return leaf[0]
    near = did_you_mean(key, [*known, *(name.rpartition(".")[2] for name in known)])
    raise UsageError(f"no setting {key!r}{near}; list them with: zoo recipes --keys")


def settings(recipe: Recipe) -> dict[str, Any]:
    """All settings that a run depends on, by dotted key, without the reported results."""
    return {key: value for key, value in flatten(_tree(recipe)).items() if not key.startswith("reported.")}


def aligned(recipes: Iterable[Recipe]) -> list[dict[str, Any]]:
    """The settings of several recipes, all with the same keys; an option of another loss counts as its default."""
    found = [settings(recipe) for recipe in recipes]
    every = dict.fromkeys(key for each in reversed(found) for key in each)
    return [{key: each[key] if key in each else options()[key].default for key in every} for each in found]


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Lines ``key: old -> new`` for every setting that differs."""
    before, after = aligned([old, new])
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def _tree(recipe: Recipe) -> dict[str, Any]:
    """The tables of a recipe file: the options of the loss are in the same table as its name."""
    tree = msgspec.to_builtins(recipe)
    name, chosen = tree["loss"].pop("name"), tree["loss"].pop("options")
    tree["loss"] = {"name": name, **chosen, **tree["loss"]}
    return tree


def is_field(key: str) -> bool:
    """Whether a key is a setting of every recipe, not the option of a loss."""
    return not key.startswith("loss.") or key.partition(".")[2] in Loss.__struct_fields__


def _of_loss(values: dict[str, Any], loss: str | None, file: str = "") -> dict[str, Any]:
    """The settings without options of other losses than ``loss``; for a ``file``, each that differs from its default is reported."""
    if loss is None:
        return values
    kept = {key: value for key, value in values.items() if is_field(key) or key.partition(".")[2] in loss_options(loss)}
    for key, value in values.items():
        if file and loss in registry.names("losses") and key not in kept and value != options()[key].default:
            note("loss", f"{key} = {value} ({file}) has no effect: {loss} has no such option")
    return kept


def _known(written: Written, *, stored: bool = False) -> Written:
    """The same values; UsageError for an unknown key (with ``stored``: except for options of a loss that is not installed)."""
    known = list(options())
    foreign = stored and written.values.get("loss.name", Loss().name) not in registry.table("losses")
    for key in written.values:
        if key in known or (foreign and key.startswith("loss.")):
            continue
        if key.rpartition(".")[2] == "gamma":
            raise UsageError(f"{BARE_GAMMA}{written.place(key)}")
        leaf = key.rpartition(".")[2]
        elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]
        moved = f" (did you mean {', '.join(elsewhere[:3])}?)" if elsewhere else ""
        near = moved or did_you_mean(key, known) or did_you_mean(leaf, known)
        raise UsageError(f"no setting {key!r}{written.place(key)}{near}; list them with: zoo recipes --keys")
    return written


def _suited(model: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the model and its data set; ``values`` override them."""
    timm, own = model.startswith("timm/"), model_files.is_own(model)
    entry: dict[str, Any] = {} if timm else model_files.entry(model) if own else registry.entry("models", model)
    suits = entry.get("data") or ("caltech101" if timm else "cifar10",)
    name = registry.data_source(str(values.get("data.name", suits[0])))[0]
    name = name if name.partition(":")[0] in registry.table("data") else "folder"
    return registry.entry("data", name).get("recipe", {}) | entry.get("recipe", {}) | {"data.name": suits[0], "model": model}


def _typed(
    flat: Mapping[str, Any], written: Written | None = None, changed: Collection[str] = (), *, stored: bool = False
) -> Recipe:
    """A recipe of dotted keys; an error names the line of the file unless its key is ``changed`` outside of it."""
    tree: dict[str, Any] = {"loss": {"options": {}}}
    for key, value in registry.placed(flat).items():
        place = written.place(key) if written and key not in changed else ""
        if any(isinstance(each, float) and not math.isfinite(each) for each in (value if isinstance(value, list) else [value])):
            raise UsageError(f"{key} = {value}{place} is not a finite number")
        table, _, leaf = key.rpartition(".")
        if not is_field(key):
            tree["loss"]["options"] |= _loss_option(flat, leaf, value, place, stored=stored)
        else:
            (tree.setdefault(table, {}) if table else tree)[leaf] = value
    try:
        return converted(tree, Recipe)
    except msgspec.ValidationError as error:
        key = str(error).partition(" - at ")[2].strip("`$.").partition("[")[0]
        place = written.place(key) if written and key not in changed else ""
        raise not_allowed(key, flat.get(key), place, error, options().get(key)) from error


def _loss_option(flat: Mapping[str, Any], name: str, value: Any, place: str, *, stored: bool) -> dict[str, Any]:
    """``{name: value}`` of an option that the loss takes.

    Empty for an option of another loss in a ``stored`` recipe, or at its default: recipes of earlier versions have all options.
    """
    loss = flat.get("loss.name", Loss().name)
    if name not in loss_options(loss):
        if stored:
            return {}
        own, takers = registry.entry("losses", loss)["options"], registry.takers(name)
        if any(loss_options(taker)[name].default == value for taker in takers):
            return {}
        raise UsageError(
            f"loss.{name} = {value!r}{place} is not an option of {loss} ({'options: ' + ', '.join(own) if own else 'no options'}); "
            f"losses with this option: {', '.join(takers[:5])}"
        )
    option = loss_options(loss)[name]
    try:
        return {name: converted(value, option_type(option))}
    except msgspec.ValidationError as error:
        raise not_allowed(f"loss.{name}", value, place, error, option) from error
