"""Any network of timm as ``timm/<name>``: built, described and downloaded with timm's own metadata."""

from __future__ import annotations

import contextlib
from functools import cache, partial
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

from zoo.errors import UsageError, did_you_mean
from zoo.models._timm import download
from zoo.spec import ModelSpec


def build_timm(name: str, classes: int = 1000, image_size: int = 0) -> nn.Module:
    """timm's ``name`` (without ``timm/``), freshly initialised: (N, 3, H, W) to (N, classes).

    Networks of a fixed input size, such as vision transformers, are built for ``image_size`` pixels (0: their own size).
    """
    if image_size:
        with contextlib.suppress(TypeError):  # others, such as ResNets, lack the argument and take any size
            return timm.create_model(name, pretrained=False, num_classes=classes, img_size=image_size)
    return timm.create_model(name, pretrained=False, num_classes=classes)


@cache
def timm_spec(name: str) -> ModelSpec:
    """The spec of ``timm/<name>``: head, stages, input and weights as timm declares them; UsageError for an unknown name.

    ``macs`` is 0 (not counted).
    """
    short = name.removeprefix("timm/")
    if not timm.is_model(short):
        near = did_you_mean(short, timm.list_models())
        raise UsageError(
            f"timm has no model {short!r}{near}; list them with: python -c 'import timm; print(timm.list_models())'"
        )
    with torch.device("meta"):
        model: Any = timm.create_model(short, pretrained=False)
    config: dict[str, Any] = model.pretrained_cfg
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    if not heads or model.num_classes == 0:
        raise UsageError(f"timm/{short} has no classifier to adapt to the data; choose another model")
    return ModelSpec(
        build=partial(build_timm, short),
        input=tuple(config["input_size"]),
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=0,
        paper=f"timm {timm.__version__}, {config.get('paper_ids') or config.get('origin_url') or short}",
        head=" ".join(heads),
        stages=_stages(model, heads),
        layers=_layers(model, heads),
        classes=model.num_classes,
        data=("caltech101", "folder"),
        weights=tuple(_tags(short)),
        download=lambda tag: download(f"{short.partition('.')[0]}.{tag}"),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        recipe={"data.augment": ["rcrop", "flip"], "optim.lr": 0.01, "optim.weight_decay": 5e-5},
    )


def _tags(short: str) -> list[str]:
    architecture, _, tag = short.partition(".")
    found = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    config: Any = timm.get_pretrained_cfg(architecture)
    first = tag or config.tag
    return [first, *(other for other in found if other != first)] if first in found else found


def _stages(model: Any, heads: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Owners of parameters by timm's coarse layer groups, without the classifier; empty if timm gives none."""
    kept = ([name for name in names if not _classifies(name, heads)] for names in _groups(model, coarse=True))
    return tuple(_owners(model, names) for names in kept if names)


def _layers(model: Any, heads: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The same by timm's fine groups; parameters in the classifier's group, e.g. a last norm, have its rate and are omitted."""
    return tuple(
        _owners(model, names) for names in _groups(model, coarse=False) if not any(_classifies(name, heads) for name in names)
    )


def _groups(model: Any, *, coarse: bool) -> list[list[str]]:
    """Names of parameters by timm's layer groups, from the input on."""
    if not hasattr(model, "group_matcher"):
        return []
    return [names for _, names in sorted(group_parameters(model, model.group_matcher(coarse=coarse)).items())]


def _classifies(name: str, heads: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{head}.") for head in heads)


def _owners(model: Any, names: list[str]) -> tuple[str, ...]:
    """The modules that hold these parameters, or the parameter if it belongs to the whole model."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
