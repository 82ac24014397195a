"""What a run minimises, on which samples: the loss and the sampler that a recipe describes; like ``build``, it reads the recipe."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from zoo import registry, sampling
from zoo.recipe import Recipe


def build_loss(recipe: Recipe, counts: np.ndarray) -> tuple[nn.Module, Tensor | None]:
    """The loss, and the class weights (C,) it takes or, with ``drw_epoch``, will take."""
    spec = registry.find("losses", recipe.loss.name)
    kind = recipe.loss.class_weights
    weights = sampling.class_weights(counts, kind, beta=recipe.loss.beta, given=recipe.loss.given_weights)
    tensor = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    options = {key: recipe.loss.options[key] for key in spec.options}
    if spec.counts:
        options["counts"] = counts.tolist()
    return spec.build(weight=tensor, **options), tensor


def build_sampler(recipe: Recipe, targets: np.ndarray, index: np.ndarray) -> sampling.Sampler | None:
    """The sampler over the positions ``index`` (n,) of a split whose classes are ``targets``; None to show each sample once."""
    s = recipe.sampler
    if s.name == "none":
        return None
    return sampling.Sampler(s.name, index, targets[index], len(targets), recipe.seed, recipe.epochs, s.exponent)
