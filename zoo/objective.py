"""What training aims at, from a recipe and the training counts: the loss, its class weights, and the sampler."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

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
    if loss.given_weights and not any(loss.given_weights):
        raise UsageError("loss.given_weights are all 0, so nothing would be learned; give at least one that is not")


def build_loss(recipe: Recipe, counts: np.ndarray) -> tuple[nn.Module, Tensor | None]:
    """The loss, and the class weights (C,) it takes or, with ``drw_epoch``, will take."""
    spec = registry.find("losses", recipe.loss.name)
    kind = recipe.loss.class_weights
    weights = sampling.class_weights(counts, kind, beta=recipe.loss.beta, given=recipe.loss.given_weights)
    tensor = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    options = {key: getattr(recipe.loss, key) for key in spec.options}
    if spec.counts:
        options["counts"] = counts.tolist()
    return spec.build(weight=tensor, **options), tensor


def build_sampler(recipe: Recipe, targets: np.ndarray, index: np.ndarray) -> sampling.Sampler | None:
    """The sampler over the positions ``index`` (n,) of a split whose classes are ``targets``; None to show each sample once."""
    s = recipe.sampler
    if s.name == "none":
        return None
    return sampling.Sampler(s.name, index, targets[index], len(targets), recipe.seed, recipe.epochs, s.exponent)
