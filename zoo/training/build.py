"""Build data, model, loss, batches and optimizer from a recipe; nothing below this file uses recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import console, machine, registry, sampling, weights
from zoo.console import print_line
from zoo.data import _augment
from zoo.data._read import read, stored
from zoo.errors import UsageError
from zoo.recipe import Recipe
from zoo.spec import DataSet, Given, ModelSpec, Split
from zoo.training import checks, depthwise, distil, freezing, lint, losses, optim, qat
from zoo.training.batches import Batch, Batches
from zoo.training.loop import DTYPES, Step, initialise
from zoo.training.model_specs import sized_spec
from zoo.training.processes import Team
from zoo.training.session import Session, Settings

EVAL_BATCH, EVAL_PIXELS = 256, 64 * 224**2
"""Most images and pixels of a batch without gradients: glibc returns larger activations after each layer, at half the speed."""
JUMP = 2.0
"""Factor between the learning rates before and after resuming above which a warning is printed."""


@dataclass(frozen=True)
class Place:
    """Device, precision and threads of a run."""

    device: torch.device
    precision: str
    allocator: str
    qat_bits: int = 0
    """Bits of the weights in quantisation-aware training; 0 without it."""


def place(recipe: Recipe, team: Team, env: Mapping[str, Any] | None = None) -> Place:
    """Choose device and precision, and set this process's threads and memory allocation.

    ``env`` are the recorded choices of a run that is resumed: another CPU must not change the rounding of its weights.

    Raises:
        UsageError: a missing device, or a precision that it does not support.
    """
    device = team.device(machine.device(recipe.device))
    precision = machine.precision(recipe.precision, device)
    allocator = machine.keep_memory()
    machine.use_threads(team.local_size)
    bits = 0
    if recipe.qat:
        recorded = env.get("qat_bits", 8) if env else 0  # runs without this fact had 8
        bits = team.broadcast(lambda: recipe.qat_bits or recorded or (7 if machine.saturates() else 8))
    return Place(device, precision, allocator, bits)


def session(
    recipe: Recipe,
    folder: Path,
    place: Place,
    team: Team,
    *,
    given: Given | None = None,
    resume: bool = False,
) -> tuple[Session, list[str]]:
    """The session of a recipe, and one line per finding of the linter.

    ``given`` replaces what the recipe names.

    Raises:
        UsageError, FileError: settings or weights that do not fit, before the data is read.
        DataError: data that cannot be used for training.
    """
    given = given or Given()
    checks.check_settings(recipe, given)
    spec = sized_spec(recipe.model, recipe.data.size, folder if resume else None, given.model)
    start, data = _started(recipe, spec, given)
    index, counts = _training_part(recipe, data)
    data = _normalised(recipe, spec, data)
    model = _placed(recipe, start.model, place)
    sampler = build_sampler(recipe, data.train.targets, index)
    built, weight = (
        losses.given(recipe, given.loss, team, len(data.classes)) if given.loss is not None else losses.build(recipe, counts)
    )
    batches, val, test = _batches(recipe, data, index, sampler, spec.input[1], place, team)
    if start.tensors is None:
        initialise(model, batches)
    learned = _teachers(recipe, data, spec.input[1], place)
    ema = optim.average(model, recipe.ema, recipe.lookahead, batches.steps * recipe.epochs)
    make_optimizer = partial(_optimizer, recipe, model, spec, built)
    after = partial(ema.update, model) if ema else None
    lr, plateau = _rates(recipe, batches.steps, watched=val is not None)
    made = Session(
        folder=folder,
        identity=_identity(recipe, data, learned),
        data=data,
        spec=spec,
        model=model,
        loss=built.to(place.device),
        batches=batches,
        val=val,
        test=test,
        step=_step(recipe, make_optimizer(), lr, len(data.classes), place, team, after=after, sampler=sampler, learned=learned),
        make_optimizer=make_optimizer,
        frozen=start.frozen,
        plan=start.plan,
        settings=_settings(recipe),
        ema=ema,
        plateau=plateau,
        weight=weight.to(place.device) if weight is not None else None,
        sampler=sampler,
        team=team,
    )
    own = given.loss is not None
    return made, lint.check(recipe, counts, start.random, held=len(data.val), classes=data.classes, own_loss=own)


def _placed(recipe: Recipe, model: nn.Module, place: Place) -> nn.Module:
    """The model on its device, with the layers that compute in another precision there."""
    if place.device.type == "cpu" and place.precision == "bf16":
        depthwise.use_float32(model)
    if recipe.qat:
        chosen = "" if recipe.qat_bits else ", as this CPU needs them in int8 files (qat_bits=8 or 7 sets them)"
        count = qat.round_layers(model, place.qat_bits)
        print_line(
            f"qat      {count} layers compute on inputs rounded to 8 bits and weights rounded to {place.qat_bits}{chosen}"
        )
    return model.to(place.device).to(memory_format=torch.channels_last)


def _identity(recipe: Recipe, data: DataSet, learned: distil.Distillation | None) -> dict[str, Any]:
    """What the saved states of a run must match."""
    teachers = {"teachers": [teacher.digest for teacher in learned.teachers]} if learned else {}
    return {"model": recipe.model, "classes": len(data.classes), "optimizer": recipe.optim.name, **teachers}


def _started(recipe: Recipe, spec: ModelSpec, given: Given) -> tuple[_Start, DataSet]:
    """The model and the data, which is read after the weights; the model again if the data has other than the expected classes."""
    data, size = given.data, spec.input[1]
    classes = len(data.classes) if data else registry.entry("data", recipe.data.name)["classes"] or spec.classes
    start = _model(recipe, spec, classes, {} if isinstance(given.model, nn.Module) else None)
    data = dataset(recipe, size) if data is None else checks.given_data(data, stored(recipe.data.name, size))
    if len(data.classes) != classes:
        start = _model(recipe, spec, len(data.classes), start.tensors)
    _print_notes(start, data)
    return start, data


def _print_notes(start: _Start, data: DataSet) -> None:
    console.print_lines(f"weights  {note}" for note in start.notes)
    for note in data.notes:
        console.note("data", note)


@dataclass(frozen=True)
class _Start:
    """A model to start from."""

    model: nn.Module
    tensors: Mapping[str, Tensor] | None
    """The weights that were loaded (none: those of a given module); None: random initialisation."""
    frozen: freezing.FreezeTable
    plan: Sequence[tuple[int, str]]
    random: list[str]
    """Frozen tensors without loaded weights."""
    notes: weights.Notes


def _model(recipe: Recipe, spec: ModelSpec, classes: int, tensors: Mapping[str, Tensor] | None = None) -> _Start:
    """The model with loaded weights and frozen layers; ``tensors`` are the weights if they have been read, or {} if the model has them."""
    torch.manual_seed(recipe.seed)
    model = spec.build(classes)
    plan = freezing.plan(model, spec, recipe.freeze, recipe.unfreeze, recipe.epochs)
    notes = weights.Notes()
    notes.fresh = tuple(model.state_dict()) if tensors is None else ()
    if recipe.weights != "none":
        freezing.freeze(model, recipe.freeze, spec)  # report a wrong selector before weights are read
        tensors = tensors or weights.find(recipe.weights, spec)
        notes = weights.load_weights(model, recipe.weights, spec, tensors)
        if recipe.head_init == "zero":
            freezing.zero_head(model, spec, notes.fresh)
    frozen = freezing.freeze(model, recipe.freeze, spec, fresh=() if recipe.allow_random_frozen else notes.fresh)
    if recipe.head_init == "zero" and any(freezing.inside(name, freezing.new_head(spec)) for name in frozen.names):
        raise UsageError(f"head_init = zero with a frozen head ({recipe.freeze}) trains nothing; use head_init=default")
    return _Start(model, tensors, frozen, plan, [name for name in frozen.names if name in set(notes.fresh)], notes)


def dataset(recipe: Recipe, size: int) -> DataSet:
    """Read the data set of a recipe at ``size`` pixels and split off its validation images."""
    data = recipe.data
    return read(data.name, data.dir, size=size, val=data.val, seed=recipe.seed, layout=data.layout, skip_bad=data.skip_bad)


def _training_part(recipe: Recipe, data: DataSet) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n,) of the training images in the training split, and images per class (C,)."""
    checks.check_data(data)
    index = sampling.training_index(data.train.targets, recipe.data.imbalance, recipe.data.per_class, recipe.seed)
    counts = sampling.class_counts(data.train.targets[index], len(data.classes))
    checks.check_counts(recipe, counts, [data.name, *(data.classes[i] for i in np.flatnonzero(counts == 0)[:3])])
    return index, counts


