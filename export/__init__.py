"""Export a run and prove that the file answers as PyTorch does; a file that does not is never published."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import registry
from zoo.console import print_line
from zoo.errors import BusyError, DataError, DisagreeError, FileError, UsageError, did_you_mean

if TYPE_CHECKING:
    from onnx import ModelProto

    from zoo.export._cases import Pictures
    from zoo.export._graph import Exported
    from zoo.export._parity import Parity
    from zoo.run import Run

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Receipt:
    """What was exported and how it was checked."""

    path: Path
    bytes: int
    """Of all files."""
    files: tuple[str, ...]
    """Their names: ``path`` first, then what lies beside it."""
    format: str
    precision: str
    opset: int
    """Of ONNX; 0 for other formats, as is ``ir_version``."""
    ir_version: int
    preprocess: str
    batches: tuple[int, ...]
    """Batch sizes the file was run at."""
    agree: int
    """Of ``n`` images, those that the file and PyTorch put in the same class."""
    n: int
    ties: int
    """Images with another class because PyTorch itself is undecided, or the precision allows it."""
    max_abs: float
    """Largest |difference| from PyTorch: of logits in standard deviations of PyTorch's logits, or of probabilities."""
    images: str
    """Which images these were."""
    seconds: float
    test: dict[str, Any] | None = None
    """Of the file on the run's test set: n, correct, accuracy, low, high; for fp16 and int8 also ``fp32`` and ``drop`` (points)."""
    calibration: dict[str, Any] | None = None
    """For int8: method, number of images, seed, and the accuracy of all that were tried."""
    run: str = ""
    """The accuracy of the run, in its own precision."""

    def line(self) -> str:
        """The receipt in one line."""
        ties = f" ({self.ties} undecided)" if self.ties and self.precision == "fp32" else ""
        opset = f" · opset {self.opset}" if self.opset else ""
        right = ""
        if self.test:
            right = f" · test {100 * self.test['accuracy']:.2f} % [{100 * self.test['low']:.2f}, {100 * self.test['high']:.2f}]"
            if "drop" in self.test:
                right += f" (fp32 {100 * self.test['fp32']['accuracy']:.2f} %, drop {self.test['drop']:+.2f} points)"
            right += f" ({self.run})" if self.run else ""
        calibrated = (
            f" · calibrated by {self.calibration['method']} on {self.calibration['images']}" if self.calibration else ""
        )
        return (
            f"{self.path}  {len(self.files)} file{'s' if len(self.files) > 1 else ''} {self.bytes / 1e6:.1f} MB · {self.precision}{opset} · batch {', '.join(map(str, self.batches))} agree: "
            f"{self.agree:,}/{self.n:,} classes{ties}, max |difference| {self.max_abs:.1e} · {self.images}{right}{calibrated}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, the path as text."""
        return dataclasses.asdict(self) | {"path": str(self.path)}


def onnx(
    run: Run,
    path: str | Path | None = None,
    *,
    precision: str = "fp32",
    preprocess: str = "normalize",
    softmax: bool = False,
    external_data: bool = False,
    opset: int | None = None,
    target_ort: str | None = None,
    max_drop: float = 0.5,
    seed: int = 0,
    force: bool = False,
    images: int = 1000,
) -> Receipt:
    """Write a run's model as one ONNX file (default: ``model.onnx``, ``model.fp16.onnx`` or ``model.int8.onnx`` in its folder).

    Args:
        external_data: put the weights in a file of their own, ``model.3f2a90c1.onnx.data`` with the first digits of its
            sha1; they go there by themselves if they are more than 2 GB.
        opset: operator set; ``target_ort``, e.g. "1.17", takes the newest that this onnxruntime reads instead.
        max_drop: points of test accuracy that fp16 or int8 may lose against float32.
        seed: draws the images that int8 is calibrated on.
        images: test images that are compared with PyTorch; accuracy is measured on all.

    Raises:
        BusyError: the file exists and ``force`` is not set. UsageError: opset, precision or preprocess that there is not.
        FileError: a weight is not finite. DataError: int8 without the run's data.
        DisagreeError: the file and PyTorch differ, accuracy drops too far, or frozen weights are not what they were.
        DiskError: the file cannot be written. In each case nothing is published and an old file stays as it was.
    """
    from zoo.export import _accuracy, _graph, _parity, onnx_fp16, onnx_fp32, onnx_int8

    began = time.monotonic()
    _known("precision", precision, PRECISIONS)
    _known("preprocess", preprocess, tuple(_graph.PREPROCESS))
    spec = {"fp32": onnx_fp32, "fp16": onnx_fp16, "int8": onnx_int8}[precision].TARGET
    target = Path(path) if path else run.path / f"model{spec.suffix}"
    chosen = onnx_fp32.check_opset(opset, target_ort)
    check_free(target, force=force)
    frozen = check_weights(run)
    seen = _seen(run, images, precision)
    exported = _graph.of_run(run, stored=seen.stored, preprocess=preprocess, softmax=softmax)
    print_line(f"trace    {run.recipe.model}, opset {chosen}, preprocess {preprocess}")
    exact = onnx_fp32.trace(exported, opset=chosen)
    graph, calibration = _in_precision(precision, exact, run, exported, seen, seed)
    parity = _checked(run, exported, graph, seen, spec.tolerance, own=precision == "int8")
    test = _tested(run, exported, {precision: graph, "fp32": exact}, seen, max_drop)
    written = _graph.metadata(run, exported, opset=chosen, frozen=frozen) | {
        "precision": precision, "parity": json.dumps(parity.as_dict() | {"images": seen.source}), "test": json.dumps(test),
        "calibration": json.dumps(calibration),
    }  # fmt: skip
    print_line(f"check    {target}")
    files = onnx_fp32.save(graph, target, written, external_data=external_data)
    return Receipt(
        target, sum(each.stat().st_size for each in files), tuple(each.name for each in files), "onnx", precision, chosen, graph.ir_version, preprocess, _parity.BATCHES, parity.agree,
        parity.n, parity.ties, parity.max_abs, seen.source, round(time.monotonic() - began, 2), test, calibration,
        _accuracy.of_run(run),
    )  # fmt: skip


def program(
    run: Run,
    path: str | Path | None = None,
    *,
    fmt: str = "pt2",
    preprocess: str = "normalize",
    softmax: bool = False,
    force: bool = False,
    images: int = 1000,
) -> Receipt:
    """Write a run's model for PyTorch (``fmt`` "pt2", ``model.pt2``), OpenVINO ("openvino", ``model.xml`` and ``model.bin``) or
    another format that a file here names.

    Raises:
        As :func:`onnx`; UsageError also if openvino is not installed.
    """
    from zoo.export import _graph, _other

    _known("format", fmt, tuple(registry.formats()))
    _known("preprocess", preprocess, tuple(_graph.PREPROCESS))
    chosen = Path(path) if path else None
    return _other.program(run, chosen, fmt=fmt, preprocess=preprocess, softmax=softmax, force=force, images=images)


def _seen(run: Run, images: int, precision: str) -> Pictures:
    """What the file is compared on; DataError where ``precision`` needs the run's data and it is not here."""
    from zoo.export import _cases

    seen = _cases.pictures(run, images)
    if precision == "int8" and seen.data is None:
        raise DataError(
            f"int8 is calibrated on training images, which are not here ({run.recipe.data.name}); give its data.dir"
        )
    return seen


def _in_precision(
    precision: str, exact: ModelProto, run: Run, exported: Exported, seen: Pictures, seed: int
) -> tuple[ModelProto, dict[str, Any] | None]:
    """The float32 graph ``exact`` in ``precision``, for int8 with how it was calibrated."""
    from zoo.export import _accuracy, onnx_fp16

    if precision == "fp16":
        return onnx_fp16.convert(exact), None
    if precision == "int8":
        assert seen.data is not None
        return _accuracy.choose(exact, run, exported, seen.data, seed)
    return exact, None


def _known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"no {what} {value!r}{did_you_mean(value, known)}; use one of {', '.join(known)}")


