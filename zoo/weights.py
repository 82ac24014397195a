"""Weights to start from: a zoo run, a .safetensors or .pth file, or what torchvision and timm publish."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo import tensor_files
from zoo.console import print_line
from zoo.errors import FileError, UsageError, did_you_mean
from zoo.spec import Download, ModelSpec

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
LEVELS = ("state_dict", "model", "model_state_dict", "net")
"""Keys under which training programs put a state dict."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


class Notes(list[str]):
    """What was decided, one line each; ``fresh`` are the tensors that stayed random."""

    fresh: tuple[str, ...] = ()


def load_weights(model: nn.Module, source: str, spec: ModelSpec, tensors: Mapping[str, Tensor] | None = None) -> Notes:
    """Load ``source`` into ``model``: "default", a name in ``spec.weights``, a file or a run folder.

    The last linear layer stays fresh where its size differs (another number of classes). ``tensors`` are those of ``source``
    where they have been read already.

    Raises:
        UsageError: no such download for this model. FileError: missing, unreadable or of another model, naming the first
            three keys on each side.
    """
    notes, tensors = Notes(), find(source, spec) if tensors is None else tensors
    own = model.state_dict()
    fresh = fitting(own, tensors, spec, source)
    usable = {name: value for name, value in tensors.items() if name not in fresh}
    model.load_state_dict(usable, strict=False)
    notes.append(f"{source}: {len(usable)} of {len(own)} tensors")
    if fresh:
        sizes = ", ".join(f"{name} {_size(tensors[name])} there, {_size(own[name])} here" for name in fresh[:2])
        notes.append(f"left fresh: {sizes}")
    notes.fresh = tuple(fresh)
    return notes


def find(source: str, spec: ModelSpec) -> dict[str, Tensor]:
    """The tensors of ``source`` by name; errors as :func:`load_weights`."""
    if source == "default" or source in spec.weights:
        return _published(source, spec)
    return read(Path(source).expanduser(), spec)


def fitting(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], spec: ModelSpec, source: str) -> list[str]:
    """The tensors of the last linear layer that have another size than the model's ``own``; FileError if others do not fit."""
    fresh = [name for name in tensors if name in own and _in_head(name, spec) and tensors[name].shape != own[name].shape]
    _check_fit(own, {name: value for name, value in tensors.items() if name not in fresh}, fresh, source)
    return fresh


