"""The spec of a model by its name, and for images of another size."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo import model_files, registry
from zoo.errors import UsageError
from zoo.spec import ModelSpec


def sized_spec(name: str, size: int, stored: Path | None = None, model: Any = None) -> ModelSpec:
    """:func:`model_spec` with an input of ``size`` x ``size`` pixels, 0 for its own; UsageError if the model cannot run on it.

    ``model`` is the object if ``name`` stands for one (:func:`zoo.model_files.object_spec`).
    """
    if model is not None:
        return model_files.object_spec(model, size)
    spec = model_spec(name, stored)
    return spec if size in (0, spec.input[1]) else _resized(name, spec, size)


def model_spec(name: str, stored: Path | None = None) -> ModelSpec:
    """The spec of a registered model, of any timm model as ``timm/<name>``, or of one in a file as ``FILE.py:NAME``.

    ``stored`` is the folder of the model's run.

    Raises:
        UsageError: an unknown name; a file or plug-in whose model cannot be used. FileError: a file that is missing.
    """
    if name.startswith(model_files.OBJECT):
        raise UsageError(
            f"the model is an object from Python ({name}), which no file has; pass it there: zoo.load(RUN, model=...) or "
            "zoo.train(..., model=...)"
        )
    if model_files.is_file(name):
        return _tried(name.rpartition("/")[2], model_files.spec(name, stored))
    if name.startswith("timm/"):
        from zoo.models import timm_nets

        return timm_nets.timm_spec(name)
    found: ModelSpec = registry.find("models", name)
    return _tried(name, found) if "plugin" in registry.entry("models", name) else found


def _tried(name: str, spec: ModelSpec) -> ModelSpec:
    """The spec of code that is not zoo's; UsageError unless its model gives logits (N, classes), tried without memory."""
    try:
        with torch.device("meta"), torch.no_grad():
            model = spec.build(spec.classes).eval()
            modules, logits = dict(model.named_modules()), model(torch.zeros(2, *spec.input))
    except NotImplementedError:  # what needs values cannot run without memory
        return spec
    except Exception as error:  # a user's code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:90]
        raise UsageError(f"model {name} fails on images {spec.input} ({reason}); correct its build or input") from error
    if tuple(getattr(logits, "shape", ())) != (2, spec.classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(f"model {name} returns {found} for 2 images; return logits (N, classes): (2, {spec.classes})")
    if missing := [each for each in spec.head.split() if each not in modules]:
        raise UsageError(f"model {name} has no module {missing[0]!r}; correct its head, e.g. {next(reversed(modules))!r}")
    return spec


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