def check_free(target: Path, *, force: bool) -> None:
    """BusyError if the file exists and may not be replaced; UsageError if it is a folder; DiskError if none can be made."""
    from zoo import files

    if target.is_dir():
        raise UsageError(f"output is a folder ({target.absolute()}); name a file, e.g. --out {target / 'model.onnx'}")
    if target.exists() and not force:
        raise BusyError(f"file exists ({target}); use --force to replace it, or another --out")
    files.check_writable(target)


def check_weights(run: Run) -> dict[str, str]:
    """sha256 by name of the tensors that were frozen in training, the run's weights being finite and these unchanged.

    Raises:
        FileError: a weight is not finite. DisagreeError: a frozen tensor is not what it was before training (the file
            itself is whole: a damaged one is a FileError).
    """
    from zoo import console, tensor_files
    from zoo.training import freezing

    for name, value in run.model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise FileError(f"weights are not finite ({run.path}, tensor {name}); train again, or use an earlier checkpoint")
    path = run.path / "weights.safetensors"
    before: dict[str, str] = tensor_files.load_tensors(path)[1].get("frozen", {}) if path.is_file() else {}
    after = freezing.frozen_digest(run.model, before)
    if moved := [name for name, digest in before.items() if after[name] != digest]:
        raise DisagreeError(
            f"frozen tensors are not what they were before training ({run.path}, {len(moved)} of {len(before)}, first {moved[0]}); "
            "train again; nothing published"
        )
    if before:
        console.print_line(f"frozen   {len(before)} tensors have the sha256 they had before training")
    return before


