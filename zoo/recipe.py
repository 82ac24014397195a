"""A recipe is everything a run is: typed, frozen, read from TOML, overridden by ``key=value``, stored with the run.

Later sources win: the defaults here, what the data set suggests, what the model suggests, the recipe file, the command line.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tomli_w

from zoo import registry
from zoo.errors import UsageError, did_you_mean

Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
AtMostOne = Annotated[float, msgspec.Meta(ge=0, le=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
NotNegativeInt = Annotated[int, msgspec.Meta(ge=0)]

MAX_BYTES = 1 << 20
NOT_THE_RECIPE = {"seed", "data.dir", "device", "precision", "compile"}
"""Keys in which two runs of one recipe may differ."""
BARE_GAMMA = (
    "no setting 'gamma': the loss's exponent is focal_gamma (--focal-gamma), the schedule's factor lr_gamma (--lr-gamma)"
)


class Data(msgspec.Struct, frozen=True):
    """``[data]``: which images, how they are split, thinned and augmented.

    ``layout`` says whether the folders in ``dir`` are splits or classes, where that is ambiguous; ``skip_bad`` leaves out
    images that cannot be read.
    """

    name: str = "synthetic"
    dir: str = ""
    layout: Literal["auto", "splits", "classes"] = "auto"
    skip_bad: bool = False
    val: Share = 0.1
    imbalance: str = "none"
    augment: list[str] = msgspec.field(default_factory=lambda: ["crop", "flip"])

    @property
    def label(self) -> str:
        """What the set is called in titles and names: of one that is a folder or a file, what that is called."""
        name, _, variant = self.name.partition(":")
        nameless = registry.table("data").get(name, {}).get("classes") == 0
        return variant or (Path(self.dir).absolute().name if self.dir and nameless else name)


class Loss(msgspec.Struct, frozen=True):
    """``[loss]``: the loss, its options (``zoo losses`` says which it takes), and class weights from the training counts.

    The weights act once ``drw_epoch`` epochs are done (deferred re-weighting, Cao et al. 2019). ``alpha`` is the share of
    cross entropy in ``hybrid``, ``switch_epoch`` the epochs of it before ``ce_then_focal`` changes over, ``rescale_every`` the
    epochs between two scales of ``dynamic_focal`` and ``max_scale`` their cap (0: none), ``tau`` the strength of
    ``logit_adjustment``, ``max_margin`` and ``margin_scale`` the rarest class's margin in ``ldam`` and its factor.
    """

    name: str = "cross_entropy"
    focal_gamma: NotNegative = 2.0
    label_smoothing: Share = 0.0
    class_weights: Literal["none", "effective", "inverse", "sqrt_inverse", "given"] = "none"
    given_weights: list[NotNegative] = msgspec.field(default_factory=list)
    beta: Share = 0.9999
    drw_epoch: NotNegativeInt = 0
    alpha: AtMostOne = 0.5
    switch_epoch: NotNegativeInt = 0
    rescale_every: AtLeastOne = 5
    max_scale: NotNegative = 0.0
    tau: NotNegative = 1.0
    max_margin: NotNegative = 0.5
    margin_scale: Positive = 30.0


class Sampler(msgspec.Struct, frozen=True):
    """``[sampler]``: how often each sample is drawn (:func:`zoo.sampling.chances`); ``none`` shows each once an epoch.

    ``exponent`` is the power of 1 - p_t in the ``focal`` sampler.
    """

    name: Literal["none", "class_balanced", "square_root", "progressive", "focal"] = "none"
    exponent: NotNegative = 2.0


class Optim(msgspec.Struct, frozen=True):
    """``[optim]``: the optimizer; ``clip`` is the largest gradient norm, 0 for none.

    ``lr_head`` multiplies the rate of the new head, ``layer_decay`` that of each stage once more per stage below the top.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.1
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    clip: NotNegative = 0.0
    lr_head: Positive = 1.0
    layer_decay: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


