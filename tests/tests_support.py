"""What several test files need."""

from __future__ import annotations

from zoo import recipe
from zoo.recipe import Recipe

TINY = ("epochs=1", "batch_size=250", "data=synthetic", "data.imbalance=exp:0.05", "device=cpu")


def resolve(model: str, *settings: str) -> Recipe:
    """A recipe small enough for tests, with ``key=value`` changes."""
    return recipe.resolve(model, dict(recipe.parse_override(text) for text in (*TINY, *settings)))
