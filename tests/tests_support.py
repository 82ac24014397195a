"""Helpers of several test files."""

from __future__ import annotations

from pathlib import Path

from zoo import recipe, tensor_files
from zoo.recipe import Recipe
from zoo.training import checkpoint

TINY = ("epochs=1", "batch_size=250", "data=synthetic", "data.imbalance=exp:0.05", "device=cpu")


def resolve(model: str, *settings: str) -> Recipe:
    """A recipe small enough for tests, with ``key=value`` changes."""
    return recipe.resolve(model, dict(recipe.parse_override(text) for text in (*TINY, *settings)))


def small(*settings: str) -> Recipe:
    """One short epoch of the small net."""
    return resolve("cnn_small", *settings)


def digests(folder: Path) -> dict[str, str]:
    """The digest of each tensor in the newest saved state of a run."""
    return tensor_files.load_tensors(checkpoint.states(folder)[0])[1]["digests"]
