"""zoo: train image classifiers on imbalanced data, export them to verified ONNX files, and benchmark them.

Importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zoo import bench, errors, export, losses, metrics, numpy, ops, predictor, run, spec
    from zoo.api import data_set, train
    from zoo.recipe import Recipe
    from zoo.run import create_model, load
    from zoo.sampling import class_counts, effective_weights, long_tail
    from zoo.training.losses import create_loss

_ATTRIBUTES = {
    "create_loss": "zoo.training.losses",
    "create_model": "zoo.run",
    "load": "zoo.run",
    "data_set": "zoo.api",
    "train": "zoo.api",
    "Recipe": "zoo.recipe",
    "class_counts": "zoo.sampling",
    "effective_weights": "zoo.sampling",
    "long_tail": "zoo.sampling",
}
_MODULES = ("bench", "errors", "export", "losses", "metrics", "numpy", "ops", "predictor", "run", "spec")

__all__ = [
    "Recipe",
    "bench",
    "class_counts",
    "create_loss",
    "create_model",
    "data_set",
    "effective_weights",
    "errors",
    "export",
    "load",
    "long_tail",
    "losses",
    "metrics",
    "numpy",
    "ops",
    "predictor",
    "run",
    "spec",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
