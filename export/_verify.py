"""Repeat the checks recorded in an exported file, without a network, and compare."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import onnx
from torch import nn

from zoo import recipe as recipes
from zoo import registry
from zoo import run as engine
from zoo.errors import DataError, FileError, UsageError
from zoo.export import _accuracy, _cases, _facts, _graph, _guard, _parity, _wire
from zoo.recipe_types import converted
from zoo.run import Run
from zoo.spec import Split
from zoo.training import freezing

SLACK = 1e-3
"""Share of the test images that may change class on another processor."""


@dataclass(frozen=True)
class Check:
    """One check: the recorded result, the new result, and whether they agree (``code`` 0), the check could not run, or they differ (4 or 8)."""

    name: str
    state: str
    claimed: str
    found: str
    code: int = 0


class ParityClaim(msgspec.Struct):
    """Recorded comparison with PyTorch, as far as it is used here."""

    agree: int
    n: Annotated[int, msgspec.Meta(gt=0, le=1 << 24)]
    max_abs: float


class Claim(msgspec.Struct):
    """Recorded accuracy on the test images."""

    n: int
    correct: int
    accuracy: float


class TestClaim(Claim):
    """The same with the float32 file's and the difference in points, for fp16 and int8."""

    drop: float | None = None
    fp32: Claim | None = None
    of: int | None = None
    """Size of the test set, if ``n`` images are a part of it."""


CLAIMS: dict[str, Any] = {"parity": ParityClaim, "test": TestClaim | None}


def verify(
    path: Path, *, run: Run | None = None, data_dir: Path | None = None, max_memory: int = 0, timeout: float = 60.0
) -> list[Check]:
    """Structure, digests, frozen tensors and parity with ``run`` if given, accuracy on the data if it is available.

    The limits apply to a first run on noise in a child process. Parity and accuracy open the file in this process, without
    limits: a model that behaves differently on real images or larger batches is not stopped.

    Raises:
        FileError: not an ONNX file of zoo, rejected by :mod:`zoo.export._guard`, or not runnable within the limits.
    """
    _guard.trial(path, max_memory=max_memory, timeout=timeout)
    raw = memoryview(_guard.read(path))
    facts = _wire.metadata(raw)
    if not {"content_sha256", "receipt_sha256"} & facts.keys():
        raise FileError(f"no zoo receipt in the model ({path}); name a file written by: zoo export --onnx")
    checks = [_structure(path, raw), *_digests(facts, raw)]
    if any(check.code for check in checks):
        return checks
    if facts.get("precision") and "recipe" not in facts:
        return [
            *checks,
            Check(
                "parity with PyTorch",
                "not run",
                "see metadata",
                "the file was made from a module, not from a run; compare it in Python",
            ),
        ]
    try:
        known = _facts.read(facts, path)
        own = _own(path, facts, known, data_dir, run)
        steps = known.preprocessing
        claims = {key: json.loads(facts[key]) for key in CLAIMS}
        for key, kind in CLAIMS.items():
            converted(claims[key], kind)
        frame = _graph.Exported(
            nn.Identity(), own.mean, own.std, size=steps.size, stored=steps.resize, preprocess=steps.mode, softmax=known.softmax
        )
        tolerance = registry.targets()["onnx", facts["precision"]]["tolerance"]
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"no zoo receipt in the model ({path}, {str(error)[:60]}); export it with: zoo export --onnx"
        ) from error
    checks += _parity_checks(path, facts, run, frame, claims["parity"], tolerance, data_dir)
    return [*checks, *_accuracy_checks(path, facts, own, frame, claims["test"], run)]


def _structure(path: Path, raw: memoryview) -> Check:
    model = onnx.ModelProto.FromString(bytes(raw))  # the file itself, at most 2 GiB
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker raises several types
        return Check("structure", "differs", "valid ONNX", " ".join(str(error).split())[:80], 4)
    imports = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    return Check("structure", "ok", "valid ONNX", f"{len(model.graph.node)} nodes, {imports}, IR {model.ir_version}")


def _digests(facts: dict[str, str], raw: memoryview) -> list[Check]:
    found = {"content_sha256": _wire.content_sha256(raw), "receipt_sha256": _wire.receipt_sha256(facts)}
    names = {"content_sha256": "weights and graph", "receipt_sha256": "receipt"}
    checks = []
    for key, value in found.items():
        claimed = facts.get(key, "")
        fits = claimed == value
        checks.append(Check(names[key], "ok" if fits else "differs", claimed[:12] or "none", value[:12], 0 if fits else 4))
    return checks


