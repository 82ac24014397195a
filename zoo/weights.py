"""Weights to start from: a zoo run, a .safetensors or .pth file, or torchvision's and timm's downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.spec import FileError, ModelSpec, UsageError

SUFFIXES = (".safetensors", ".pth", ".pt")


def load_weights(model: nn.Module, source: str, spec: ModelSpec) -> list[str]:
    """Load ``source`` ("default", or a file or run folder) into ``model``; the head stays fresh where its size differs.

    Returns what was done, one line each.

    Raises:
        UsageError: no such download for this model. FileError: missing, unreadable or of another model, naming the first
            three keys on each side.
    """
    tensors = _default(spec) if source == "default" else read(Path(source).expanduser())
    own = model.state_dict()
    head = spec.new_head or spec.head
    fresh = [
        name
        for name, value in own.items()
        if name.startswith(head + ".") and (name not in tensors or tensors[name].shape != value.shape)
    ]
    usable = {name: value for name, value in tensors.items() if name not in fresh}
    missing = [name for name in own if name not in usable and name not in fresh]
    extra = [name for name in usable if name not in own]
    wrong = [
        f"{name} {tuple(value.shape)} is {tuple(own[name].shape)} here"
        for name, value in usable.items()
        if name in own and value.shape != own[name].shape
    ]
    if missing or extra or wrong:
        sides = [
            f"{what} {', '.join(names[:3])}"
            for what, names in (("missing", missing), ("unknown", extra), ("shape of", wrong))
            if names
        ]
        raise FileError(f"weights are of another model ({source}: {'; '.join(sides)}); choose the model they are of")
    model.load_state_dict(usable, strict=False)
    notes = [f"{source}: {len(usable)} of {len(own)} tensors"]
    return notes + ([f"fresh: {', '.join(fresh)} (another number of classes)"] if fresh else [])


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, or of ``weights.safetensors`` in a run folder; ``module.`` prefixes and a ``state_dict`` level go."""
    if path.is_dir():
        path = path / "weights.safetensors"
    if not path.is_file():
        raise FileError(f"no weights file ({path.absolute()}); check weights=")
    if path.suffix not in SUFFIXES:
        raise FileError(f"not a weights file ({path}); use one that ends in {', '.join(SUFFIXES)}")
    try:
        found: Any = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # one boundary around the parsers: they raise many types, some without a text
        raise FileError(f"cannot read weights ({path}, {type(error).__name__}); use a file of tensors only") from error
    for level in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(level), dict):
            found = found[level]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise FileError(f"no state dict in the file ({path}); save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in found.items()}


def _default(spec: ModelSpec) -> dict[str, Tensor]:
    if "default" not in spec.weights:
        raise UsageError("this model has no weights to download; use weights=none or weights=FILE")
    import torchvision

    name = getattr(spec.build, "__name__", "")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # URLError, HTTPError, RuntimeError for a wrong hash, OSError for a full disk
        place = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        raise FileError(
            f"cannot download weights ({weights.url}, {type(error).__name__}); put the file at {place}, or use weights=none"
        ) from error
