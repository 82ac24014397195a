"""Export a model to a file that is verified against PyTorch; a file that disagrees is never published."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from zoo.export._job import Subject
    from zoo.run import Run


COMPARED = 1000
"""Test images that are compared with PyTorch by default."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Record of an export and its checks."""

    path: Path
    bytes: int
    """Total size of all files."""
    files: tuple[str, ...]
    """Names of all files: that of ``path`` first, then the files next to it."""
    format: str
    precision: str
    opset: int
    """ONNX operator set; like ``ir_version``, 0 for other formats."""
    ir_version: int
    preprocess: str
    batches: tuple[int, ...]
    """Batch sizes of the check."""
    agree: int
    """Number of the ``n`` images that have the same class in the file and in PyTorch."""
    n: int
    ties: int
    """Number of images whose predicted class differs although the outputs agree within the tolerance: ties in PyTorch, or
    differences that the precision permits."""
    max_abs: float
    """Largest |difference| from PyTorch: of logits in standard deviations of PyTorch's logits, or of probabilities."""
    images: str
    """Description of the images."""
    seconds: float
    test: dict[str, Any] | None = None
    """Accuracy of the file on test images: n, correct, accuracy, low, high; also ``of``, the size of the test set, if ``n`` is smaller;
    for fp16 and int8 also ``fp32`` and ``drop`` (points)."""
    layers: list[dict[str, Any]] | None = None
    """With ``explain``: for each layer, its PyTorch module, kind and signal-to-noise ratios in dB."""
    calibration: dict[str, Any] | None = None
    """For int8: method, number of images, seed, and the accuracy of every method that was tried."""
    run: str = ""
    """Accuracy of the run in its own precision, as text."""
    scale: float = 1.0
    """Standard deviation of PyTorch's logits, the unit of ``max_abs``; 1 for probabilities."""

    def line(self) -> str:
        """The receipt in one line."""
        return " · ".join(f"test {text}" if topic == "test" else text for topic, text in self.lines().items())

    def lines(self) -> dict[str, str]:
        """The receipt as text by topic: file, agreement with PyTorch and, if measured, accuracy."""
        ties = f" ({self.ties} undecided)" if self.ties and self.precision == "fp32" else ""
        opset = f" · opset {self.opset}" if self.opset else ""
        right = ""
        if self.test:
            right = f"{100 * self.test['accuracy']:.2f} % [{100 * self.test['low']:.2f}, {100 * self.test['high']:.2f}]"
            if "drop" in self.test:
                right += f" (fp32 {100 * self.test['fp32']['accuracy']:.2f} %, drop {self.test['drop']:+.2f} points)"
            right += f" on {self.test['n']:,} of {self.test['of']:,} test images" if "of" in self.test else ""
            right += f" ({self.run})" if self.run else ""
        calibrated = ""
        if self.calibration:
            calibrated = f" · calibrated by {self.calibration['method']} on {self.calibration['images']}"
            calibrated += f" · {len(restored)} layers in float32" if (restored := self.calibration.get("restored")) else ""
        files = f"{len(self.files)} file{'s' if len(self.files) > 1 else ''} {self.bytes / 1e6:.1f} MB"
        batches, unit = ", ".join(map(str, self.batches)), "" if self.scale == 1.0 else " sd"
        found = {
            "export": f"{self.path}  {files} · {self.precision}{opset}{calibrated}",
            "verified": f"batch {batches} agree: {self.agree:,}/{self.n:,} classes{ties}, max |difference| {self.max_abs:.1e}{unit} · {self.images}",
        }
        return found | ({"test": right} if right else {})

    def as_dict(self) -> dict[str, Any]:
        """The fields, the path as text."""
        return dataclasses.asdict(self) | {"path": str(self.path)}


def onnx(
    model: Run | nn.Module,
    path: str | Path | None = None,
    *,
    precision: str = "fp32",
    external_data: bool = False,
    opset: int | None = None,
    target_ort: str | None = None,
    **options: Any,
) -> Receipt:
    """Write a model as one ONNX file (default for a run: ``model.onnx``, ``model.fp16.onnx`` or ``model.int8.onnx`` in its folder).

    Args:
        external_data: write the weights to a second file, such as ``model.3f2a90c1.onnx.data`` with the first digits of its SHA-1;
            automatic above 2 GB.
        opset: operator set, 18 to 23 (default: 20).
        target_ort: onnxruntime version, such as "1.17": use the newest operator set, up to the default, that it reads.
        options: those of :func:`program`.

    Raises:
        As in :func:`program`; also UsageError for an operator set that cannot be written.
    """
    from zoo.export import _onnx

    chosen = _onnx.check_opset(opset, target_ort)
    return program(model, path, fmt="onnx", precision=precision, external_data=external_data, opset=chosen, **options)


