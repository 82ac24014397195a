"""What training aims at, from a recipe and the training counts: the loss, its class weights, and the sampler."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from zoo import recipe as recipes
from zoo import registry, sampling
from zoo.recipe import Recipe
from zoo.spec import UsageError


def check(recipe: Recipe) -> None:
    """What can be wrong about the loss before the data is read."""
    loss = recipe.loss
    registry.entry("losses", loss.name)
    if loss.drw_epoch >= recipe.epochs:
        raise UsageError(
            f"loss.drw_epoch = {loss.drw_epoch} is past the end ({recipe.epochs} epochs), so the class weights would never act; "
            f"use less than {recipe.epochs}"
        )
    if (loss.class_weights == "given") != bool(loss.given_weights):
        raise UsageError("loss.given_weights goes with loss.class_weights = 'given'; set both, or neither")


def build_loss(recipe: Recipe, counts: np.ndarray) -> tuple[nn.Module, Tensor | None]:
    """The loss, and the class weights (C,) it takes or, with ``drw_epoch``, will take."""
    spec = registry.find("losses", recipe.loss.name)
    weights = _class_weights(recipe.loss, counts)
    tensor = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    options = {key: getattr(recipe.loss, key) for key in spec.options}
    if spec.counts:
        options["counts"] = counts.tolist()
    return spec.build(weight=tensor, **options), tensor


def _class_weights(loss: recipes.Loss, counts: np.ndarray) -> np.ndarray | None:
    if loss.class_weights == "given":
        if len(loss.given_weights) != len(counts):
            raise UsageError(
                f"loss.given_weights has {len(loss.given_weights)} numbers, the data {len(counts)} classes; give one number a class"
            )
        return np.array(loss.given_weights)
    if loss.class_weights == "effective":
        return sampling.effective_weights(counts, loss.beta)
    if loss.class_weights == "none":
        return None
    return sampling.inverse_weights(counts, 0.5 if loss.class_weights == "sqrt_inverse" else 1.0)


def build_sampler(recipe: Recipe, targets: np.ndarray, index: np.ndarray) -> sampling.Sampler | None:
    """The sampler over the positions ``index`` (n,) of a split whose classes are ``targets``; None to show each sample once."""
    s = recipe.sampler
    if s.name == "none":
        return None
    return sampling.Sampler(s.name, index, targets[index], len(targets), recipe.seed, recipe.epochs, s.exponent)
