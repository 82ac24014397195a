"""The parts of a run, made from its recipe: data, model, loss, batches, optimizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import console, registry, sampling, weights
from zoo import recipe as recipes
from zoo.console import print_line
from zoo.data import _augment
from zoo.data._read import read
from zoo.errors import DataError, UsageError
from zoo.recipe import Recipe
from zoo.spec import DataSet, ModelSpec, Split
from zoo.training import features, freezing, lint, objective, optim, processes
from zoo.training.batches import Batches
from zoo.training.loop import DTYPES, Step, autocast
from zoo.training.session import Trainer


def model_spec(name: str) -> ModelSpec:
    """The spec of a registered model, or of any timm model as ``timm/<name>``."""
    if name.startswith("timm/"):
        from zoo.models import timm_nets

        return timm_nets.timm_spec(name)
    return registry.find("models", name)


def build_data(recipe: Recipe, size: int) -> DataSet:
    """Read the data set of a recipe at ``size`` pixels and carve its validation split."""
    data = recipe.data
    return read(
        data.name, data.dir, size=size, val=data.val, seed=recipe.seed, layout=data.layout, skip_bad=data.skip_bad
    )  # fmt: skip


def build(recipe: Recipe, folder: Path, device: torch.device, precision: str, team: processes.Team) -> Trainer:
    """Everything that a run trains with, for a folder that need not exist yet, on on ``device`` at ``precision``."""
    spec = model_spec(recipe.model)
    recipes.check(recipe)
    expected = registry.entry("data", recipe.data.name)["classes"] or spec.classes
    model, tensors, plan = _checked(recipe, spec, expected)
    data = build_data(recipe, spec.input[1])
    for note in data.notes:
        console.note("data", note)
    _check_labels(data)
    index = sampling.long_tail(data.train.targets, recipe.data.imbalance, recipe.seed)
    counts = sampling.class_counts(data.train.targets[index], len(data.classes))
    _check_classes(data, counts, allow_empty=recipe.allow_empty_class)
    data = _normalised(data, weights.statistics(recipe.weights, spec))
    if len(data.classes) != expected:
        model = _built(recipe, spec, len(data.classes))
    frozen, random = _frozen(recipe, model, spec, tensors)
    model = model.to(device).to(memory_format=torch.channels_last)
    dtype = DTYPES[precision]
    sampler = objective.build_sampler(recipe, data.train.targets, index)
    batches = Batches(
        data.train,
        index,
        recipe.batch_size,
        device,
        data.mean,
        data.std,
        spec.input[1],
        dtype,
        recipe.seed,
        tuple(recipe.data.augment),
        sampler.order if sampler else None,
        team.share if team.size > 1 and not (recipe.mixup or recipe.cutmix) else None,
    )
    choosing = data.test if recipe.select_on == "test" else data.val
    val = eval_batches(choosing, data, device, spec.input[1], precision) if len(choosing) else None
    test = eval_batches(data.test, data, device, spec.input[1], precision)
    ema = optim.Ema(model, recipe.ema) if recipe.ema else None
    step = replace(_step(recipe, model, len(batches), device, precision, len(data.classes), ema, sampler), team=team)
    loss, weight = objective.build_loss(recipe, counts)
    weight = weight.to(device) if weight is not None else None
    told = tuple(lint.check(recipe, counts, random))
    return Trainer(
        recipe, folder, data, spec, model, loss.to(device), batches, val, test, step, device, precision, counts, frozen, ema, weight,
        sampler, told, team, plan,
    )  # fmt: skip


def _check_labels(data: DataSet) -> None:
    for part in (data.train, data.val, data.test):
        if len(wrong := np.flatnonzero((part.targets < 0) | (part.targets >= len(data.classes)))):
            file, label = part.files[wrong[0]], part.targets[wrong[0]]
            raise DataError(f"label out of range ({file}, label {label}, {len(data.classes)} classes); correct the data set")


def _check_classes(data: DataSet, counts: np.ndarray, *, allow_empty: bool) -> None:
    empty = [data.classes[i] for i in np.flatnonzero(counts == 0)]
    if empty and not allow_empty:
        raise DataError(
            f"{len(empty)} classes have no training image ({data.name}, {', '.join(empty[:3])}); "
            "lower the imbalance, remove them, or go on with --allow-empty-class"
        )
    if empty:
        print_line(f"warning  {len(empty)} classes have no training image and won't be learned ({', '.join(empty[:3])})")


def check_deterministic(parts: Trainer) -> None:
    """Take one step with a copy of the model; UsageError naming the operation that has no deterministic way."""
    model, loss = copy.deepcopy(parts.model), copy.deepcopy(parts.loss)
    inputs = torch.zeros(2, *parts.spec.input, device=parts.device, dtype=DTYPES[parts.precision])
    try:
        with autocast(parts.device, parts.precision):
            logits = model(inputs)
        loss(logits.float(), torch.zeros(2, dtype=torch.int64, device=parts.device)).backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        name = str(error).split(" ")[0]
        raise UsageError(
            f"{name} has no deterministic way (deterministic = true, {parts.device.type}); leave --deterministic out"
        ) from error


def _normalised(data: DataSet, statistics: tuple[Any, Any] | None) -> DataSet:
    """The data set, its images to be normalised as those were that the weights come from."""
    if statistics is None or statistics == (data.mean, data.std):
        return data
    print_line(f"data     normalised as the weights were trained: mean {statistics[0]}, std {statistics[1]}")
    return replace(data, mean=statistics[0], std=statistics[1])


def _checked(
    recipe: Recipe, spec: ModelSpec, classes: int
) -> tuple[nn.Module, Mapping[str, Tensor] | None, list[tuple[int, str]]]:
    """The model, random as yet, the weights to start from and what is frozen when.

    What is wrong with them is told before the data is read, whose number of classes may turn out to be another.
    """
    tensors = None if recipe.weights == "none" else weights.find(recipe.weights, spec)
    model = _built(recipe, spec, classes)
    plan = freezing.plan(model, spec, recipe.freeze, recipe.unfreeze, recipe.epochs)
    random = recipe.weights == "none" and not recipe.allow_random_frozen
    freezing.freeze(model, recipe.freeze, spec, fresh=tuple(model.state_dict()) if random else ())
    if tensors is not None:
        weights.fitting(model.state_dict(), tensors, spec, recipe.weights)
    return model, tensors, plan


def _built(recipe: Recipe, spec: ModelSpec, classes: int) -> nn.Module:
    torch.manual_seed(recipe.seed)
    return spec.build(classes)


def _frozen(
    recipe: Recipe, model: nn.Module, spec: ModelSpec, tensors: Mapping[str, Tensor] | None
) -> tuple[freezing.FreezeTable, list[str]]:
    """Load the weights and freeze as the recipe says: what was frozen, and what of that is random."""
    fresh = weighted(model, spec, recipe.weights, tensors)
    table = freezing.freeze(model, recipe.freeze, spec, fresh=() if recipe.allow_random_frozen else fresh)
    return table, [name for name in table.names if name in set(fresh)]


def weighted(model: nn.Module, spec: ModelSpec, source: str, tensors: Mapping[str, Tensor] | None = None) -> tuple[str, ...]:
    """Load ``source``; the names of what stays random. ``tensors`` are those of ``source`` if they have been read."""
    if source == "none":
        return tuple(model.state_dict())
    notes = weights.load_weights(model, source, spec, tensors)
    for note in notes:
        print_line(f"weights  {note}")
    return notes.fresh


def eval_batches(part: Split, data: DataSet, device: torch.device, size: int, precision: str) -> Batches:
    return Batches(part, np.arange(len(part)), 256, device, data.mean, data.std, size, DTYPES[precision])


def _step(
    recipe: Recipe, model: nn.Module, steps: int, device: torch.device, precision: str, classes: int, ema: optim.Ema | None,
    sampler: sampling.Sampler | None,
) -> Step:  # fmt: skip
    s = recipe.schedule
    rate = partial(
        optim.lr_at, steps_per_epoch=steps, epochs=recipe.epochs, lr=recipe.optim.lr, schedule=s.name,
        warmup=s.warmup, steps=s.steps, step_size=s.step_size, lr_gamma=s.lr_gamma,
    )  # fmt: skip
    mix = None
    if recipe.mixup or recipe.cutmix:
        if not registry.find("losses", recipe.loss.name).soft:
            soft = ", ".join(name for name, fields in registry.table("losses").items() if fields.get("soft"))
            raise UsageError(
                f"mixup and cutmix need soft targets, which loss {recipe.loss.name!r} has not; losses with: {soft}"
            )

        def mix(inputs: Tensor, targets: Tensor, draws: np.ndarray) -> tuple[Tensor, Tensor]:
            return _augment.mix(
                inputs, targets, classes, torch.from_numpy(draws).to(device), mixup=recipe.mixup, cutmix=recipe.cutmix
            )

    scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
    see = sampler.see if sampler else None
    # averages go by the model's own names, which a wrapper of several processes prefixes
    after = partial(ema.update, model) if ema else None
    optimizer = features.optimizer(recipe, model, model_spec(recipe.model))
    return Step(optimizer, rate, device, precision, recipe.optim.clip, recipe.seed, after, mix, scaler, see)
