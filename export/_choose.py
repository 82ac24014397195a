"""Select a calibration: each method on several numbers of images, compared on validation images."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from zoo import files, runtimes
from zoo.console import print_line
from zoo.errors import DiskError
from zoo.export import _accuracy, _bias, _cases, _external, _graph, _job, _parity, _quantise, _session
from zoo.spec import Split

VALIDATION = 2000
LARGE = 64
"""Side in pixels above which fewer images are used."""


@dataclass(frozen=True)
class Chosen:
    """The best calibration, its quantised graph, and the selecting measurements."""

    ranges: _quantise.Ranges
    graph: ModelProto
    images: np.ndarray
    """Calibration images as the file takes them."""
    val: Split
    exact: np.ndarray
    """(N, classes) float32 outputs of the validation images."""
    accuracy: float
    """Of ``graph`` on ``val``, in [0, 1]; without targets the share of images with float32's class."""
    reference: float
    """The same of float32."""
    apart: float
    """Of ``graph`` from ``exact`` (:func:`difference`)."""
    facts: dict[str, Any]


def choose(job: _job.Job) -> Chosen:
    """The 8 bit graph with the best accuracy on validation images, over methods and numbers of calibration images.

    Equal accuracy is decided by the mean |difference| of the outputs from float32.

    Raises:
        DataError: no training images. DisagreeError: the float32 graph does not run at each batch size.
    """
    subject, exported = job.subject, job.exported
    train = _job.need_training_images(subject, "int8")
    small = subject.shape[-1] <= LARGE
    counts: Sequence[int] = _quantise.COUNTS if small else _quantise.COUNTS[:1]
    order = np.random.default_rng(job.seed).permutation(len(train))[: counts[-1]]
    given = _cases.fed(np.asarray(train.images[order]), exported)
    counts = sorted({min(count, len(given)) for count in counts})
    assert subject.val is not None
    val = _cases.spread(subject.val, VALIDATION if small else VALIDATION // 8)
    with _session.first_run(subject.name):  # else a graph with a fixed batch fails in the calibrator
        answer = _accuracy.answer_of(job.exact, exported)
        answer(np.asarray(val.images[:1]))
        exact = _cases.outputs(answer, val)
    val = Split(val.images, np.where(val.targets < 0, exact.argmax(1), val.targets), [])
    kind = {"train": "training"}.get(subject.split, subject.split)
    held = kind if subject.val is subject.train else "validation"
    tried_on = f"{len(val):,} {held} images"
    print_line(f"int8     calibrating by {', '.join(_quantise.METHODS)} on {', '.join(map(str, counts))} {kind} images")
    if subject.split == "given" and subject.test is not None:
        print_line(
            "warning  int8 is calibrated on the images that it is tested on: its accuracy is optimistic (in Python: calibration=)"
        )
    tried: list[dict[str, Any]] = []
    narrow: bool | None = None
    means = _bias.input_means(job.exact, given)
    best: tuple[tuple[float, float], _quantise.Ranges, ModelProto, float, dict[str, Any]] | None = None
    for method in _quantise.METHODS:
        for ranges in calibrated(job.exact, given, method, counts):
            ranges = replace(ranges, means=means)
            narrow = _narrow(job, ranges, given) if narrow is None else narrow
            ranges = replace(ranges, narrow=narrow)
            made = _quantise.quantise(job.exact, ranges)
            got = _cases.outputs(_accuracy.answer_of(made, exported), val)
            right, apart = float((got.argmax(1) == val.targets).mean()), float(np.abs(got - exact).mean())
            print_line(f"int8     {method}, {ranges.count}: {100 * right:.2f} % of {tried_on}, mean |difference| {apart:.2g}")
            tried.append({"method": method, "images": ranges.count, "accuracy": round(right, 6), "mean_abs": round(apart, 6)})
            if best is None or (right, -apart) > best[0]:
                best = ((right, -apart), ranges, made, difference(got, exact, exported), tried[-1])
    assert best is not None
    facts = {
        "method": best[4]["method"], "images": best[4]["images"], "seed": job.seed, "split": subject.split, "activations": "uint8",
        "weights": f"{7 if narrow else 8} bits per channel", "chosen_on": tried_on, "tried": tried,
    }  # fmt: skip
    reference = float((exact.argmax(1) == val.targets).mean())
    return Chosen(best[1], best[2], given, val, exact, best[0][0], reference, best[3], facts)


def _narrow(job: _job.Job, ranges: _quantise.Ranges, given: np.ndarray) -> bool:
    """Whether weights have 7 bits: those of the run's quantisation-aware training, unless 8 are wrong on this CPU or not wanted."""
    trained = job.subject.qat_bits
    if trained == 7:
        print_line("int8     weights in 7 bits, for which the run was trained")
        return True
    narrow = job.reduce_range or _quantise.saturate(job.exact, ranges, given)
    if narrow and trained:
        print_line("warning  the run was trained for weights of 8 bits, this file has 7; train it for them: --qat qat_bits=7")
    return narrow


def difference(got: np.ndarray, exact: np.ndarray, exported: _graph.Exported) -> float:
    """Difference of outputs (N, classes) that 99 % of the images do not exceed, in the unit of :mod:`zoo.export._parity`."""
    unit = _parity.scale(exact, probabilities=exported.softmax)
    return float(np.quantile(np.abs(got - exact).max(1), _parity.CALIBRATED)) / unit


def calibrated(graph: ModelProto, images: np.ndarray, method: str, counts: Sequence[int]) -> Iterator[_quantise.Ranges]:
    """:func:`zoo.export._quantise.calibrate`, from the cache if available."""
    path = files.cache_folder() / "calibration" / f"{_digest(graph, images, method, counts)}.json"
    if kept := _read(path, counts):
        print_line(f"int8     {method}: ranges from {path}")
        for count in counts:
            if limits := kept[str(count)]:
                yield _quantise.from_limits(method, count, limits)
        return
    found: dict[str, dict[str, list[float]]] = {str(count): {} for count in counts}  # empty: omitted
    for ranges in _quantise.calibrate(graph, images, method=method, counts=counts):
        found[str(ranges.count)] = _quantise.limits(ranges)
        yield _quantise.from_limits(method, ranges.count, found[str(ranges.count)])
    with contextlib.suppress(OSError, DiskError):  # a failure to write the cache is ignored
        path.parent.mkdir(parents=True, exist_ok=True)
        files.publish_text(path, json.dumps(found))


def _digest(graph: ModelProto, images: np.ndarray, method: str, counts: Sequence[int]) -> str:
    """sha256 of everything that ranges depend on."""
    version = runtimes.onnxruntime().__version__
    found = hashlib.sha256(f"{version} {method} {list(counts)} {images.dtype} {images.shape}\n".encode())
    found.update(images.tobytes())
    for tensor in graph.graph.initializer:
        found.update(tensor.raw_data)
    found.update(_external.without_weights(graph).SerializeToString(deterministic=True))
    return found.hexdigest()


def _read(path: Path, counts: Sequence[int]) -> dict[str, dict[str, list[float]]] | None:
    """The content of the cache, or None; a damaged file is ignored."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kept = [found[str(count)] for count in counts]  # an empty one was omitted, a missing one is damage
        return found if any(kept) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
