"""Classify image files with an ONNX file, of zoo or another tool; needs onnxruntime, numpy and Pillow, but not torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.console import counted, print_line, print_lines
from zoo.data._folders import stored_side
from zoo.data._image import listed, read_image
from zoo.data._pixels import square
from zoo.errors import DataError, FileError, UsageError
from zoo.export import _child, _facts, _feed, _guard, _input, _session, _wire
from zoo.export._feed import Feed
from zoo.export._input import Input

SUM = 1e-2
"""If a file does not state whether its outputs are probabilities, they are if none is negative and their sum is 1 within this."""


@dataclass(frozen=True)
class Predictor:
    """An open model file with its metadata."""

    session: Any
    feed: Feed
    input: Input
    resize: int
    """Length of the shorter side before the centre crop."""
    softmax: bool | None
    """Whether the outputs are probabilities; None: not stated, seen from their values."""
    remarks: tuple[str, ...] = ()
    """Choices for a file that leaves sizes open or has several outputs, as lines to print."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.input.classes

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(classes,) float64 of one image (H, W, 3) uint8 RGB of any size.

        Raises:
            TypeError: another type or shape. FileError: the outputs are not finite, or only one.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"image is {kind}; give an array (H, W, 3) of uint8, red first")
        batch = np.repeat(self.fed(image), self.feed.batch or 1, axis=0)
        outputs = np.asarray(self.session.run([self.feed.output], {self.feed.name: batch})[0][0], np.float64).reshape(-1)
        if not np.isfinite(outputs).all():
            raise FileError("model's output is not finite; train again, or export in fp32")
        if outputs.size < 2:  # as probabilities, one logit is always 100 %
            raise FileError("model returns one number per image; use a model with an output for each of at least two classes")
        if self.softmax or (self.softmax is None and outputs.min() >= 0 and abs(outputs.sum() - 1) < SUM):
            return outputs
        powers = np.exp(outputs - outputs.max())
        return powers / powers.sum()

    def fed(self, image: np.ndarray) -> np.ndarray:
        """The batch of one in the form of the graph: (1, H, W, 3) uint8 if it includes all preprocessing, else resized and cut."""
        return self.input.fed((image if self.input.whole else square(image, self.resize))[None])


def load(
    path: str | Path, *, device: str = "cpu", threads: int = 0, labels: str | Path | None = None, mean: Sequence[float] = (),
    std: Sequence[float] = (), resize: int = 0, size: int = 0,
) -> Predictor:  # fmt: skip
    """Open a file that classifies images.

    A file exported by zoo states its preprocessing. For any other file, pass ``mean`` and ``std`` per channel, for values scaled
    to [0, 1], unless the file takes bytes.

    Args:
        labels: text file with the class of each output, one per line (default: the file's, else their numbers).
        resize: pixels of the shorter side before the centre crop (default: 8/7 of the input's, 256 for 224).
        size: pixels of the input of a file that leaves them open (default: 224).

    Raises:
        UsageError: the normalisation is not known, or the file states otherwise. FileError: missing, damaged, not a classifier of
            square images, or its numbers of class names and outputs differ.
    """
    path = Path(path)
    session = _session.open_session(path, device, threads=threads)
    written = session.get_modelmeta().custom_metadata_map
    own = _facts.of_zoo(written)
    expected = len(_input.class_names(Path(labels)) if labels else _facts.names(written))
    feed = _feed.of(session, path, size=size, classes=0 if own else expected)
    _feed.check_size(feed, path, size, known=own)
    found = _of_zoo(session, feed, path) if own else _of_other(session, feed, path, written)
    if resize and found.resize:
        raise UsageError(f"--resize is known from the model ({path}); omit it")
    model = _input.normalised(found.input, mean, std)
    if 0 < resize < model.side:
        raise UsageError(f"--resize {resize} is below the size of the input ({path}, {model.side}); give at least {model.side}")
    names = _input.names(model, Path(labels) if labels else None) or tuple(map(str, range(model.outputs)))
    resize = found.resize or resize or stored_side(model.side)
    remarks = () if own else tuple(_feed.remarks(session, feed, path))
    return Predictor(session, feed, replace(model, classes=names), resize, found.softmax, remarks)


