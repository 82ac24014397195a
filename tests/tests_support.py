"""Helpers of several test files."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from zoo import recipe, tensor_files, training
from zoo.recipe import Recipe
from zoo.training import checkpoint, session
from zoo.training.signals import Interrupted

TINY = ("epochs=1", "batch_size=50", "data=synthetic", "data.per_class=45", "device=cpu")


def resolve(model: str, *settings: str) -> Recipe:
    """A recipe small enough for tests, with ``key=value`` changes."""
    return recipe.resolve(model, dict(recipe.parse_override(text) for text in (*TINY, *settings)))


def small(*settings: str) -> Recipe:
    """One short epoch of the small net."""
    return resolve("cnn_small", *settings)


def digests(folder: Path) -> dict[str, str]:
    """The digest of each tensor in the newest saved state of a run."""
    return tensor_files.load_tensors(checkpoint.states(folder)[0])[1]["digests"]


def stopped(chosen: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a signal arrives in the third step."""
    real, steps = session.train_epoch, iter(range(3))

    def stopping(*arguments: Any, watch: Any, **options: Any) -> Any:
        def counted(number: int, totals: Any) -> None:
            if next(steps, 0) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            watch(number, totals)

        return real(*arguments, watch=counted, **options)

    with monkeypatch.context() as patch:
        patch.setattr(session, "train_epoch", stopping)
        with pytest.raises(Interrupted):
            training.train(chosen, out=out)
