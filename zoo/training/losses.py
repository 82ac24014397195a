"""The loss of a recipe, one created by name for another training loop, or one given in Python."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import recipe as recipes
from zoo import registry, sampling
from zoo.console import print_line
from zoo.data._image import shown
from zoo.errors import UsageError, did_you_mean
from zoo.recipe import Recipe
from zoo.training.processes import Team


def build(recipe: Recipe, counts: np.ndarray) -> tuple[nn.Module, Tensor | None]:
    """The loss, and its class weights (C,), which with ``drw_epoch`` apply later."""
    spec = registry.find("losses", recipe.loss.name)
    kind = recipe.loss.class_weights
    weights = sampling.class_weights(counts, kind, beta=recipe.loss.beta, given=recipe.loss.given_weights)
    tensor = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    options = {key: recipe.loss.options[key] for key in spec.options}
    if spec.counts:
        options["counts"] = counts.tolist()
    return spec.build(weight=tensor, **options), tensor


def create_loss(name: str, counts: Any = None, weight: Any = None, **options: Any) -> nn.Module:
    """Build a registered loss, a module that maps logits (N, C) and a target, labels (N,) or class shares (N, C), to a scalar.

    Args:
        counts: training samples per class (C,), for a loss or class weights that depend on them: :func:`zoo.class_counts` of the labels.
        weight: a weight per class (C,), in a tensor, array or list; None: as ``class_weights`` states.
        options: settings of the recipe's table ``[loss]``, such as ``focal_gamma=2.0``, ``class_weights="effective"`` or ``beta=0.999``.

    A loss that changes with the epoch (``dynamic_focal``, ``ce_then_focal``) has methods ``set_epoch(epoch)`` or ``end_epoch(epoch)``:
    call them before and after each epoch, counted from 0. ``ldam`` and ``dbm`` take scaled cosines, s cos(theta) with s =
    ``margin_scale``, as the models named ``*_cosine`` return them. ``sigmoid_focal`` takes labels only. The options and papers of all
    losses: ``zoo losses``.

    Example:
        >>> loss = create_loss("ldam", counts=[5000, 500, 50], max_margin=0.4)
        >>> loss(torch.zeros(2, 3), torch.tensor([0, 2])).shape
        torch.Size([])

    Raises:
        UsageError: unknown name or option, or a value out of its range.
        TypeError, ValueError: ``counts`` or ``weight`` is not a number per class, or ``counts`` is needed, or an argument excludes another.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {type(name).__name__}; give the name of a loss, e.g. 'ldam'")
    if weight is not None:
        if "class_weights" in options:
            raise ValueError("weight and class_weights exclude each other; give one of them")
        options |= {"class_weights": "given", "given_weights": _numbers("weight", weight).tolist()}
    if options.get("drw_epoch"):
        raise ValueError("drw_epoch is for zoo's own training; in another loop, set the loss's attribute weight at that epoch")
    if options.get("beta") and options.get("class_weights") != "effective":
        raise ValueError("beta has no effect without class_weights='effective'; give both, or neither")
    known = {*registry.entry("losses", name)["options"], "class_weights", "beta", "given_weights", "drw_epoch"}
    if unknown := [key for key in options if key not in known]:
        raise UsageError(
            f"{unknown[0]} is not an option of {name}{did_you_mean(unknown[0], known)}; list them with: zoo losses"
        )
    recipe = recipes.changed(Recipe(), {"loss.name": name} | {f"loss.{key}": value for key, value in options.items()})
    recipes.check(recipe)
    if counts is None:
        if registry.entry("losses", name).get("counts") or recipe.loss.class_weights not in ("none", "given"):
            raise ValueError(
                f"loss {name!r} with class_weights {recipe.loss.class_weights!r} needs counts, the samples per class"
            )
        return build(recipe, np.ones(len(recipe.loss.given_weights), np.int64))[0]
    numbers = _numbers("counts", counts)
    if not (numbers.size and (numbers >= 0).all() and numbers.any() and (numbers == numbers.round()).all()):
        raise ValueError(f"counts = {numbers.tolist()[:10]} are not numbers of samples; give integers of at least 0, not all 0")
    return build(recipe, numbers.astype(np.int64))[0]


def _numbers(name: str, values: Any) -> np.ndarray:
    """Values (C,) in float64; ValueError for anything else."""
    try:
        found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a number per class ({type(values).__name__}); give a list, array or tensor") from error
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite numbers of shape (C,), not {found.shape}")
    return found


def given(recipe: Recipe, loss: nn.Module, team: Team, classes: int) -> tuple[nn.Module, None]:
    """A loss given in Python, without class weights; it is called once, on a copy, with the logits and targets of a few images.

    Raises:
        UsageError: the loss fails on them, or class weights of the recipe would have no effect on it.
    """
    if recipe.loss.class_weights != "none" or recipe.loss.drw_epoch:
        raise UsageError(
            f"class_weights = {recipe.loss.class_weights} has no effect on a loss given in Python; pass the weights to the loss, and "
            "class_weights='none', drw_epoch=0 to train"
        )
    if team.size > 1 and any(each.requires_grad for each in loss.parameters()):
        raise UsageError(f"a loss with parameters supports one process (found {team.size}); start without torchrun")
    _call_once(loss, classes, soft=bool(recipe.mixup or recipe.cutmix))
    return loss, None


def _call_once(loss: nn.Module, classes: int, *, soft: bool) -> None:
    name = loss._get_name()
    try:
        tried: Any = copy.deepcopy(loss)
    except Exception:  # it holds what cannot be copied, such as a generator; its first step will show errors
        return
    held = next(itertools.chain(tried.parameters(), tried.buffers()), torch.empty(0))
    n = classes + 1  # no shape that is broadcast by accident
    labels = torch.arange(n, device=held.device) % classes
    shares = nn.functional.one_hot(labels, classes).float()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if hasattr(tried, "set_epoch"):
                tried.set_epoch(0)
            value = tried((10 * shares).requires_grad_(), shares if soft else labels)
    except Exception as error:  # torch raises many types, and a loss of a user any
        why = (str(error) or type(error).__name__).splitlines()[0]
        targets = f"class shares ({n}, {classes})" if soft else f"class numbers ({n},)"
        raise UsageError(
            f"the loss {name} fails on logits ({n}, {classes}) and {targets} ({shown(why)[:160]}); give a loss of these, or a function "
            "that converts them and calls yours"
        ) from error
    if isinstance(value, Tensor) and value.numel() == 1 and value.item() < 0:
        print_line(
            f"warning  the loss {name} is negative for images that are classified correctly ({value.item():.3g}): losses are given "
            "logits, not log-probabilities; use CrossEntropyLoss instead of NLLLoss"
        )
