"""What a run is resumed from: everything that training changes, out of its parts and back into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoo import tensor_files
from zoo.console import print_line
from zoo.errors import DataError, FileError
from zoo.training import checkpoint, features
from zoo.training.loop import Totals

if TYPE_CHECKING:
    from zoo.training.session import Trainer

SAMPLER_STATE = ("p", "next_p", "seen")


def pack(parts: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name and JSON-able facts, for :func:`zoo.training.checkpoint.save_state`."""
    tensors = {f"model.{name}": value for name, value in parts.model.state_dict().items()}
    packed, scalars = checkpoint.pack_optimizer(parts.step.optimizer)
    tensors |= {f"optim.{name}": value for name, value in packed.items()}
    if parts.ema:
        tensors |= {f"ema.{name}": value for name, value in parts.ema.state_dict().items()}
    # the class weights come from the recipe and the epoch
    tensors |= {f"loss.{name}": value for name, value in parts.loss.state_dict().items() if name != "weight"}
    if parts.sampler:
        tensors |= {f"sampler.{name}": torch.from_numpy(getattr(parts.sampler, name)) for name in SAMPLER_STATE}
    totals = parts.totals or Totals()
    meta = {
        "epoch": parts.epoch, "skip": parts.skip, "totals": [totals.loss, totals.correct, totals.seen], "best": parts.best,
        "best_epoch": parts.best_epoch, "seconds": parts.seconds, "optim": scalars, **_identity(parts), **_setting(parts),
        "data_digest": parts.data.digest, "frozen": parts.proof,
        "scaler": parts.step.scaler.state_dict() if parts.step.scaler else None,
    }  # fmt: skip
    return tensors, meta


def _identity(parts: Trainer) -> dict[str, Any]:
    """What must be the same for a state to fit."""
    return {"model": parts.recipe.model, "classes": len(parts.data.classes), "optimizer": parts.recipe.optim.name}


def _setting(parts: Trainer) -> dict[str, Any]:
    """What must be the same for a state to go on with the same bits."""
    return {
        "threads": torch.get_num_threads(), "torch": torch.__version__, "device": parts.device.type,
        "precision": parts.precision, "processes": parts.team.size,
    }  # fmt: skip


def restore(parts: Trainer) -> bool:
    """Put the newest good state back; False if the run is already complete."""
    tensors, meta, warnings = checkpoint.load_state(parts.folder)
    for warning in warnings:
        print_line(f"warning  {warning}")
    mine = _identity(parts)
    theirs = {key: meta.get(key, value) for key, value in mine.items()}
    if theirs != mine:
        there, here = ("/".join(map(str, each.values())) for each in (theirs, mine))
        raise FileError(f"checkpoint is {there}, run is {here} ({parts.folder}); resume with the settings of the checkpoint")
    if meta["data_digest"] != parts.data.digest:
        raise DataError(
            f"data changed since the run began ({parts.data.name}, {_changes(parts)}); restore it or train a new run"
        )
    setting = _setting(parts)
    if moved := [f"{key} {meta[key]} -> {value}" for key, value in setting.items() if meta.get(key, value) != value]:
        print_line(f"resume   not bit-identical: {', '.join(moved)}")
    if selector := features.due(parts, meta["epoch"]):
        features.release(parts, selector)
    tensor_files.load_into(parts.model, _part(tensors, "model"), parts.folder)
    checkpoint.unpack_optimizer(parts.step.optimizer, _part(tensors, "optim"), meta["optim"])
    if parts.ema:
        parts.ema.load_state_dict(_part(tensors, "ema"))
    parts.loss.load_state_dict(_part(tensors, "loss"), strict=False)  # not strict: "weight" is not in it
    if parts.sampler:
        for name, value in _part(tensors, "sampler").items():
            getattr(parts.sampler, name)[:] = value.numpy()
    if parts.step.scaler and meta["scaler"]:
        parts.step.scaler.load_state_dict(meta["scaler"])
    parts.epoch, parts.skip, parts.totals = meta["epoch"], meta["skip"], Totals(*meta["totals"])
    parts.proof = meta["frozen"]
    parts.best, parts.best_epoch, parts.seconds = meta["best"], meta["best_epoch"], meta["seconds"]
    if parts.complete and (parts.folder / "result.json").is_file():
        return False
    print_line(f"resume   epoch {parts.epoch} done, step {parts.skip} of {len(parts.batches)} of the next" if parts.skip else
        f"resume   epoch {parts.epoch} of {parts.recipe.epochs} done")  # fmt: skip
    return True


def _changes(parts: Trainer) -> str:
    """How many images were added, removed and changed since the run's manifest was written."""
    path = parts.folder / "last" / "manifest.npy"
    if not path.is_file() or parts.data.manifest is None:
        return f"digest {parts.data.digest[:12]}"
    before, now = (dict(each.tolist()) for each in (np.load(path), parts.data.manifest))
    changed = sum(now[name] != content for name, content in before.items() if name in now)
    return f"{len(now.keys() - before.keys())} added, {len(before.keys() - now.keys())} removed, {changed} changed"


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