class Schedule(msgspec.Struct, frozen=True):
    """``[schedule]``: the learning rate over the run; ``warmup`` in epochs, ``steps`` the epochs at which it is multiplied."""

    name: Literal["constant", "step", "multistep", "cosine", "onecycle"] = "cosine"
    warmup: NotNegative = 0.0
    steps: list[AtLeastOne] = msgspec.field(default_factory=list)
    step_size: AtLeastOne = 30
    lr_gamma: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1


class Course(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was reported of one epoch: mean of (1 - p_t)^gamma, the loss's scale from then on, shares of easy and hard draws."""

    epoch: AtLeastOne
    mean_factor: AtMostOne = 0.0
    focal_scale: NotNegative = 0.0
    easy: AtMostOne = 0.0
    hard: AtMostOne = 0.0


class Reported(msgspec.Struct, frozen=True):
    """``[reported]``: what others reported of this recipe, shown beside what it reaches here; nothing depends on it."""

    accuracy: AtMostOne = 0.0
    source: str = ""
    classes: list[AtMostOne] = msgspec.field(default_factory=list)
    """Accuracy of each class, in the order of the data set's classes."""
    course: list[Course] = msgspec.field(default_factory=list)
    note: str = ""
    """What to know of it before the two are compared."""


class Recipe(msgspec.Struct, frozen=True):
    """One run. ``patience`` is the number of epochs without a better validation accuracy before stopping, 0 for never.

    ``select_on`` is the split whose accuracy chooses the epoch that is kept; with ``test`` the test result is too good, and
    every report of it says so.
    ``unfreeze`` lists what is frozen instead of ``freeze`` after some epochs, e.g. ``["2:stage<=3", "4:none"]``.
    ``compile`` trains with torch.compile, which takes a minute first and pays in long runs.
    ``save_every`` is the number of steps between saved states, 0 for one an epoch; ``on_full`` what to do on a full disk.
    """

    model: str = "cnn_small"
    weights: str = "none"
    freeze: str = "none"
    unfreeze: list[str] = msgspec.field(default_factory=list)
    allow_random_frozen: bool = False
    epochs: AtLeastOne = 10
    batch_size: AtLeastOne = 128
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    ema: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    patience: NotNegativeInt = 0
    select_on: Literal["val", "test"] = "val"
    allow_empty_class: bool = False
    deterministic: bool = False
    compile: bool = False
    save_every: NotNegativeInt = 0
    on_full: Literal["stop", "keep-training"] = "stop"
    data: Data = msgspec.field(default_factory=Data)
    loss: Loss = msgspec.field(default_factory=Loss)
    sampler: Sampler = msgspec.field(default_factory=Sampler)
    optim: Optim = msgspec.field(default_factory=Optim)
    schedule: Schedule = msgspec.field(default_factory=Schedule)
    reported: Reported = msgspec.field(default_factory=Reported)


def keys() -> list[str]:
    """Every dotted key of a recipe file, e.g. ``optim.lr``."""
    return list(_flatten(msgspec.to_builtins(Recipe())))


def shipped() -> dict[str, Path]:
    """The recipes that come with zoo, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}


def resolve(what: str | None, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe for ``zoo train WHAT``: a file, a shipped recipe, or a model with the defaults that suit it.

    ``overrides`` are dotted keys or leaf names that only one table has (``lr`` for ``optim.lr``); ``data``, ``loss``,
    ``sampler``, ``optim`` and ``schedule`` alone stand for their ``name``.

    Raises:
        UsageError: unknown name, key, type or range, naming the nearest names and the line of the file.
    """
    values = {full_key(key): value for key, value in overrides.items()}
    if what is None:
        what = values.get("model", "demo")
    path = Path(what)
    if what in shipped():
        path = shipped()[what]
    if path.suffix == ".toml" or what in shipped():
        text, written = read_text(path)
        base = _suited(values.get("model", written.get("model", Recipe().model)), written | values)
        return _typed(base | written | values, path, text, values)
    if not what.startswith("timm/") and what not in registry.names("models"):
        names = [*registry.names("models"), *shipped()]
        raise UsageError(f"no model {what!r}{did_you_mean(what, names)}; list them with: zoo models")
    values["model"] = what
    return _typed(_suited(what, values) | values)


def check(recipe: Recipe) -> None:
    """UsageError unless the settings of the loss go together; apart from :func:`resolve`, as a sweep changes one at a time."""
    loss = recipe.loss
    registry.entry("losses", loss.name)
    if loss.drw_epoch >= recipe.epochs:
        raise UsageError(
            f"loss.drw_epoch = {loss.drw_epoch} is past the end ({recipe.epochs} epochs), so the class weights would never act; "
            f"use less than {recipe.epochs}"
        )
    if (loss.class_weights == "given") != bool(loss.given_weights):
        raise UsageError("loss.given_weights goes with loss.class_weights = 'given'; set both, or neither")
    if loss.given_weights and not any(loss.given_weights):
        raise UsageError("loss.given_weights are all 0, so nothing would be learned; give at least one that is not")


def read(path: Path) -> Recipe:
    """The recipe in a file, exactly as it stands (missing keys take the defaults of :class:`Recipe`)."""
    text, written = read_text(path)
    return _typed(written, path, text)


def dump(recipe: Recipe) -> str:
    """The recipe as TOML text with every key."""
    return tomli_w.dumps(msgspec.to_builtins(recipe))


def same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes differ at most in their seed, and in where and how fast they are trained."""
    return all(line.partition(":")[0] in NOT_THE_RECIPE for line in differences(one, other))


def parse_override(text: str) -> tuple[str, Any]:
    """``lr=0.1`` as a full key and a TOML value; what is no TOML value is a string.

    >>> parse_override("lr=1e-3")
    ('optim.lr', 0.001)
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"cannot read {text!r}; write settings as key=value, e.g. optim.lr=0.1")
    try:
        return full_key(key.strip()), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return full_key(key.strip()), value.strip()