def _of_zoo(session: Any, feed: Feed, path: Path) -> Predictor:
    """A file with all metadata of zoo, which the graph must match."""
    facts = _facts.read(session.get_modelmeta().custom_metadata_map, path)
    steps = facts.preprocessing
    whole = steps.mode == "full"
    if len(session.get_inputs()[0].shape) != 4 or feed.dtype != ("uint8" if whole else "float32"):
        raise FileError(f"preprocessing in the metadata does not match the model ({path}); export it again: zoo export --onnx")
    declared = session.get_outputs()[0].shape
    if (given := declared[-1] if declared else "a scalar") != len(facts.classes):
        raise FileError(f"classes differ (names {len(facts.classes)}, model {given}, {path}); export it again")
    mean, std = (steps.mean, steps.std) if steps.mode == "none" else ((0.0,) * 3, (1.0,) * 3)
    known = Input(
        label=str(path), shape=feed.shape, dtype=feed.dtype, outputs=len(facts.classes), side=steps.size, mean=mean, std=std,
        classes=facts.classes, whole=whole,
    )  # fmt: skip
    return Predictor(session, feed, known, steps.resize, facts.softmax)


def _of_other(session: Any, feed: Feed, path: Path, written: Mapping[str, str]) -> Predictor:
    """A file whose preprocessing is not stated."""
    with _session.boundary(path):
        scores = _feed.scores(session, feed, path, "run it in onnxruntime")
    if scores.dtype.kind != "f":
        raise FileError(f"outputs are not floats ({path}, {feed.output}: {scores.dtype}); run it in onnxruntime")
    known = Input(label=str(path), shape=feed.shape, dtype=feed.dtype, outputs=scores[0].size, classes=_facts.names(written))
    return Predictor(session, feed, known, 0, {"true": True, "false": False}.get(written.get("softmax", "")))


def predict(
    model: str | Path, images: Sequence[str | Path], *, top: int = 3, max_memory: int = 0, timeout: float = 60.0, **given: Any
) -> list[dict[str, Any]]:
    """For each image file ``{"file", "top": [(class, probability), ...]}``, or ``{"file", "error"}`` if it cannot be read.

    The model runs in a child process with ``max_memory`` MB (0: 1,024 and four times its size) and ``timeout`` seconds for
    opening it and for each image. ``given`` are ``labels``, ``mean``, ``std``, ``resize`` and ``size`` of :func:`load`.

    Raises:
        FileError: the model file cannot be used, or not within these limits. UsageError: as :func:`load`. TypeError: one path in
            place of several, or no path (for arrays: :meth:`Predictor.probabilities`). ValueError: ``top`` is below 1.
    """
    return list(stream(model, listed(images, top), top=top, max_memory=max_memory, timeout=timeout, **given))


def stream(
    model: str | Path, images: Sequence[str | Path], *, top: int = 3, max_memory: int = 0, timeout: float = 60.0, **given: Any
) -> Iterator[dict[str, Any]]:
    """The answers of :func:`predict`, one by one."""
    model = Path(model)
    budget = _guard.memory(_guard.check(model), max_memory)
    _guard.check_receipt(model)
    if not given.get("labels") and not _facts.names(_wire.metadata(memoryview(_guard.read(model)))):
        print_line(f"classes  {model.name} has no class names: outputs are numbered from 0 (names: --classes FILE)")
    given = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    request = {"model": str(model), "images": [str(path) for path in images], "top": top, "given": given}
    found = _child.lines("zoo.predictor", request, model, max_memory=budget, timeout=timeout)
    print_lines(next(found)["remarks"])
    for answer in counted(found, len(images), "predict  classified"):
        yield answer | {"top": [tuple(each) for each in answer["top"]]} if "top" in answer else answer


def answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """:func:`predict` in the child process; yields each answer when it is ready."""
    opened = load(Path(request["model"]), **request["given"])
    yield {"remarks": opened.remarks}
    for path in request["images"]:
        try:
            image = read_image(Path(path), opened.resize)
        except DataError as error:
            yield {"file": path, "error": str(error)}
            continue
        with _session.boundary(request["model"]):
            shares = opened.probabilities(image)
        best = np.argsort(-shares, kind="stable")[: request["top"]]
        yield {"file": path, "top": [(opened.classes[i], round(float(shares[i]), 6)) for i in best]}


if __name__ == "__main__":
    _child.serve(answers)
