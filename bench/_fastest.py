"""``zoo export --fastest``: export and time every available target, and keep the fastest within the accuracy bound."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import zoo.export
from zoo import files, registry
from zoo.bench import _timing
from zoo.console import print_line
from zoo.errors import BusyError, UsageError, ZooError
from zoo.export import Receipt, _cases, _job, _pipeline
from zoo.run import Run
from zoo.spec import TargetSpec

NOT_DEPLOYED = {"pt2"}
"""Formats that PyTorch runs, slower than all others."""


def fastest(
    run: Run, *, preprocess: str = "normalize", softmax: bool = False, max_drop: float = 0.5, batch: int = 1, seconds: float = 3.0,
    images: int = 1000, full_test: bool = False, seed: int = 0, force: bool = False,
) -> tuple[Receipt, list[dict[str, Any]]]:  # fmt: skip
    """Write the fastest file under its usual name where :func:`zoo.export.onnx` would; all others stay in a temporary folder.

    Returns:
        Its receipt, and a row per target with ``format``, ``precision``, ``median_ms`` of one batch, ``drop`` in points and
        ``chosen``.

    Raises:
        BusyError: the fastest file exists and ``force`` is not set; before any work if every possible file exists. UsageError:
            no target is left.
    """
    there = {
        key: fields for key, fields in registry.targets().items() if key[0] not in NOT_DEPLOYED and _installed(key, fields)
    }
    place = _checked_place(run, there, force=force)
    subject = _job.of_run(run, images)
    job = _pipeline.job_of(subject, preprocess, softmax=softmax, full_test=full_test, seed=seed, max_drop=max_drop)
    with tempfile.TemporaryDirectory() as folder:
        made: dict[tuple[str, str], Receipt] = {}
        for key, fields in there.items():
            if receipt := _tried(key, fields, subject, job, Path(folder)):
                made[key] = receipt
        if not made:
            raise UsageError("no export target is left (see the reasons above); correct the model, or install onnxruntime")
        fed = _cases.fed(subject.images[:batch], job.exported)
        calls: dict[str, Callable[[], object]] = {}
        for key, receipt in made.items():
            answer = registry.find_target(*key).answer(receipt.path)
            calls[" ".join(key)] = partial(answer, fed)
        samples = _timing.interleave(calls, seconds=seconds)
        best = min(made, key=lambda key: samples[" ".join(key)].median)
        rows = [
            {
                "format": key[0], "precision": key[1], "median_ms": _timing.rounded(samples[" ".join(key)].median / 1e6),
                "drop": (receipt.test or {}).get("drop", 0.0), "chosen": "yes" if key == best else "",
            }
            for key, receipt in made.items()
        ]  # fmt: skip
        ranked = sorted(rows, key=lambda row: float(row["median_ms"]))
        measured = ", ".join(f"{row['format']} {row['precision']} {row['median_ms']} ms" for row in ranked)
        return _kept(made[best], place, best, measured, force=force), rows


def _installed(key: tuple[str, str], fields: dict[str, Any]) -> bool:
    """Whether the packages of a target are installed; prints the first that is not."""
    missing = [package for package in fields.get("needs", ()) if importlib.util.find_spec(package) is None]
    if missing:
        print_line(f"skipped  {' '.join(key)} ({missing[0]} is not installed)")
    return not missing


def _tried(key: tuple[str, str], fields: dict[str, Any], subject: _job.Subject, job: _job.Job, folder: Path) -> Receipt | None:
    """The receipt of one target in its own folder, or None, with the reason printed, if it fails."""
    name = " ".join(key)
    place = folder / name.replace(" ", "-")
    place.mkdir()
    job.calibration = None
    try:
        return _pipeline.export(registry.find_target(*key), subject, place / f"model{fields['suffix']}", job, force=True)
    except ZooError as error:
        print_line(f"skipped  {name}: {error}")
        return None


def _checked_place(run: Run, there: dict[tuple[str, str], dict[str, Any]], *, force: bool) -> Path:
    """The folder for the fastest file; DiskError if nothing can be written there, BusyError if every possible file exists.

    A single one that exists is only reported: another may be the fastest.
    """
    place = zoo.export.default_folder(run)
    files.check_writable(place / "model.onnx")
    found = [_existing(place / f"model{fields['suffix']}", registry.find_target(*key).TARGET) for key, fields in there.items()]
    names = ", ".join(path.name for path in found if path)
    if names and not force:
        if all(found):
            raise BusyError(f"every possible file exists ({place}: {names}); use --force to replace the fastest")
        print_line(f"warning  files exist and are replaced only with --force ({place}: {names})")
    return place


def _existing(path: Path, target: TargetSpec) -> Path | None:
    """The first file of a target at ``path`` that exists."""
    return next((each for each in (path, *(path.with_suffix(end) for end in target.beside)) if each.exists()), None)


def _kept(receipt: Receipt, folder: Path, key: tuple[str, str], measured: str, *, force: bool) -> Receipt:
    """The files of ``receipt`` published in ``folder``, the first one last; BusyError with what was ``measured`` if one exists."""
    out = folder / receipt.path.name
    there = _existing(out, registry.find_target(*key).TARGET)
    if there and there.is_dir():
        raise UsageError(f"output is a folder ({there}); rename it: --fastest writes a file of this name")
    if there and not force:
        raise BusyError(f"file exists ({there}, {' '.join(key)} is the fastest: {measured}); use --force to replace it")
    for name in reversed(receipt.files):
        files.publish(folder / name, partial(shutil.copyfile, receipt.path.parent / name))
    return dataclasses.replace(receipt, path=out)
