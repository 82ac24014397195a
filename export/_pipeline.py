"""The pipeline of every exported file: trace, check against PyTorch, test, publish."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from zoo import files, machine
from zoo.console import print_line
from zoo.errors import BusyError, DisagreeError, UsageError
from zoo.export import Receipt, _accuracy, _cases, _explain, _graph, _job, _onnx, _parity, _session
from zoo.export._job import Job, Subject
from zoo.spec import TargetSpec

SLOWER = 1.05
"""Time of a lossy precision relative to float32 from which it is reported as slower."""


@machine.torch_defaults()
def export(target: Any, subject: Subject, out: Path, job: Job, *, force: bool) -> Receipt:
    """Write ``job`` by ``target``, a module of this folder with ``TARGET``, ``make``, ``write`` and ``answer``.

    Raises:
        See :func:`zoo.export.onnx`. In each case nothing is published and an existing file is unchanged.
    """
    began, spec, exported = time.monotonic(), target.TARGET, job.exported
    if job.reduce_range and not spec.calibrated:
        raise UsageError(f"--reduce-range applies to int8 only (precision {spec.precision}); add --precision int8, or omit it")
    machine.keep_memory()
    subject.check_weights()
    opset = job.opset if spec.format == "onnx" else 0
    print_line(f"trace    {subject.name}, {f'opset {opset}' if opset else spec.format}, preprocess {exported.preprocess}")
    made, parity, test = accepted(target, job, out.name)
    facts = _job.facts(subject, exported, opset=job.opset, frozen=dict(subject.frozen)) | {
        "precision": spec.precision, "parity": json.dumps(parity.as_dict() | {"images": subject.source}), "test": json.dumps(test),
        "calibration": json.dumps(job.calibration),
    }  # fmt: skip
    print_line(f"check    {out}")
    written = (
        target.publish(made, out, facts, job) if hasattr(target, "publish") else _published(target, made, out, facts, force)
    )
    layers = None
    if job.explain and isinstance(made, ModelProto):
        layers = _explain.rows(job, made)
        title = f"{subject.name}: error per layer in {spec.precision}"
        _explain.save(layers, out, title)
    return Receipt(
        path=out, bytes=sum(each.stat().st_size for each in written), files=tuple(each.name for each in written), format=spec.format,
        precision=spec.precision, opset=opset, ir_version=made.ir_version if opset else 0, preprocess=exported.preprocess,
        batches=parity.batches, agree=parity.agree, n=parity.n, ties=parity.ties, max_abs=parity.max_abs, scale=parity.scale,
        images=subject.source,
        seconds=round(time.monotonic() - began, 2), test=test, calibration=job.calibration, layers=layers,
        run=subject.accuracy,
    )  # fmt: skip


class TooLossy(DisagreeError):
    """A graph differs or loses accuracy more than permitted; another one may not."""


def accepted(target: Any, job: Job, name: str) -> tuple[Any, _parity.Parity, dict[str, Any] | None]:
    """What ``target`` makes, with its checks; or, if that is too lossy, the first of ``target.others`` that does not."""
    made = target.make(job)
    others = target.others(job) if hasattr(target, "others") else iter(())
    cases = _cases.cases(job.exported, job.subject.images)
    cases = [case for case in cases if case.counted or not target.TARGET.calibrated]
    while True:
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / name
            target.write(made, draft, {})
            try:
                with _session.first_run(draft):
                    answer = _accuracy.of_images(target.answer(draft), job.exported)
                    parity = _checked(target.TARGET, made, job, cases, answer)
                return made, parity, _tested(target.TARGET, job, answer, parity)
            except TooLossy as error:
                made, measure = next(others, (None, ""))
                if made is None:
                    raise
                reason = str(error).partition("; raise ")[0].partition("; nothing ")[0]
                print_line(f"repair   {reason}: now {measure}")


def check_free(out: Path, spec: TargetSpec, *, force: bool) -> None:
    """BusyError if a file exists and may not be replaced; UsageError if it is a folder; DiskError if none can be written."""
    for path in (out, *(out.with_suffix(suffix) for suffix in spec.beside)):
        if path.is_dir():
            raise UsageError(f"output is a folder ({path.absolute()}); name a file, e.g. --out {path / f'model{spec.suffix}'}")
        if path.exists() and not force:
            raise BusyError(f"file exists ({path}); replace it with --force (in Python force=True), or name another file")
        files.check_writable(path)


def _checked(spec: TargetSpec, made: Any, job: Job, cases: Sequence[_parity.Case], answer: _cases.Answer) -> _parity.Parity:
    """The parity of a file; DisagreeError, for ONNX with the first node that differs, if it fails."""
    share = _parity.CALIBRATED if spec.calibrated else 1.0
    parity = _parity.check(cases, answer, tolerance=spec.tolerance, probabilities=job.exported.softmax, share=share)
    if not parity.holds:
        where, unit = f"{spec.format} {spec.precision}", "" if job.exported.softmax else " sd"
        if isinstance(made, ModelProto):
            where = f"first node that differs: {_first_difference(made, job.subject, job.exported, parity)}"
        kind = TooLossy if spec.calibrated and np.isfinite(parity.max_abs) else DisagreeError
        raise kind(
            f"exported model differs from PyTorch (max |difference| {parity.max_abs:.2g}{unit}, allowed {parity.tolerance:.0e}, "
            f"exceeded by {parity.far:,} images, other class {parity.wrong:,} times; {where}); nothing published"
        )
    return parity


def _first_difference(graph: ModelProto, subject: Subject, exported: _graph.Exported, parity: _parity.Parity) -> str:
    fed = _cases.fed(parity.worst, exported)
    same = parity.worst.shape[1:3] == subject.images.shape[1:3]
    inputs = _cases.normalised(parity.worst, exported) if same else exported.prepare(torch.from_numpy(fed))
    return _parity.first_difference(graph, fed, exported.model, inputs, parity.tolerance)


def _tested(spec: TargetSpec, job: Job, answer: _cases.Answer, parity: _parity.Parity) -> dict[str, Any] | None:
    """Accuracy on test images, for a precision other than fp32 compared with float32; None without targets.

    float32 agrees with PyTorch, so the images of the comparison are enough unless the job requires all; the accepted loss
    of the other precisions is small against the interval of few images, so theirs is measured on the whole test set.

    Raises:
        TooLossy: accuracy drops by more than the job permits; without targets, too many images change class.
    """
    lossy, test = spec.precision != "fp32", job.subject.test
    if test is None:
        changed = 100 * (1 - parity.agree / parity.n)
        if lossy and changed > job.max_drop:
            raise TooLossy(
                f"{changed:.2f} % of {parity.n:,} images change class (allowed {job.max_drop:g}); raise --max-drop or use fp32; "
                "nothing published"
            )
        return None
    at = job.subject.at
    if at is not None and len(at) < len(test) and not lossy and not job.full_test:
        return _accuracy.row(parity.outputs.argmax(1) == test.targets[at]) | {"of": len(test)}
    known = {} if at is None else dict(zip(at.tolist(), parity.outputs))
    hits = _accuracy.hits(answer, test, spec.precision if spec.format == "onnx" else spec.format, known)
    reference = None
    if lossy:
        exact = _accuracy.answer_of(job.exact, job.exported)
        reference = job.exact_hits = job.exact_hits if job.exact_hits is not None else _accuracy.hits(exact, test, "fp32")
        if (times := _accuracy.slower(answer, exact, job.subject.images)) > SLOWER:
            print_line(
                f"warning  {spec.precision} takes {times:.2f} times as long as fp32 on this machine: it is smaller, but not faster"
            )
    found = _accuracy.compared(hits, reference)
    if found.get("drop", 0.0) > job.max_drop:
        raise TooLossy(
            f"accuracy drops by {found['drop']:.2f} points (test {100 * found['accuracy']:.2f} %, float32 "
            f"{100 * found['fp32']['accuracy']:.2f} %, allowed {job.max_drop:g}); raise --max-drop or use fp32; nothing published"
        )
    return found


def _published(target: Any, made: Any, out: Path, facts: dict[str, str], force: bool) -> list[Path]:
    """The files of a target, written in a temporary folder and published under one lock, the first one last."""
    with tempfile.TemporaryDirectory() as folder:
        target.write(made, Path(folder) / out.name, facts)
        parts = [Path(folder) / out.name, *((Path(folder) / out.name).with_suffix(suffix) for suffix in target.TARGET.beside)]
        check_free(out, target.TARGET, force=force)
        with files.alone(out):  # else graph and weights could be of different exports
            for part in parts[1:]:
                # else a crash here would combine an old graph with new weights
                files.publish(
                    out.with_suffix(part.suffix), partial(shutil.copyfile, part), lambda _: out.unlink(missing_ok=True)
                )
            files.publish(out, partial(shutil.copyfile, parts[0]))
    return [out, *(out.with_suffix(part.suffix) for part in parts[1:])]


@machine.torch_defaults()
def job_of(subject: Subject, preprocess: str | None, *, softmax: bool, opset: int = _onnx.OPSET, **options: Any) -> Job:
    """A job, by default with normalisation for a run and none for a module.

    Raises:
        UsageError: an unknown kind of preprocessing, or one that needs other images.
    """
    from zoo.errors import did_you_mean

    preprocess = preprocess or ("none" if subject.module else "normalize")
    known: Sequence[str] = tuple(_graph.PREPROCESS)
    if preprocess not in known:
        raise UsageError(f"no preprocess {preprocess!r}{did_you_mean(preprocess, known)}; use one of {', '.join(known)}")
    if preprocess != "none" and subject.images.dtype != np.uint8:
        raise UsageError(
            f"preprocess {preprocess} needs uint8 images (N, H, W, 3), mean and std; give them, or preprocess='none'"
        )
    return Job(subject, subject.wrapped(preprocess, softmax=softmax), opset, **options)
