"""Warnings, with numbers, about unexpected effects of a recipe, before the first step; none stops a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from zoo import model_files, registry, sampling
from zoo import recipe as recipes
from zoo.files import expanded
from zoo.recipe import Recipe
from zoo.recipe_tables import Schedule

FEW_HELD = 250
"""Validation images below which chance decides the epoch: an accuracy of 90 % has a 95 % interval of 4 points either way."""
SMALL_SHARE = 0.4
"""Share of epochs at 1/100 of the rate or less that triggers a warning; common schedules are below."""


USERS = {
    "schedule.steps": ("schedule.name", ("multistep",)),
    "schedule.step_size": ("schedule.name", ("step",)),
    "schedule.end_factor": ("schedule.name", ("cosine", "onecycle")),
    "schedule.plateau_epochs": ("schedule.name", ("plateau",)),
    "schedule.lr_gamma": ("schedule.name", ("step", "multistep", "plateau")),
    "sampler.exponent": ("sampler.name", ("focal",)),
    "optim.momentum": ("optim.name", ("sgd", "muon")),
    "optim.nesterov": ("optim.name", ("sgd", "muon")),
    "loss.beta": ("loss.class_weights", ("effective",)),
}
"""Settings that only some values of another setting use."""


def check(
    recipe: Recipe,
    counts: np.ndarray | None = None,
    random_frozen: Sequence[str] = (),
    *,
    held: int | None = None,
    classes: Sequence[str] = (),
    own_loss: bool = False,
) -> list[str]:
    """One line for each finding. ``counts`` (C,) are the training samples of each class; without them, checks that need them are skipped.

    ``random_frozen`` are frozen tensors without loaded weights. ``held``, the number of validation images, and ``classes``, the
    names of the classes, are None and empty before the data is read. ``own_loss``: a loss given in Python replaces the recipe's.
    """
    found = [*_schedule(recipe.schedule, recipe.epochs, recipe.optim.lr), *_unused(recipe)]
    found += [] if own_loss else _loss(recipe)
    if held is None and not recipe.data.val and not recipe.data.own:  # only a user's data may have its own validation images
        held = 0
    if recipe.patience and held == 0 and recipe.select_on == "val":
        found.append(
            f"patience {recipe.patience} changes nothing: there are no validation images (data.val {recipe.data.val:g})"
        )
    if recipe.select_by != "accuracy" and held == 0 and recipe.select_on == "val":
        found.append(
            f"select_by {recipe.select_by} changes nothing: there are no validation images (data.val {recipe.data.val:g})"
        )
    if held == 0 and recipe.data.val and counts is not None:
        found.append(f"data.val {recipe.data.val:g} of {counts.sum():,} images is none: the last epoch is kept")
    if random_frozen:
        found.append(
            f"freeze {recipe.freeze} keeps {len(random_frozen)} tensors at random values ({random_frozen[0]}, ...): no weights were loaded for them"
        )
    elif recipe.freeze != "none" and recipe.weights == "none" and not recipe.model.startswith(model_files.OBJECT):
        found.append(f"freeze {recipe.freeze} with weights none: every frozen layer is random")
    if held and held < FEW_HELD and recipe.epochs > 1 and recipe.select_on == "val":
        points = 100 * 1.96 * (0.9 * 0.1 / held) ** 0.5
        found.append(
            f"{held} validation images select the epoch: an accuracy of 90 % on them is uncertain by {points:.1f} points; data.val=0 keeps the last epoch"
        )
    if counts is not None:
        found += [*_weights(recipe, counts), *_batches(recipe, counts, classes)]
        if recipe.data.per_class and recipe.data.imbalance != "none" and counts.min() == counts.max():
            found.append(
                f"per_class {recipe.data.per_class} makes all classes equal: nothing is left of imbalance {recipe.data.imbalance}"
            )
        few = int(counts.argmin())
        if counts[few] < recipe.data.per_class and recipe.data.imbalance == "none":
            found.append(
                f"per_class {recipe.data.per_class} is more than class {_named(few, classes)} has: {counts[few]} images"
            )
    return found


def expected_counts(recipe: Recipe) -> np.ndarray | None:
    """Training samples of each class (C,) without reading images; None if they are known only after reading the data.

    Raises:
        UsageError, DataError: a folder or list that is missing, damaged or ambiguous.
    """
    entry = registry.table("data").get(recipe.data.name, {})
    val = recipe.data.val
    if recipe.data.name in ("folder", "list"):  # names of files tell their classes
        options = {"layout": recipe.data.layout} if recipe.data.name == "folder" else {}
        place = expanded(recipe.data.dir) if recipe.data.dir else None
        listings, names, _ = registry.imported("data", entry).listed(place, **options)
        targets, classes = listings["train"].targets, len(names)
        val = 0.0 if "val" in listings else val
    elif entry.get("balanced"):
        classes, (n, _) = entry["classes"], entry["counts"]
        targets = np.repeat(np.arange(classes), n // classes)
    else:
        return None
    targets = targets[sampling.carve(targets, val, recipe.seed)[0]]
    index = sampling.training_index(targets, recipe.data.imbalance, recipe.data.per_class, recipe.seed)
    return sampling.class_counts(targets[index], classes)


def _schedule(schedule: Schedule, epochs: int, lr: float) -> Iterator[str]:
    if schedule.warmup >= epochs:
        yield f"the warm-up of {schedule.warmup:g} epochs fills all {epochs}: the rate never reaches {_short(lr)}"
    if schedule.name not in ("step", "multistep"):
        return
    at = schedule.steps if schedule.name == "multistep" else range(schedule.step_size, epochs, schedule.step_size)
    late = [step for step in at if step >= epochs]
    if late and schedule.name == "multistep":
        stays = f"; the rate stays {_short(lr)}" if len(late) == len(at) else ""
        yield f"steps {late} are not reached in {epochs} epochs{stays}"
    if not at:
        yield f"schedule {schedule.name} has no step in {epochs} epochs: the rate stays {_short(lr)}"
    rates = np.array([lr * schedule.lr_gamma ** sum(epoch >= step for step in at) for epoch in range(epochs)])
    small = rates[rates <= lr / 100 * (1 + 1e-9)]
    if len(small) > SMALL_SHARE * epochs:
        yield f"{len(small)} of {epochs} epochs run at {_short(small[0])}{' or less' if small[-1] < small[0] else ''}"


def _loss(recipe: Recipe) -> Iterator[str]:
    loss = recipe.loss
    if loss.drw_epoch and loss.class_weights == "none":
        yield f"drw_epoch {loss.drw_epoch} changes nothing: class_weights is none"
    balanced = [f"sampler {recipe.sampler.name}"] if recipe.sampler.name in ("class_balanced", "progressive") else []
    balanced += [f"class_weights {loss.class_weights}"] if loss.class_weights != "none" and not loss.drw_epoch else []
    balanced += [f"loss {loss.name}"] if loss.name in ("balanced_softmax", "logit_adjustment") else []
    if len(balanced) > 1:
        yield f"{' and '.join(balanced)} each balance the classes: together they favour the rare ones"
    models = registry.table("models")
    plain = not models[recipe.model].get("cosine") if recipe.model in models else recipe.model.startswith("timm/")
    if plain and registry.entry("losses", loss.name).get("cosine"):
        known = ", ".join(name for name, fields in models.items() if fields.get("cosine"))
        yield f"{loss.name} has its margins in cosines, which {recipe.model} does not return; models that do: {known}"
    if loss.name == "ce_then_focal" and (switch := loss.options["switch_epoch"]) >= recipe.epochs:
        yield f"switch_epoch {switch} is not reached in {recipe.epochs} epochs: all epochs use cross entropy"
    if loss.name == "dynamic_focal" and (every := loss.options["rescale_every"]) >= recipe.epochs:
        yield f"rescale_every {every} is not reached in {recipe.epochs} epochs: the scale stays 1"


def _unused(recipe: Recipe) -> Iterator[str]:
    """Settings without effect, except those at their default or as the model sets them."""
    values = recipes.settings(recipe)
    suited = registry.table("models").get(recipe.model, {}).get("recipe", {})
    changed = {key: value for key, value in values.items() if value not in (recipes.options()[key].default, suited.get(key))}
    for key, (other, users) in USERS.items():
        if key in changed and values[other] not in users:
            name = other.removesuffix(".name").removeprefix("loss.")
            yield f"{key.partition('.')[2]} {_shown(changed[key])} changes nothing: {name} {values[other]} does not use it"
    for key in ("distil.weight", "distil.temperature"):
        if key in changed and not recipe.distil.teacher:
            yield f"{key} {_shown(changed[key])} changes nothing: distil.teacher is empty"
    if "qat_bits" in changed and not recipe.qat:
        yield f"qat_bits {recipe.qat_bits} changes nothing: qat is off"
    for key in ("data.views", "features_with"):
        if key in changed and recipe.freeze == "none":
            yield f"{key.partition('.')[2] or key} {_shown(changed[key])} changes nothing: no layer is frozen"
    for key in ("mix_prob", "mix_with"):
        if key in changed and not (recipe.mixup or recipe.cutmix):
            yield f"{key} {_shown(changed[key])} changes nothing: mixup and cutmix are 0"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _weights(recipe: Recipe, counts: np.ndarray) -> Iterator[str]:
    weights = sampling.class_weights(counts, recipe.loss.class_weights, beta=recipe.loss.beta, given=recipe.loss.given_weights)
    if weights is None:
        return
    there = weights[counts > 0]
    reach = float(np.abs(there / there.mean() - 1).max())
    if reach < 0.01:
        what = (
            f"beta {recipe.loss.beta:g}"
            if recipe.loss.class_weights == "effective"
            else f"class_weights {recipe.loss.class_weights}"
        )
        yield f"{what} changes no class weight by more than {reach:.2g}".replace("e-0", "e-")
    mean, loss = float(_shares(recipe, counts) @ weights), recipe.loss
    if not registry.entry("losses", loss.name).get("weighted_mean") and not 0.5 <= mean <= 2 and mean > 0:
        # the cross entropy of a hybrid divides by the weights of the batch, its focal part does not
        whose, what = (" of the focal part", "that part") if loss.name == "hybrid" else ("", "lr")
        how = f"dividing {what} by {1 / mean:.1f}" if mean < 1 else f"multiplying {what} by {mean:.1f}"
        start = max(loss.drw_epoch, loss.options["switch_epoch"] if loss.name == "ce_then_focal" else 0)
        yield f"the mean weight{whose} is {mean:.2g}{f' from epoch {start + 1} on' if start else ''}: the same as {how}"


def _batches(recipe: Recipe, counts: np.ndarray, classes: Sequence[str]) -> Iterator[str]:
    shares = _shares(recipe, counts)
    rarest = int(np.where(counts > 0, shares, np.inf).argmin())
    met = 1 - (1 - shares[rarest]) ** recipe.batch_size
    if met < 0.5:
        yield f"batch {recipe.batch_size} sees class {_named(rarest, classes)} in {100 * met:.0f} % of steps"


def _named(number: int, classes: Sequence[str]) -> str:
    return f"{number} ({classes[number]})" if classes else str(number)


def _shares(recipe: Recipe, counts: np.ndarray) -> np.ndarray:
    """Share of each class (C,) among the samples of an epoch; for samplers that change over the run, at its start."""
    if recipe.sampler.name in ("none", "focal"):
        return counts / counts.sum()
    targets = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(targets, sampling.chances(recipe.sampler.name, targets, epochs=recipe.epochs), len(counts))


def _short(number: float) -> str:
    """0.1, 0.001, 1e-4."""
    return f"{number:g}" if number >= 1e-3 else f"{number:.2g}".replace("0.0001", "1e-04").replace("e-0", "e-")