def _own(path: Path, facts: dict[str, str], known: _facts.Facts, data_dir: Path | None, run: Run | None) -> Run:
    """A run reconstructed from the file's metadata, without a model; its data are in ``data_dir`` or the folder of ``run``'s recipe."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "recipe.toml"
        text.write_text(facts["recipe"], encoding="utf-8")
        recipe = recipes.read(text)
    place = str(data_dir or "") or (run.recipe.data.dir if run is not None else "")
    recipe = msgspec.structs.replace(recipe, data=msgspec.structs.replace(recipe.data, dir=place))
    steps = known.preprocessing
    rows = run.metrics if run is not None and _graph.weights_sha256(run.model) == facts["weights_sha256"] else []
    env = run.env if rows and run is not None else {}
    size = (3, steps.size, steps.size)
    return Run(path.parent, nn.Identity(), recipe, known.classes, size, steps.mean, steps.std, rows, env)


def _parity_checks(
    path: Path,
    facts: dict[str, str],
    run: Run | None,
    frame: _graph.Exported,
    claim: Any,
    tolerance: float,
    data_dir: Path | None,
) -> list[Check]:
    recorded = _parity.words(claim["agree"], claim["n"], claim["max_abs"], probabilities=frame.softmax)
    if run is None:
        return [Check("parity with PyTorch", "not run", recorded, "the run was not found; pass it with --run")]
    sha = _graph.weights_sha256(run.model)
    if sha != facts["weights_sha256"]:
        return [Check("weights of the run", "differs", facts["weights_sha256"][:12], f"{sha[:12]} in {run.path}", 8)]
    frozen = _frozen(run, json.loads(facts["frozen_sha256"]))
    if data_dir is not None:
        data = msgspec.structs.replace(run.recipe.data, dir=str(data_dir))
        run = dataclasses.replace(run, recipe=msgspec.structs.replace(run.recipe, data=data))
    seen = _cases.pictures(run, claim["n"])
    exported = _graph.of_run(run, stored=frame.stored, preprocess=frame.preprocess, softmax=frame.softmax)
    cases = [case for case in _cases.cases(exported, seen.pixels) if case.counted or facts["precision"] != "int8"]
    answer = _accuracy.answer_of(path, exported)
    share = _parity.CALIBRATED if facts["precision"] == "int8" else 1.0
    parity = _parity.check(cases, answer, tolerance=tolerance, probabilities=exported.softmax, share=share)
    fits = parity.holds
    found = _parity.words(parity.agree, parity.n, parity.max_abs, probabilities=exported.softmax)
    if fits and seen.data is None and claim.get("images") != _cases.NOISE:
        why = f"only on {parity.n} images of noise ({found}), as the run's data was not found; pass it with --data-dir"
        return [*frozen, Check("parity with PyTorch", "not run", recorded, why)]
    return [*frozen, Check("parity with PyTorch", "ok" if fits else "differs", recorded, found, 0 if fits else 8)]


def _frozen(run: Run, claim: dict[str, str]) -> list[Check]:
    """Recorded digests of frozen tensors against those of ``run``; empty if there are none."""
    if not claim:
        return []
    here = run.model.state_dict()
    known = freezing.frozen_digest(run.model, [name for name in claim if name in here])
    moved = [name for name, digest in claim.items() if known.get(name) != digest]
    found = f"{len(moved)} differ, first {moved[0]}" if moved else f"{len(claim)} unchanged"
    return [Check("frozen tensors", "differs" if moved else "ok", f"{len(claim)} tensors", found, 8 if moved else 0)]


def _accuracy_checks(
    path: Path, facts: dict[str, str], own: Run, frame: _graph.Exported, claim: Any, run: Run | None
) -> list[Check]:
    recorded = f"{100 * claim['accuracy']:.2f} % of {claim['n']:,}" if claim else "none"
    try:
        data = own.dataset()
    except (DataError, UsageError) as error:
        why = str(error).partition(";")[0][:120]  # the advice after it is for zoo train
        return [Check("accuracy", "not run", recorded, f"the data was not found ({why}); pass it with --data-dir")]
    if beside := _accuracy.of_run(own):
        recorded += f" ({beside})"
    if facts["data_sha256"] and data.digest != facts["data_sha256"]:
        return [Check("data", "differs", facts["data_sha256"][:12], data.digest[:12], 8)]
    part = _cases.spread(data.test, claim["n"]) if claim and claim.get("of") == len(data.test) else data.test
    hits = _accuracy.hits(_accuracy.answer_of(path, frame), part, path.name)
    got, room = _accuracy.row(hits), max(1, SLACK * len(hits))
    fits = not claim or (got["n"] == claim["n"] and abs(got["correct"] - claim["correct"]) <= room)
    found = f"{100 * got['accuracy']:.2f} % of {got['n']:,} [{100 * got['low']:.2f}, {100 * got['high']:.2f}]"
    checks = [Check("accuracy", "ok" if fits else "differs", recorded, found, 0 if fits else 8)]
    return checks + _drop_checks(facts, own, frame, claim, run, hits, data.test) if claim and "drop" in claim else checks


def _drop_checks(
    facts: dict[str, str], own: Run, frame: _graph.Exported, claim: Any, run: Run | None, hits: np.ndarray, test: Split
) -> list[Check]:
    """Loss of fp16 or int8 against float32 on the test images; ``hits`` are those that the file classifies correctly."""
    recorded = f"{claim['drop']:+.2f} points from {100 * claim['fp32']['accuracy']:.2f} %"
    if run is None or _graph.weights_sha256(run.model) != facts["weights_sha256"]:
        return [Check("drop from fp32", "not run", recorded, "the run was not found; pass it with --run")]
    exported = _graph.of_run(run, stored=frame.stored, preprocess=frame.preprocess, softmax=frame.softmax)
    now = _accuracy.compared(hits, _accuracy.hits(_cases.right(exported), test, "PyTorch float32"))
    found = f"{now['drop']:+.2f} points from {100 * now['fp32']['accuracy']:.2f} %"
    fits = abs(now["drop"] - claim["drop"]) <= 100 * max(1, SLACK * len(hits)) / len(hits) + 1e-6
    return [Check("drop from fp32", "ok" if fits else "differs", recorded, found, 0 if fits else 8)]


def at_hand(path: Path, name: str | None) -> Run | None:
    """The given run, the run whose folder contains the file, or None."""
    if name is None and not (path.parent / "recipe.toml").is_file():
        return None
    return engine.load(name if name is not None else path.parent)