def full_key(key: str) -> str:
    """``lr`` to ``optim.lr``, ``data`` to ``data.name``; UsageError with the nearest keys if there is none."""
    known = keys()
    if key in known:
        return key
    if key.rpartition(".")[2] == "gamma":
        raise UsageError(BARE_GAMMA)
    leaf = [name for name in known if name.endswith(f".{key}") and name.count(".") == 1 and key != "name"]
    if f"{key}.name" in known:
        return f"{key}.name"
    if len(leaf) == 1:
        return leaf[0]
    near = did_you_mean(key, [*known, *(name.rpartition(".")[2] for name in known)])
    raise UsageError(f"no setting {key!r}{near}; settings are {', '.join(known[:6])} ...: zoo train --help lists them")


def settings(recipe: Recipe) -> dict[str, Any]:
    """All that a run depends on, by dotted key: not what others reported."""
    flat = _flatten(msgspec.to_builtins(recipe))
    return {key: value for key, value in flat.items() if not key.startswith("reported.")}


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Lines ``key: old -> new`` for every setting that differs."""
    before, after = settings(old), settings(new)
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def read_text(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a recipe file and its flat dotted keys, unknown ones refused with their line."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"recipe is not a file ({path}); name a TOML file, or one of: zoo recipes")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"recipe is too large ({path}, {path.stat().st_size:,} bytes); a recipe is a few lines of TOML")
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
        flat = _flatten(tree)
    except FileNotFoundError as error:
        raise UsageError(f"no recipe file ({path.absolute()}); list the ones that come with zoo: zoo recipes") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read recipe ({path}, {error}); it must be a TOML text file") from error
    except RecursionError as error:
        raise UsageError(f"recipe is nested too deeply ({path}); a recipe is a few lines of TOML") from error
    except tomllib.TOMLDecodeError as error:
        place = _twice(text, str(error)).replace("at end of document", f"at line {len(text.splitlines())}")
        raise UsageError(f"not a TOML recipe ({path}, {place}); for one that works see: zoo recipes demo --show") from error
    known = keys()
    for key in flat:
        if key not in known:
            if key.rpartition(".")[2] == "gamma":
                raise UsageError(f"{BARE_GAMMA} ({path}, line {_line(text, key)})")
            near = did_you_mean(key, known) or did_you_mean(key.rpartition(".")[2], [k.rpartition(".")[2] for k in known])
            raise UsageError(f"no setting {key!r} ({path}, line {_line(text, key)}){near}")
    return text, flat


def _suited(model: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the model and its data set suggest; ``values`` are already decided."""
    entry: dict[str, Any] = {} if model.startswith("timm/") else registry.entry("models", model)
    suits = entry.get("data") or ("caltech101" if model.startswith("timm/") else "cifar10",)
    name = values.get("data.name", suits[0])
    name = name if name.partition(":")[0] in registry.table("data") else "folder"
    return registry.entry("data", name).get("recipe", {}) | entry.get("recipe", {}) | {"data.name": suits[0], "model": model}