def statistics(source: str, spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Channel means and standard deviations of the images that ``source`` was trained on, if it is known to have others than
    the data set at hand: published weights by the spec, a zoo run by its file.
    """
    if source == "none":
        return None
    if source == "default" or source in spec.weights:
        return (spec.mean, spec.std) if spec.mean and spec.std else None
    path = _file(Path(source).expanduser())
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get("zoo", "{}"))
    except Exception:  # a damaged file: loading it says so
        return None
    return (tuple(meta["mean"]), tuple(meta["std"])) if "mean" in meta else None


def read(path: Path, spec: ModelSpec | None = None) -> dict[str, Tensor]:
    """Tensors by name from a file, or from ``weights.safetensors`` in a run folder.

    A level named ``state_dict`` or ``model`` and the prefix ``module.`` are taken off. Nothing but tensors is unpickled.

    Raises:
        FileError: no such file, damaged, or it holds no state dict.
    """
    path = _file(path)
    if not path.is_file():
        known = ["a file", "a run folder", *(("default", *spec.weights) if spec and spec.weights else ())]
        near = did_you_mean(str(path), spec.weights) if spec else ""
        raise FileError(f"no weights file ({path.absolute()}){near}; name {', '.join(known)}")
    if path.suffix not in SUFFIXES:
        raise FileError(f"not a weights file ({path}); use one that ends in {', '.join(SUFFIXES[:2])}, or a run folder")
    found = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    for level in LEVELS:
        if isinstance(found, Mapping) and isinstance(found.get(level), Mapping):
            found = found[level]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise FileError(f"no state dict in the file ({path}); write one with torch.save(model.state_dict(), ...)")
    tensors = dict(found)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _file(path: Path) -> Path:
    return path / "weights.safetensors" if path.is_dir() else path


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            ours = "zoo" in (file.metadata() or {})
        if not ours:
            return load_file(path)
    except Exception as error:  # one boundary around the parser: it raises many types, some without a text
        raise FileError(f"cannot read weights ({path}, {type(error).__name__}); the file is damaged, get it again") from error
    return tensor_files.load_tensors(path)[0]  # checks the digest of each tensor


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # one boundary around the parser: a damaged file shows a dozen types
        raise FileError(
            f"cannot read weights ({path}, {type(error).__name__}); it is damaged or holds more than tensors: use a state dict"
        ) from error


def _in_head(name: str, spec: ModelSpec) -> bool:
    return any(name.startswith(f"{head}.") for head in (spec.new_head or spec.head).split())


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _check_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], fresh: list[str], source: str) -> None:
    extra = [name for name in tensors if name not in own]
    missing = [name for name in own if name not in tensors and name not in fresh]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # files from before torch 0.4.1 lack it
    if extra or missing:
        sides = [
            f"only {side}: {', '.join(names[:3])}"
            for side, names in (("in the file", extra), ("in the model", missing))
            if names
        ]
        raise FileError(f"weights are of another model ({source}, {'; '.join(sides)}); choose the model they are of")
    wrong = [name for name, value in tensors.items() if value.shape != own[name].shape]
    if wrong:
        there = ", ".join(f"{name} {_size(tensors[name])}" for name in wrong[:3])
        here = ", ".join(_size(own[name]) for name in wrong[:3])
        raise FileError(f"weights are of another model ({source}, file: {there}; model: {here}); choose the model they are of")


def _published(source: str, spec: ModelSpec) -> dict[str, Tensor]:
    if not spec.weights or spec.download is None:
        raise UsageError("this model has no weights to download; use weights=none or weights=FILE")
    place = spec.download(spec.weights[0] if source == "default" else source)
    path = Path(torch.hub.get_dir()) / "checkpoints" / place.file
    if path.is_file():
        _check_cached(place, path)
    else:
        _fetch(place, path)
    if place.read is None:
        return read(path)
    try:
        return place.read(path)
    except Exception as error:  # timm's own reading: any type
        raise FileError(
            f"cannot read weights ({path}, {type(error).__name__}); delete the file to download it again"
        ) from error


def _check_cached(place: Download, path: Path) -> None:
    """FileError if a file in the cache is not the published one; said if what is published cannot be had."""
    try:
        wanted = _hash(place, patience=3)
    except (OSError, HTTPException):
        wanted = None
    if wanted is None:
        print_line(f"weights  {path.name} is not checked: the sha256 of {place.url} cannot be had")
    elif not (found := _sha256(path)).startswith(wanted):
        more = "..." if len(wanted) < len(found) else ""
        raise FileError(
            f"weights are not the published file ({path}, sha256 {found}, published {wanted}{more}); "
            "delete it to download it again, or use weights=FILE to trust it"
        )


def _fetch(place: Download, path: Path) -> None:
    """Download to ``path``, which appears only when its sha256 is the published one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(place.url, str(path), _hash(place), progress=sys.stderr.isatty())
    except Exception as error:  # URLError, HTTPError, OSError, RuntimeError for another hash, ...
        why = "its sha256 is not the published one" if "invalid hash value" in str(error) else type(error).__name__
        raise FileError(
            f"cannot download {place.url} ({why}); save it as {path}, or use weights=FILE or weights=none"
        ) from error


def _hash(place: Download, patience: float = 30) -> str | None:
    """The published sha256: in full from the hub's pointer file (``patience`` in seconds), or the first digits in the file's name."""
    if "/resolve/" not in place.url:
        return _hash_in_name(place.file)
    with urllib.request.urlopen(place.url.replace("/resolve/", "/raw/"), timeout=patience) as answer:
        found = re.search(rb"oid sha256:([0-9a-f]{64})", answer.read(1024))
    return found[1].decode() if found else None


def _hash_in_name(file: str) -> str | None:
    found = re.search(r"-([0-9a-f]{8,64})\.", file)
    return found[1] if found else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
