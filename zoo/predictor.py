"""Classify image files with an exported ONNX file; needs onnxruntime, numpy and Pillow, but not torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.console import counted
from zoo.data._image import listed, read_image
from zoo.data._pixels import square
from zoo.errors import DataError, FileError
from zoo.export import _child, _facts, _guard, _session


@dataclass(frozen=True)
class Predictor:
    """An opened file with its metadata."""

    session: Any
    classes: tuple[str, ...]
    mode: str
    """``none``, ``normalize`` or ``full``: the preprocessing that the graph includes."""
    size: int
    """Side of the model's input; ``resize`` is the length of the shorter side before the centre crop."""
    resize: int
    mean: np.ndarray
    std: np.ndarray
    softmax: bool
    """Whether the outputs are probabilities."""

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(classes,) float64 of one image (H, W, 3) uint8 RGB of any size.

        Raises:
            TypeError: another type or shape. FileError: the outputs are not finite, or only one.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"image is {kind}; give an array (H, W, 3) of uint8, red first")
        name = self.session.get_inputs()[0].name
        outputs = np.asarray(self.session.run(None, {name: self.fed(image)})[0][0], np.float64)
        if not np.isfinite(outputs).all():
            raise FileError("model's output is not finite; train again, or export in fp32")
        if outputs.size < 2:  # as probabilities, one logit is always 100 %
            raise FileError("model returns one number per image; use a model with an output for each of at least two classes")
        if self.softmax:
            return outputs
        powers = np.exp(outputs - outputs.max())
        return powers / powers.sum()

    def fed(self, image: np.ndarray) -> np.ndarray:
        """The batch of one in the form of the graph: (1, H, W, 3) uint8 for ``full``, else (1, 3, size, size) float32."""
        if self.mode == "full":
            return np.ascontiguousarray(image[None])
        edge = (self.resize - self.size) // 2
        cut = square(image, self.resize)[edge : edge + self.size, edge : edge + self.size]
        values = cut.astype(np.float32) / np.float32(255)
        if self.mode == "none":
            values = (values - self.mean) / self.std
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)


def load(path: str | Path, *, device: str = "cpu", threads: int = 0) -> Predictor:
    """Open a file that zoo exported.

    Raises:
        FileError: missing, damaged, not exported by zoo, or its numbers of class names and outputs differ.
    """
    path = Path(path)
    session = _session.open_session(path, device, threads=threads)
    facts = _facts.read(session.get_modelmeta().custom_metadata_map, path)
    steps = facts.preprocessing
    found = Predictor(
        session, facts.classes, steps.mode, steps.size, steps.resize, np.array(steps.mean, np.float32),
        np.array(steps.std, np.float32), facts.softmax,
    )  # fmt: skip
    inputs, outputs = session.get_inputs()[0], session.get_outputs()[0]
    if len(inputs.shape) != 4 or inputs.type != ("tensor(uint8)" if found.mode == "full" else "tensor(float)"):
        raise FileError(f"preprocessing in the metadata does not match the model ({path}); export it again: zoo export --onnx")
    given = outputs.shape[-1] if outputs.shape else "a scalar"
    if given != len(found.classes):
        raise FileError(f"classes differ (names {len(found.classes)}, model {given}, {path}); export it again")
    return found


def predict(
    model: str | Path, images: Sequence[str | Path], *, top: int = 3, max_memory: int = 0, timeout: float = 60.0
) -> list[dict[str, Any]]:
    """For each image file ``{"file", "top": [(class, probability), ...]}``, or ``{"file", "error"}`` if it cannot be read.

    The model runs in a child process with ``max_memory`` MB (0: 1,024 and four times its size) and ``timeout`` seconds for
    opening it and for each image.

    Raises:
        FileError: the model file cannot be used, or not within these limits. TypeError: one path in place of several, or no
            path (for arrays: :meth:`Predictor.probabilities`). ValueError: ``top`` is below 1.
    """
    images = listed(images, top)
    model = Path(model)
    budget = _guard.memory(_guard.check(model), max_memory)
    _guard.check_receipt(model)
    request = {"model": str(model), "images": [str(path) for path in images], "top": top}
    found = _child.lines("zoo.predictor", request, model, max_memory=budget, timeout=timeout)
    return list(counted(found, len(images), "predict  classified"))


def answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """:func:`predict` in the child process; yields each answer when it is ready."""
    opened = load(Path(request["model"]))
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