def _typed(flat: Mapping[str, Any], path: Path | None = None, text: str = "", changed: Collection[str] = ()) -> Recipe:
    """A recipe of dotted keys; a mistake is told with its line of ``text`` unless its key is ``changed`` outside of it."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        table, _, leaf = key.rpartition(".")
        (tree.setdefault(table, {}) if table else tree)[leaf] = value
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            place = "" if key in changed else _where(path, text, key)
            raise UsageError(f"{key} = {value}{place} is not a finite number")
    try:
        return msgspec.convert(tree, Recipe)
    except msgspec.ValidationError as error:
        expected, _, place = str(error).partition(" - at ")
        key = place.strip("`$.").partition("[")[0]
        expected = expected.replace("`", "").replace("Expected", "expected")
        if "Invalid enum" in expected:
            expected = "expected one of " + ", ".join(map(str, _type(key).__args__))
        expected = re.sub(r"(int|float) [<>]=? .*", lambda found: f"{found[1]} {_bounds(key)}", expected)
        where = "" if key in changed else _where(path, text, key)
        raise UsageError(f"{key} = {flat.get(key)!r}{where} is not allowed: {expected}") from error


def _type(key: str) -> Any:
    """The type that the setting is declared with."""
    struct: Any = Recipe
    for part in key.split("."):
        struct = {field.name: field.type for field in msgspec.structs.fields(struct)}[part]
    return struct


def _bounds(key: str) -> str:
    """``>= 0 and < 1``: the whole range of a number, or of each in a list, where msgspec names the bound that was passed."""
    kind: Any = msgspec.inspect.type_info(_type(key))
    kind = getattr(kind, "item_type", kind)
    ends = {">": kind.gt, ">=": kind.ge, "<": kind.lt, "<=": kind.le}
    return " and ".join(f"{sign} {value:.15g}" for sign, value in ends.items() if value is not None)


def _twice(text: str, message: str) -> str:
    """TOML's message for a key that stands twice, with both lines."""
    found = re.match(r"Cannot overwrite a value \(at line (\d+)", message)
    if not found:
        return message
    lines, second = text.splitlines(), int(found[1])
    key = lines[second - 1].partition("=")[0].strip()
    first = next((n for n in range(second - 1, 0, -1) if lines[n - 1].partition("=")[0].strip() == key), second)
    return f"{key} stands in lines {first} and {second}"


def _where(path: Path | None, text: str, key: str) -> str:
    line = _line(text, key)
    return f" ({path}, line {line})" if path and line else ""


def _line(text: str, key: str) -> int:
    """The line of a dotted key in a TOML text, 0 if it isn't there."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            table = header[1].strip() + "."
            if key.startswith(table) and table.count(".") > 1:
                return number
        elif (found := re.match(r"\s*[\"']?([\w.\-]+)[\"']?\s*=", line)) and table + found[1] == key:
            return number
    return 0


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