def _normalised(recipe: Recipe, spec: ModelSpec, data: DataSet) -> DataSet:
    """The data set with the normalisation of the recipe, or of the weights."""
    statistics: Any = (tuple(recipe.data.mean), tuple(recipe.data.std))
    origin = "data.mean and data.std of the recipe"
    if not recipe.data.mean:
        statistics = weights.statistics(recipe.weights, spec)
        if statistics is None or statistics == (data.mean, data.std):
            return data
        of_spec = statistics == (spec.mean, spec.std)
        origin = f"those of the published weights of {recipe.model}" if of_spec else "those of the weights"
    print_line(f"data     normalised with mean {statistics[0]}, std {statistics[1]}: {origin} (override: data.mean, data.std)")
    return replace(data, mean=statistics[0], std=statistics[1])


def _batches(
    recipe: Recipe, data: DataSet, index: np.ndarray, sampler: sampling.Sampler | None, size: int, place: Place, team: Team
) -> tuple[Batches, Batches | None, Batches]:
    """Batches for training, for selecting the epoch (None without such images), and for the test."""
    mixed = bool(recipe.mixup or recipe.cutmix)
    train = Batches(
        split=data.train,
        index=index,
        batch_size=recipe.batch_size,
        accumulate=recipe.optim.accumulate,
        device=place.device,
        mean=data.mean,
        std=data.std,
        size=size,
        dtype=DTYPES[place.precision],
        seed=recipe.seed,
        augment=tuple(recipe.data.augment),
        views=recipe.data.views,
        sample=sampler.order if sampler else None,
        share=team.share if team.size > 1 and not mixed else None,
        partner_odds=sampling.rare_odds(data.train.targets[index]) if mixed and recipe.mix_with == "rare" else None,
    )
    choosing = data.test if recipe.select_on == "test" else data.val
    val = eval_batches(choosing, data, place.device, size, place.precision) if len(choosing) else None
    return train, val, eval_batches(data.test, data, place.device, size, place.precision)


