"""Unwrap tensors from the containers of training programs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import FileError
from zoo.weights._files import STATE_DICT, Array, OfZoo

LEVELS = (
    "state_dict_ema", "model_ema_state_dict", "ema_state_dict", "model_ema", "ema_model", "ema", "swa_state_dict", "swa_model", "state_dict",
    "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module", "teacher", "student",
)  # fmt: skip
"""Keys of state dicts in files of training programs; averaged weights come first."""
PREFIXES = (
    "model_ema",
    "ema_model",
    "ema",
    "swa_model",
    "module",
    "_orig_mod",
    "model",
    "net",
    "network",
    "encoder_q",
    "backbone",
    "encoder",
)
"""Prefixes of names by wrappers: DataParallel, torch.compile, Lightning, averages; averaged weights come first."""
DEPTH = 8
"""Largest nesting that is searched; a pickled dict may contain itself."""
BESIDE = (
    "n_averaged", "criterion", "loss", "loss_fn", "loss_fun", "metrics", "train_acc", "val_acc", "test_acc", "ema_decay", "decay", "step",
    "initted", "online_model", "teacher", "encoder_k", "queue", "queue_ptr", "projector", "predictor",
)  # fmt: skip
"""First parts of names next to a wrapped model that do not belong to it."""


class Tensors(dict[str, Tensor]):
    """Tensors of a file by name."""

    path: Path
    by_zoo: bool = False
    """Whether zoo wrote the file: its names are then those of a model."""
    levels: tuple[str, ...] = ()
    """Keys of the dicts around them."""
    prefixes: tuple[str, ...] = ()
    """Prefixes that were removed from the names."""
    left_out: frozenset[str] = frozenset()
    """Names or keys next to them that were ignored."""

    @property
    def removed(self) -> str:
        """The removed wrappers in one line, or an empty string."""
        parts = [
            f"read at {'.'.join(self.levels)}" if self.levels else "",
            f"removed {', '.join(self.prefixes)} before the names" if self.prefixes else "",
            f"ignored {_first(sorted(self.left_out))}" if self.left_out else "",
        ]
        return ", ".join(part for part in parts if part)


def unwrap(found: Any, path: Path) -> Tensors:
    """The tensors of a model by their names in the file, without the levels around them.

    Raises:
        FileError: no state dict, or a tensor that is not dense, or larger than the file.
    """
    levels: list[str] = []
    left_out: set[str] = set()
    by_zoo = isinstance(found, OfZoo)
    while isinstance(found, Mapping) and len(levels) < DEPTH and (level := _level(found)):
        levels.append(level)
        left_out |= {str(key) for key in found if key != level}
        found = found[level]
    tensors = Tensors(_tensors(found))
    if not tensors:
        raise FileError(f"no state dict in the file ({path}); write one with {STATE_DICT}")
    size = path.stat().st_size
    for name, value in tensors.items():
        _check_tensor(name, value, path, size)
    tensors.path, tensors.by_zoo, tensors.levels = path, by_zoo, tuple(levels)
    tensors.left_out = frozenset(left_out | {str(key) for key in found if key not in tensors})
    return tensors


def without_prefixes(found: Tensors, own: Collection[str]) -> Tensors:
    """The tensors without the prefixes of wrappers; the ``own`` names of a model keep theirs, as do files that zoo wrote.

    Raises:
        FileError: a tensor that is not finite.
    """
    tensors, prefixes, left_out = dict(found), list(found.prefixes), set(found.left_out)
    while not found.by_zoo and (prefix := _prefix(tensors)):
        inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if len(inner.keys() & own) < len(tensors.keys() & own):
            break  # it is a part of the model: encoder.conv1.weight beside predictor.weight
        prefixes.append(prefix)
        left_out |= {name.partition(".")[0] for name in tensors if not name.startswith(prefix)}
        tensors = inner
    for name, value in tensors.items():
        _check_finite(name, value, found.path)
    bare = Tensors(tensors)
    bare.path, bare.by_zoo, bare.levels = found.path, found.by_zoo, found.levels
    bare.prefixes, bare.left_out = tuple(prefixes), frozenset(left_out)
    return bare


def _tensors(found: Any) -> dict[str, Tensor]:
    """The tensors and arrays of a dict, under names."""
    if not isinstance(found, Mapping):
        return {}
    plain = {key: torch.from_numpy(value.values) if isinstance(value, Array) else value for key, value in found.items()}
    return {key: value.detach() for key, value in plain.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _level(found: Mapping[Any, Any]) -> str:
    """The key to descend to, or an empty string: one of :data:`LEVELS`, or the only one that holds a state dict."""
    inner = [key for key, value in found.items() if isinstance(key, str) and isinstance(value, Mapping)]
    if named := [level for level in LEVELS if level in inner and _holds_tensors(found[level])]:
        return named[0]
    if _tensors(found):
        return ""
    others = [key for key in inner if "optim" not in key and _holds_tensors(found[key])]
    return others[0] if len(others) == 1 else ""


def _holds_tensors(found: Any, seen: set[int] | None = None) -> bool:
    """Whether there are tensors at any level; each dict is visited once, as it may contain itself."""
    seen = set() if seen is None else seen
    if not isinstance(found, Mapping) or id(found) in seen or len(seen) > 1000:
        return False
    seen.add(id(found))
    return bool(_tensors(found)) or any(_holds_tensors(value, seen) for value in found.values())


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    """Common prefix of all names of the model, with its dot, or an empty string."""
    groups = {name.partition(".")[0] for name in tensors}
    known = [prefix for prefix in PREFIXES if prefix in groups]
    if not known or groups - {*PREFIXES, *BESIDE}:
        return ""
    if len(known) > 1 and _inside(tensors, known[0]) != _inside(tensors, known[1]):
        return ""
    return f"{known[0]}."


def _inside(tensors: Mapping[str, Tensor], group: str) -> set[str]:
    """The names below a prefix, without the counters of averages."""
    names = {name.removeprefix(f"{group}.") for name in tensors if name.startswith(f"{group}.")}
    return {name.removeprefix("module.") for name in names if name not in BESIDE}


def _check_tensor(name: str, value: Tensor, path: Path, size: int) -> None:
    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise FileError(f"weights are not plain numbers ({path}, {name} is {value.dtype}, {value.layout}); use float weights")
    if value.numel() * value.element_size() > size:
        raise FileError(
            f"weights are larger than their file ({path}, {name}: {value.numel():,} values, {size:,} bytes); the file is damaged"
        )


def _check_finite(name: str, value: Tensor, path: Path) -> None:
    if value.is_floating_point() and (bad := int((~torch.isfinite(value)).sum())):
        raise FileError(
            f"weights are not finite ({path}, {name}: {bad:,} of {value.numel():,} values are NaN or infinite); "
            "use an earlier checkpoint"
        )


def _first(names: list[str], n: int = 6) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