def _checked(run: Run, exported: Exported, graph: ModelProto, seen: Pictures, tolerance: float, *, own: bool) -> Parity:
    """The parity of a graph, ``own`` on the run's images alone; DisagreeError with the first node that differs if it does not hold."""
    import torch

    from zoo.export import _accuracy, _cases, _parity

    parity = _parity.check(
        [case for case in _cases.cases(run, exported, seen.pixels) if case.counted or not own],
        _accuracy.answer_of(graph, run, exported),
        tolerance=tolerance,
        probabilities=exported.softmax,
    )
    if not parity.holds:
        fed = _cases.fed(parity.worst, run, exported)
        same = parity.worst.shape[1:3] == seen.pixels.shape[1:3]
        inputs = _cases.normalised(parity.worst, run) if same else exported.prepare(torch.from_numpy(fed))
        where = _parity.first_difference(graph, fed, run.model, inputs, tolerance)
        raise DisagreeError(
            f"exported model differs from PyTorch (max |difference| {parity.max_abs:.2g}, allowed {parity.tolerance:.0e}, other "
            f"class {parity.wrong:,} times; first node that differs: {where}); nothing published"
        )
    return parity


def _tested(
    run: Run, exported: Exported, graphs: dict[str, ModelProto], seen: Pictures, max_drop: float
) -> dict[str, Any] | None:
    """Accuracy of the first graph on the whole test set, against the second, float32, if there is one; None without the data."""
    from zoo.export import _accuracy

    if seen.data is None or not len(seen.data.test):
        return None
    part = seen.data.test
    hits, *reference = (_accuracy.hits(_accuracy.answer_of(each, run, exported), part, name) for name, each in graphs.items())
    found = _accuracy.compared(hits, reference[0] if reference else None)
    if found.get("drop", 0.0) > max_drop:
        raise DisagreeError(
            f"accuracy drops by {found['drop']:.2f} points (test {100 * found['accuracy']:.2f} %, float32 "
            f"{100 * found['fp32']['accuracy']:.2f} %, allowed {max_drop:g}); raise --max-drop or use fp32; nothing published"
        )
    return found