def eval_batches(part: Split, data: DataSet, device: torch.device, size: int, precision: str) -> Batches:
    """Batches of a whole split in order, its images only normalised."""
    batch = min(EVAL_BATCH, max(1, EVAL_PIXELS // size**2))
    return Batches(part, np.arange(len(part)), batch, device, data.mean, data.std, size, DTYPES[precision])


def build_sampler(recipe: Recipe, targets: np.ndarray, index: np.ndarray) -> sampling.Sampler | None:
    """The sampler over the positions ``index`` (n,) of a split whose classes are ``targets``; None to draw each sample once."""
    s = recipe.sampler
    if s.name == "none":
        return None
    return sampling.Sampler(s.name, index, targets[index], len(targets), recipe.seed, recipe.epochs, s.exponent)


def _optimizer(recipe: Recipe, model: nn.Module, spec: ModelSpec, loss: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the parameters of model and loss that are trained now; those of the loss without weight decay."""
    o = recipe.optim
    chosen = optim.Hyperparameters(name=o.name, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay)
    scales = optim.lr_scales(model, spec, head=o.lr_head, layer_decay=o.layer_decay)
    made = optim.make(model, chosen, scales=scales, norm_bias=o.norm_bias_lr, head=freezing.new_head(spec))
    if learned := [each for each in loss.parameters() if each.requires_grad]:
        fallback = {"use_fallback": True, "nesterov": False} if o.name == "muon" else {}
        made.add_param_group({"params": learned, "weight_decay": 0.0} | fallback)
    return made


def schedule(recipe: Recipe, steps_per_epoch: int) -> optim.Schedule:
    """The learning rate over the run."""
    s = recipe.schedule
    return optim.Schedule(
        lr=recipe.optim.lr, epochs=recipe.epochs, steps_per_epoch=steps_per_epoch, name=s.name, warmup=s.warmup, steps=s.steps,
        step_size=s.step_size, lr_gamma=s.lr_gamma, start_factor=s.start_factor, end_factor=s.end_factor,
    )  # fmt: skip


def _rates(recipe: Recipe, steps: int, *, watched: bool) -> tuple[Callable[[int], float], optim.Plateau | None]:
    """The learning rate of a global step, and the plateau rule that lowers it by the score of each epoch, if any."""
    fixed = schedule(recipe, steps).lr_at
    if recipe.schedule.name != "plateau":
        return fixed, None
    if not watched:
        raise checks.no_validation()
    plateau = optim.Plateau(recipe.schedule.lr_gamma, recipe.schedule.plateau_epochs)
    return lambda step: fixed(step) * plateau.factor, plateau


def resumed_schedule(old: Recipe, new: Recipe, made: Session) -> list[str]:
    """Effects of a changed number of epochs on the schedule of a resumed run, one line each; a jump of the rate is a warning."""
    if old.epochs == new.epochs:
        return []
    before, after = (schedule(recipe, made.batches.steps).lr_at(made.steps) for recipe in (old, new))
    lines = [
        f"resume   schedule {new.schedule.name} now ends at epoch {new.epochs} (was {old.epochs}): "
        f"rate {before:.3g} -> {after:.3g} from epoch {made.at.epoch + 1} on"
    ]
    if after > JUMP * before:
        lines.append(
            f"warning  the learning rate jumps to {after:.3g} on resuming, because the schedule is stretched; "
            "schedule=constant with a small optim.lr avoids that in a new run"
        )
    if new.lookahead:
        lines.append(
            f"warning  the slow weights of Lookahead are stretched from {old.epochs} to {new.epochs} epochs too: they follow the model faster "
            "than before at first"
        )
    return lines


def _step(
    recipe: Recipe, optimizer: torch.optim.Optimizer, lr: Callable[[int], float], classes: int, place: Place, team: Team,
    *, after: Callable[[], None] | None, sampler: sampling.Sampler | None, learned: distil.Distillation | None,
) -> Step:  # fmt: skip
    return Step(
        optimizer=optimizer,
        lr=lr,
        device=place.device,
        precision=place.precision,
        clip=recipe.optim.clip,
        seed=recipe.seed,
        after=after,
        mix=_mix(recipe, classes, place.device) if recipe.mixup or recipe.cutmix else None,
        distil=learned,
        scaler=torch.amp.GradScaler("cuda") if place.precision == "fp16" else None,
        see=sampler.see if sampler else None,
        team=team,
    )


def _teachers(recipe: Recipe, data: DataSet, size: int, place: Place) -> distil.Distillation | None:
    """The finished runs that the recipe learns from."""
    if not recipe.distil.teacher:
        return None
    found = distil.read(
        recipe.distil.teacher, data, size, place.device, held=(recipe.data.val, recipe.seed),
        make=lambda name, folder, classes: sized_spec(name, size, folder).build(classes),
    )  # fmt: skip
    return distil.Distillation(found, recipe.distil.weight, recipe.distil.temperature)


def _mix(recipe: Recipe, classes: int, device: torch.device) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    def mix(batch: Batch) -> tuple[Tensor, Tensor]:
        uniform = torch.from_numpy(batch.draws).to(device)
        return _augment.mix(
            batch.inputs, batch.targets, classes, uniform, batch.partners,
            mixup=recipe.mixup, cutmix=recipe.cutmix, prob=recipe.mix_prob,
        )  # fmt: skip

    return mix


def _settings(recipe: Recipe) -> Settings:
    return Settings(
        epochs=recipe.epochs,
        patience=recipe.patience,
        select_on=recipe.select_on,
        select_by=recipe.select_by,
        save_every=recipe.save_every,
        keep_on_full=recipe.on_full == "keep-training",
        drw_epoch=recipe.loss.drw_epoch,
        compile=recipe.compile,
        deterministic=recipe.deterministic,
        features_with=recipe.features_with,
    )
