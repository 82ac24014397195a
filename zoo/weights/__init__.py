"""Initial weights: a zoo run, a file of PyTorch or safetensors, or published weights of torchvision and timm.

:mod:`~zoo.weights._files` reads a file by its content, :mod:`~zoo.weights._unwrap` removes the wrappers of training programs
around a state dict, :mod:`~zoo.weights._names` maps the names of public networks, :mod:`~zoo.weights._published` downloads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from zoo import hub, run_folders
from zoo.console import print_line
from zoo.errors import FileError, did_you_mean
from zoo.spec import ModelSpec
from zoo.weights._files import place, read_objects
from zoo.weights._names import check_fit, in_head, renamed, size
from zoo.weights._published import published
from zoo.weights._unwrap import Tensors, unwrap, without_prefixes

__all__ = ["Notes", "find", "fitting", "load_and_report", "load_weights", "read", "statistics"]


class Notes(list[str]):
    """Decisions, one line each; ``fresh`` are the tensors that stay random."""

    fresh: tuple[str, ...] = ()


def load_weights(model: nn.Module, source: str, spec: ModelSpec, tensors: Mapping[str, Tensor] | None = None) -> Notes:
    """Load ``source`` into ``model``: "default", a name in ``spec.weights``, a file, a run folder or ``hf:owner/name``.

    The last linear layer stays random if its size differs (another number of classes) or the file has none. ``tensors`` are
    those of ``source`` if they have already been read.

    Raises:
        UsageError: no such download for this model. FileError: missing, unreadable, not finite or of another model, naming
            the first three keys on each side.
    """
    own = model.state_dict()
    found = find(source, spec) if tensors is None else tensors
    if isinstance(found, Tensors):
        found = without_prefixes(found, own)
    fresh = fitting(own, found, spec, source)
    named, convention = renamed(own, found, spec)
    usable = {name: value for name, value in named.items() if name not in fresh}
    model.load_state_dict(usable, strict=False)
    removed = getattr(found, "removed", "")
    notes = Notes([f"{source}: {len(usable)} of {len(own)} tensors" + (f", {removed}" if removed else "")])
    if convention:
        notes.append(convention)
    if left := len(found) - len(named):
        notes.append(f"ignored: {left} tensors of auxiliary classifiers")
    if fresh:
        sizes = (
            f"{name} ({size(named[name]) if name in named else 'missing'} in the file, {size(own[name])} in the model)"
            for name in fresh[:2]
        )
        notes.append(f"randomly initialised: {', '.join(sizes)}")
    notes.fresh = tuple(fresh)
    return notes


def load_and_report(
    model: nn.Module, source: str, spec: ModelSpec, tensors: Mapping[str, Tensor] | None = None
) -> Sequence[str]:
    """:func:`load_weights` with its notes printed; returns the names of tensors that stay random, all of them for "none"."""
    if source == "none":
        return tuple(model.state_dict())
    notes = load_weights(model, source, spec, tensors)
    for note in notes:
        print_line(f"weights  {note}")
    return notes.fresh


def find(source: str, spec: ModelSpec) -> dict[str, Tensor]:
    """The tensors of ``source`` by name; errors as :func:`load_weights`."""
    if source == "default" or source in spec.weights:
        return published(source, spec)
    return read(_path(source), spec)


def _path(source: str) -> Path:
    """A weights file, or a folder with one."""
    return hub.weights(source) if hub.is_hub(source) else run_folders.weights_path(source)


def fitting(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], spec: ModelSpec, source: str) -> list[str]:
    """The tensors of the last linear layer that keep their ``own`` values: of another size, or missing in ``tensors``.

    Raises:
        FileError: other tensors do not fit.
    """
    named, _ = renamed(own, tensors, spec)
    fresh = [name for name in own if in_head(name, spec) and (name not in named or named[name].shape != own[name].shape)]
    check_fit(own, named, fresh, source)
    return fresh


def statistics(source: str, spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Channel means and standard deviations of the images that ``source`` was trained on, if they are known.

    A run of zoo has them in its file; for other files, which rarely have them, those of the published weights of the
    architecture are used.
    """
    if source == "none":
        return None
    of_spec = (spec.mean, spec.std) if spec.mean and spec.std else None
    if source == "default" or source in spec.weights:
        return of_spec
    path = place(_path(source))
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get("zoo", "{}"))
    except Exception:  # not safetensors, or damaged, which loading reports
        return of_spec
    return (tuple(meta["mean"]), tuple(meta["std"])) if "mean" in meta else of_spec


def read(path: Path, spec: ModelSpec | None = None) -> Tensors:
    """Tensors by their names in a file, or in the weights of a run folder; ``removed`` describes the removed levels around them.

    The content, not the name, determines the format. Only tensors and plain values are unpickled.

    Raises:
        FileError: no such file, damaged, or it holds no state dict of dense tensors.
    """
    path = place(path)
    if not path.is_file():
        known = ["a file", "a run folder", *(("default", *spec.weights) if spec and spec.weights else ())]
        near = did_you_mean(str(path), spec.weights) if spec else ""
        raise FileError(f"no weights file ({path.absolute()}){near}; name {', '.join(known)}")
    return unwrap(read_objects(path), path)