def program(
    model: Run | nn.Module, path: str | Path | None = None, *, fmt: str = "pt2", precision: str = "fp32", preprocess: str | None = None,
    softmax: bool = False, max_drop: float = 0.5, reduce_range: bool = False, explain: bool = False, seed: int = 0,
    force: bool = False, images: Any = COMPARED, full_test: bool = False, input: Sequence[int] = (), targets: Any = None,
    classes: Sequence[str] | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    calibration: Any = None, **written: Any,
) -> Receipt:  # fmt: skip
    """Write a model in the format ``fmt``: "onnx", "pt2" (torch.export), "openvino" or the format of an installed export target.

    Args:
        model: a run, or any module that maps float32 (N, \\*input) to logits (N, classes); the module is not changed.
        path: the file (default: in the run's folder, or in the current folder for a run of the hub; required for a module).
        preprocess: preprocessing in the file: "none" (default for a module), "normalize" (default for a run) or "full".
        softmax: return probabilities instead of logits.
        max_drop: points of test accuracy that a precision other than fp32 may lose against float32; int8 restores its most
            sensitive layers to float32 until the loss of accuracy on validation images is at most half of it.
        reduce_range: store int8 weights with 7 bits, for x86 CPUs without VNNI; by default only if 8 bits give wrong outputs on this CPU.
        explain: measure the error of each layer of an ONNX file, and write it to ``NAME.layers.csv`` and ``.png`` next to it.
        seed: seed of the choice of calibration images for int8.
        force: replace an existing file.
        images: for a run, the number of test images, from all classes, to compare with PyTorch; for a module, the images:
            (N, \\*input) floats in the form that the module takes, or (N, H, W, 3) uint8 with ``mean`` and ``std``; noise by default.
        full_test: measure the accuracy of fp32 on all test images of a run, not only on ``images``, as the other precisions do.
        input: shape of one input of a module, such as (3, 224, 224) (default: that of ``images``).
        targets: (N,) class indices of a module's images, to measure the accuracy.
        classes: names of a module's outputs (default: their indices).
        mean: channel means that normalise a module's images, scaled to [0, 1]; without them, the file states no normalisation.
        std: channel standard deviations of these images.
        calibration: images to calibrate and select the int8 file of a module by, in the form of ``images`` (default: ``images``, which
            makes the accuracy on them optimistic).

    Raises:
        BusyError: the file exists and ``force`` is not set.
        UsageError: an unknown format, precision or preprocess, a module that does not accept ``input``, or a missing package.
        FileError: a weight is not finite, or the model cannot be traced. DataError: int8 without images. DiskError: the file cannot
            be written. DisagreeError: the file and PyTorch differ, the accuracy drops too far, or frozen weights have changed.
            In each case, nothing is published and an existing file is unchanged; but a disk that fills between OpenVINO's two files
            leaves neither.
    """
    from zoo import registry
    from zoo.export import _pipeline

    target = registry.find_target(fmt, precision)
    _check(input, written, exact=explain and precision == "fp32")
    given = {
        "input": input or None,
        "targets": targets,
        "classes": classes,
        "mean": mean,
        "std": std,
        "calibration": calibration,
    }
    out = _out(model, path, target.TARGET.suffix)
    _pipeline.check_free(out, target.TARGET, force=force)
    written |= {"full_test": full_test, "seed": seed, "max_drop": max_drop, "reduce_range": reduce_range, "explain": explain}
    job = _pipeline.job_of(_subject(model, images, given), preprocess, softmax=softmax, **written)
    return _pipeline.export(target, job.subject, out, job, force=force)


def _check(shape: Any, written: Mapping[str, Any], *, exact: bool) -> None:
    """TypeError for an argument that no target has, or an example input in place of its shape; UsageError if ``exact`` layers are to be explained."""
    if exact:
        from zoo.errors import UsageError

        raise UsageError("explain needs a precision other than fp32, whose layers are exact; choose e.g. int8")
    if unknown := [name for name in written if name not in ("external_data", "opset")]:
        raise TypeError(f"no argument {unknown[0]!r}; the arguments are those of zoo.export.program")
    if hasattr(shape, "dtype"):
        raise TypeError(f"input is {type(shape).__name__}; give the shape of one input, e.g. input=(3, 224, 224)")


def _out(model: Any, path: str | Path | None, suffix: str) -> Path:
    """Where the file is written; UsageError for a module without a path, TypeError for neither a module nor a run."""
    from torch import nn

    from zoo.errors import UsageError

    if not isinstance(model, nn.Module) and not hasattr(model, "recipe"):
        raise TypeError(f"model is {type(model).__name__}; give a run (zoo.load) or an nn.Module")
    if path is not None:
        return Path(path)
    if not hasattr(model, "recipe"):
        raise UsageError(f"no path for the file of a {type(model).__name__}; give one, e.g. 'model{suffix}'")
    return default_folder(model) / f"model{suffix}"


def default_folder(run: Run) -> Path:
    """Where the files of a run are written unless a path is given: its folder, or the current folder for a run of the hub."""
    from zoo import hub
    from zoo.files import near

    return Path() if run.path.parent == hub.root() else near(run.path)


def _subject(model: Any, images: Any, given: dict[str, Any]) -> Subject:
    """What is exported; UsageError for arguments of the other kind."""
    from torch import nn

    from zoo.errors import UsageError
    from zoo.export import _job

    given = {key: value for key, value in given.items() if value is not None}
    if not isinstance(model, nn.Module):
        if given or not isinstance(images, int):
            names = ", ".join(given) or "images"
            raise UsageError(f"a run has its own {names}; omit {'them' if len(given) > 1 else 'it'}, or export run.model")
        if images < 1:
            raise UsageError(f"images = {images} is not allowed; compare at least 1 image with PyTorch")
        return _job.of_run(model, images)
    pictures = None if isinstance(images, int) else images
    if pictures is None and images != COMPARED:
        raise UsageError(f"images = {images} has no effect on a module; give images (N, ...) to compare with PyTorch")
    if "input" not in given and getattr(pictures, "ndim", 0) < 2:
        raise UsageError(f"no input shape for {type(model).__name__}; give the shape of one input, e.g. input=(3, 224, 224)")
    shape = given.pop("input", None)
    if shape is None and pictures is not None:  # channels are last in images of bytes only
        sizes = tuple(pictures.shape[1:])
        shape = (sizes[-1], *sizes[:-1]) if str(pictures.dtype).endswith("uint8") else sizes
    return _job.of_module(model, shape=shape, images=pictures, **given)
