"""The check every export must pass: the file answers as the PyTorch model does, on real, saturated and constant images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from zoo.spec import DisagreeError

BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Parity:
    """How two computations of the same images compare."""

    n: int
    agree: int
    """Images with the same class."""
    largest: float
    """Largest absolute difference of outputs, divided by the standard deviation of PyTorch's outputs over all images."""
    batches: tuple[int, ...] = BATCHES


def check(model: nn.Module, run: Callable[[np.ndarray], np.ndarray], images: Sequence[Tensor], tolerance: float) -> Parity:
    """Compare ``run`` with ``model`` on groups of inputs, each group cut into batches of 1, 2 and 7 in turn.

    A class may differ only where PyTorch's own two best classes are closer than the tolerance.

    Raises:
        DisagreeError: an output differs by more than the tolerance or is not finite, or a class differs.
    """
    with torch.inference_mode():
        truth = [model(group).double().numpy() for group in images]
    scale = max(float(np.concatenate(truth).std()), 1e-12)
    worst, agree, total = 0.0, 0, 0
    for group, wanted in zip(images, truth):
        for start, stop in _cuts(len(group)):
            got = run(group[start:stop].numpy()).astype(np.float64)
            if got.shape != wanted[start:stop].shape:
                raise DisagreeError(
                    f"exported model gives shape {got.shape}, PyTorch {wanted[start:stop].shape} (batch {stop - start}); nothing published"
                )
            difference = np.abs(got - wanted[start:stop]).max(1) / scale
            two = np.sort(wanted[start:stop], 1)[:, -2:]
            tied = (two[:, 1] - two[:, 0]) / scale <= 2 * tolerance
            worst = max(worst, float(np.nan_to_num(difference, nan=np.inf).max()))
            agree += int(((got.argmax(1) == wanted[start:stop].argmax(1)) | tied).sum())
            total += stop - start
    if not worst <= tolerance or agree < total:
        raise DisagreeError(
            f"exported model differs from PyTorch (largest difference {worst:.2g}, allowed {tolerance:.0e}, classes {agree:,}/{total:,}); nothing published"
        )
    return Parity(total, agree, worst)


def _cuts(n: int) -> list[tuple[int, int]]:
    """0..n in pieces of 1, 2, 7, 1, 2, 7 ..., then 64 at a time."""
    cuts, at = [], 0
    sizes = [*BATCHES, *BATCHES, *BATCHES]
    while at < n:
        size = min(sizes.pop(0) if sizes else 64, n - at)
        cuts.append((at, at + size))
        at += size
    return cuts
