"""Export a run and prove that the file answers as PyTorch does; a file that does not is never published."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.spec import BusyError, DataError, DisagreeError, FileError, UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    from zoo.export._graph import Exported
    from zoo.export._parity import Case, Parity
    from zoo.run import Run


@dataclass(frozen=True)
class Receipt:
    """What was exported and how it was checked."""

    path: Path
    bytes: int
    opset: int
    ir_version: int
    preprocess: str
    batches: tuple[int, ...]
    """Batch sizes the file was run at."""
    agree: int
    """Of ``n`` images, those that the file and PyTorch put in the same class."""
    n: int
    ties: int
    """Images with another class because PyTorch itself is undecided."""
    max_abs: float
    """Largest |difference| from PyTorch: of logits in standard deviations of PyTorch's logits, or of probabilities."""
    images: str
    """Which images these were."""
    seconds: float

    def line(self) -> str:
        """The receipt in one line."""
        ties = f" ({self.ties} undecided)" if self.ties else ""
        return (
            f"{self.path}  1 file {self.bytes / 1e6:.1f} MB · opset {self.opset} · batch {', '.join(map(str, self.batches))} agree: "
            f"{self.agree:,}/{self.n:,} classes{ties}, max |difference| {self.max_abs:.1e} · {self.images}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, the path as text."""
        return dataclasses.asdict(self) | {"path": str(self.path)}


def onnx(
    run: Run,
    path: str | Path | None = None,
    *,
    preprocess: str = "normalize",
    softmax: bool = False,
    opset: int | None = None,
    force: bool = False,
    images: int = 1000,
) -> Receipt:
    """Write a run's model as one ONNX file (default: ``model.onnx`` in its folder); ``images`` test images are compared.

    Raises:
        BusyError: the file exists and ``force`` is not set. UsageError: opset or preprocess that there is not.
        FileError: a weight is not finite, or the model too large. DisagreeError: the file and PyTorch differ.
        DiskError: the file cannot be written. In each case nothing is published and an old file stays as it was.
    """
    from zoo import files
    from zoo.export import _graph, _parity, _session, onnx_fp32

    began = time.monotonic()
    target = Path(path) if path else run.path / "model.onnx"
    if preprocess not in _graph.PREPROCESS:
        known = ", ".join(_graph.PREPROCESS)
        raise UsageError(f"no preprocess {preprocess!r}{did_you_mean(preprocess, _graph.PREPROCESS)}; use one of {known}")
    chosen = onnx_fp32.check_opset(opset)
    _check_free(target, force=force)
    _check_finite(run)
    pixels, stored, source = _images(run, images)
    exported = _graph.Exported(
        run.model, run.mean, run.std, size=run.input[1], stored=stored, preprocess=preprocess, softmax=softmax
    )
    graph = onnx_fp32.trace(exported, opset=chosen)
    parity = _checked(run, exported, graph, pixels)
    known_facts = _graph.metadata(run, exported, opset=chosen)
    parity_text = json.dumps(parity.as_dict() | {"images": source})
    files.publish(
        target,
        lambda temporary: onnx_fp32.save(graph, temporary, known_facts | {"parity": parity_text}),
        lambda temporary: _session.open_session(temporary),
    )
    return Receipt(
        target, target.stat().st_size, chosen, graph.ir_version, preprocess, _parity.BATCHES, parity.agree, parity.n, parity.ties,
        parity.max_abs, source, round(time.monotonic() - began, 2),
    )  # fmt: skip


def _check_free(target: Path, *, force: bool) -> None:
    if target.is_dir():
        raise UsageError(f"output is a folder ({target.absolute()}); name a file, e.g. --out {target / 'model.onnx'}")
    if target.exists() and not force:
        raise BusyError(f"file exists ({target}); use --force to replace it, or another --out")


def _check_finite(run: Run) -> None:
    for name, value in run.model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise FileError(f"weights are not finite ({run.path}, tensor {name}); train again, or use an earlier checkpoint")


def _checked(run: Run, exported: Exported, graph: ModelProto, pixels: np.ndarray) -> Parity:
    """The parity of a graph; DisagreeError with the first node that differs if it does not hold."""
    import torch

    from zoo.export import _parity, _session, onnx_fp32

    session = _session.open_session(graph.SerializeToString())
    name = session.get_inputs()[0].name
    parity = _parity.check(
        _cases(run, exported, pixels),
        lambda part: session.run(None, {name: _fed(part, run, exported)})[0],
        tolerance=onnx_fp32.TARGET.tolerance,
        probabilities=exported.softmax,
    )
    if not parity.holds:
        fed = _fed(parity.worst, run, exported)
        inputs = (
            _normalised(parity.worst, run)
            if parity.worst.shape[1:3] == pixels.shape[1:3]
            else exported.prepare(torch.from_numpy(fed))
        )
        where = _parity.first_difference(graph, fed, run.model, inputs, onnx_fp32.TARGET.tolerance)
        raise DisagreeError(
            f"exported model differs from PyTorch (max |difference| {parity.max_abs:.2g}, allowed {parity.tolerance:.0e}, other "
            f"class {parity.wrong:,} times; first node that differs: {where}); nothing published"
        )
    return parity


def _images(run: Run, count: int) -> tuple[np.ndarray, int, str]:
    """Up to ``count`` test images (N, stored, stored, 3) uint8 spread over the set, their side, and what they are."""
    import numpy as np

    try:
        found = run.dataset().test.images
    except (DataError, UsageError):
        noise = np.random.default_rng(0).integers(0, 256, (min(count, 64), run.stored, run.stored, 3), np.uint8)
        return noise, run.stored, "images: synthetic noise (the run's data is not here)"
    where = np.linspace(0, len(found) - 1, min(count, len(found))).astype(np.int64)
    return np.asarray(found[where]), found.shape[1], f"test images of {run.recipe.data.name}"


def _cases(run: Run, exported: Exported, pixels: np.ndarray) -> list[Case]:
    """Real, saturated and constant images, right being what evaluation does with them; for ``full`` also other sizes."""
    import numpy as np
    import torch

    from zoo.export._parity import Case

    model, side = exported.model, pixels.shape[1]

    def truth(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model(_normalised(part, run))
            return (logits.softmax(1) if exported.softmax else logits).numpy()

    def own_truth(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return exported(torch.from_numpy(part)).numpy()

    colours = np.array([(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
    flat = np.broadcast_to(colours[:, None, None], (len(colours), side, side, 3))
    extreme = np.where(pixels[:6] > 127, 255, 0).astype(np.uint8)
    cases = [Case(pixels, truth), Case(np.concatenate([flat, extreme]), truth, counted=False)]
    if exported.preprocess == "full":
        shapes = ((2 * side + 1, side + 9), (side // 2 + 1, side), (1, 1))
        rng = np.random.default_rng(1)
        cases += [Case(rng.integers(0, 256, (2, *shape, 3), np.uint8), own_truth, counted=False) for shape in shapes]
    return cases


def _normalised(part: np.ndarray, run: Run) -> Any:
    """Images as evaluation gives them to the model, by the code of evaluation: (N, 3, size, size) float32."""
    import torch

    from zoo.data import _augment

    return _augment.normalise(torch.from_numpy(part.copy()), run.mean, run.std, size=run.input[1]).contiguous()


def _fed(part: np.ndarray, run: Run, exported: Exported) -> np.ndarray:
    """Images as the file takes them."""
    import numpy as np

    if exported.preprocess == "full":
        return np.ascontiguousarray(part)
    if exported.preprocess == "none":
        return _normalised(part, run).numpy()
    edge = (part.shape[1] - exported.size) // 2
    cut = part[:, edge : edge + exported.size, edge : edge + exported.size]
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
