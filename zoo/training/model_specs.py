"""The spec of a model by its name, and for images of another size."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from zoo import model_files, registry
from zoo.errors import UsageError
from zoo.spec import ModelSpec


def sized_spec(name: str, size: int, stored: Path | None = None) -> ModelSpec:
    """:func:`model_spec` with an input of ``size`` x ``size`` pixels, 0 for its own; UsageError if the model cannot run on it."""
    spec = model_spec(name, stored)
    return spec if size in (0, spec.input[1]) else _resized(name, spec, size)


def model_spec(name: str, stored: Path | None = None) -> ModelSpec:
    """The spec of a registered model, of any timm model as ``timm/<name>``, or of one in a file as ``FILE.py:NAME``.

    ``stored`` is the folder of the model's run.
    """
    if model_files.is_file(name):
        return model_files.spec(name, stored)
    if name.startswith("timm/"):
        from zoo.models import timm_nets

        return timm_nets.timm_spec(name)
    return registry.find("models", name)


def _resized(name: str, spec: ModelSpec, size: int) -> ModelSpec:
    """The spec at another size, which a builder with an argument ``image_size`` is given; the model is tried on it without memory."""
    build = partial(spec.build, image_size=size) if "image_size" in inspect.signature(spec.build).parameters else spec.build
    resized = replace(spec, build=build, input=(spec.input[0], size, size), macs=0)  # its operations are not counted
    try:
        with torch.device("meta"):
            build(2)(torch.zeros(2, *resized.input))
    except NotImplementedError:  # a user's network may do what needs values
        return resized
    except Exception as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"{name} does not take images of {size} pixels (data.size, {why[:100]}); use {spec.input[1]}"
        ) from error
    return resized
