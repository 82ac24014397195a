"""Export a run and prove that the file answers as PyTorch does; a file that doesn't is never published."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.spec import BusyError, DataError, FileError

if TYPE_CHECKING:
    import torch

    from zoo.run import Run


@dataclasses.dataclass(frozen=True)
class Receipt:
    """What was exported and how it was checked."""

    path: Path
    bytes: int
    opset: int
    preprocess: str
    batches: tuple[int, ...]
    n: int
    agree: int
    largest: float
    """Largest difference from PyTorch's outputs, in standard deviations of those outputs."""
    images: str
    seconds: float

    def line(self) -> str:
        """The receipt in one line."""
        batches = ", ".join(map(str, self.batches))
        return (
            f"{self.path}  1 file {self.bytes / 1e6:.2f} MB · opset {self.opset} · preprocess {self.preprocess} · batch {batches} agree: "
            f"{self.agree:,}/{self.n:,} classes, max |difference| {self.largest:.1e} on {self.images}"
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
    """Write a run's model as one ONNX file and return the receipt; ``images`` test images are compared.

    Raises:
        BusyError: the file exists and ``force`` is not set. FileError: weights are not finite. UsageError: unsupported opset.
        DisagreeError: the file and PyTorch differ; nothing is published.
    """
    from zoo import files
    from zoo.export import _graph, _parity, _session, onnx_fp32

    began = time.monotonic()
    target = Path(path) if path else run.path / "model.onnx"
    if target.exists() and not force:
        raise BusyError(f"file exists ({target}); use --force to replace it, or another --out")
    for name, value in run.model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise FileError(f"weights are not finite (tensor {name}); train again, or use an earlier checkpoint")
    wrapped = _graph.Exported(run.model, run.mean, run.std, run.input[1], preprocess, softmax)
    groups, source = _images(run, preprocess, images)
    chosen = opset or 20
    found: list[_parity.Parity] = []

    def verify(temporary: Path) -> None:
        session = _session.open_session(temporary)
        name = session.get_inputs()[0].name
        found.append(
            _parity.check(wrapped, lambda batch: session.run(None, {name: batch})[0], groups, onnx_fp32.TARGET.tolerance)
        )

    metadata = _metadata(run, preprocess, softmax, chosen, source)
    files.publish(target, lambda temporary: onnx_fp32.write(wrapped, temporary, opset=chosen, metadata=metadata), verify)
    parity = found[0]
    return Receipt(
        target, target.stat().st_size, chosen, preprocess, parity.batches, parity.n, parity.agree, parity.largest, source,
        round(time.monotonic() - began, 2),
    )  # fmt: skip


def _metadata(run: Run, preprocess: str, softmax: bool, opset: int, source: str) -> dict[str, str]:
    import torch

    import zoo
    from zoo import checkpoint, recipe
    from zoo.export._graph import PREPROCESS

    shape = {
        "mean": run.mean,
        "std": run.std,
        "input": run.input,
        "mode": preprocess,
        "takes": PREPROCESS[preprocess],
        "softmax": softmax,
    }
    digests = {name: checkpoint.digest(value) for name, value in run.model.state_dict().items()}
    import hashlib

    return {
        "zoo.version": zoo.__version__,
        "zoo.model": run.recipe.model,
        "zoo.classes": json.dumps(run.classes),
        "zoo.preprocessing": json.dumps(shape),
        "zoo.recipe": recipe.dump(run.recipe),
        "zoo.weights": hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        "zoo.data": json.dumps({"name": run.recipe.data.name, "digest": run.env.get("data_digest", "")}),
        "zoo.torch": torch.__version__,
        "zoo.opset": str(opset),
        "zoo.parity": json.dumps({"batches": [1, 2, 7], "images": source, "tolerance": 1e-4}),
    }


def _images(run: Run, preprocess: str, count: int) -> tuple[list[torch.Tensor], str]:
    """Groups of inputs to compare on: test images (noise, said so, where the data isn't here), all black, all white, one colour."""
    import numpy as np
    import torch

    from zoo.data import _augment

    size = run.input[1]
    try:
        test = run.dataset().test
        pixels = np.asarray(test.images[np.linspace(0, len(test) - 1, min(count, len(test))).astype(int)])
        source = f"{len(pixels):,} test images of {run.recipe.data.name}"
    except DataError:
        pixels = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)
        source = "64 images of noise (the data set is not here)"
    flat = np.stack([np.full(pixels.shape[1:], value, np.uint8) for value in (0, 255, 128)])
    groups = []
    for part in (pixels, flat):
        images = torch.from_numpy(np.ascontiguousarray(part))
        if preprocess == "none":
            images = _augment.normalise(images, run.mean, run.std, size=size).contiguous()
        elif preprocess == "normalize":
            images = _augment.normalise(images, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), size=size).contiguous()
        groups.append(images)
    if preprocess == "full":  # sizes that the graph must bring to its own
        groups += [torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, size * 2 + 1, size + 9, 3), np.uint8))]
    return groups, source
