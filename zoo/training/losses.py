"""The loss of a recipe, or one given in Python."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from zoo import registry, sampling
from zoo.errors import UsageError
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


def given(recipe: Recipe, loss: nn.Module, team: Team) -> tuple[nn.Module, None]:
    """A loss given in Python, without class weights; UsageError if class weights of the recipe would have no effect on it."""
    if recipe.loss.class_weights != "none" or recipe.loss.drw_epoch:
        raise UsageError(
            f"class_weights = {recipe.loss.class_weights} has no effect on a loss given in Python; pass the weights to the loss, and "
            "class_weights='none', drw_epoch=0 to train"
        )
    if team.size > 1 and any(each.requires_grad for each in loss.parameters()):
        raise UsageError(f"a loss with parameters supports one process (found {team.size}); start without torchrun")
    return loss, None
