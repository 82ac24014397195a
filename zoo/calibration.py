"""Temperature scaling: one number that divides a run's logits, so that its probabilities match its accuracy.

Guo et al. 2017, "On calibration of modern neural networks", section 4.2. The predicted class never changes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.console import print_line
from zoo.errors import DataError, FileError
from zoo.files import publish_text
from zoo.recipe_types import converted

FILE = "calibration.json"
LEAST, MOST = 0.05, 20.0
"""Bounds of a temperature; beyond them the logits are separable or carry no information."""


class Calibration(msgspec.Struct, frozen=True):
    """Content of ``calibration.json``. Losses are mean cross entropies in nats, before and after."""

    temperature: float
    split: str
    n: int
    loss_before: float
    loss_after: float
    weights: str
    """Digest of the weights that were calibrated."""
    low: float = LEAST
    high: float = MOST
    """95 % interval of the temperature; the bounds if the file has none."""


def fit(logits: Tensor, targets: Tensor) -> float:
    """The temperature T in [0.05, 20] that minimises the cross entropy of logits (N, C) / T on targets (N,).

    The loss is convex in 1 / T, so that a bounded search finds it (Brent 1973).
    """
    from scipy.optimize import minimize_scalar

    wide, labels = logits.double(), targets.long()

    def loss(inverse: float) -> float:
        return F.cross_entropy(wide * inverse, labels).item()

    found = minimize_scalar(loss, bounds=(1 / MOST, 1 / LEAST), method="bounded", options={"xatol": 1e-6})
    return float(1 / found.x)


def interval(logits: Tensor, targets: Tensor, temperature: float) -> tuple[float, float]:
    """95 % interval of a fitted temperature, within its bounds.

    From the normal approximation for 1 / T with the sandwich variance sum(g^2) / sum(h)^2 of the samples' derivatives g and h
    (White 1982, "Maximum likelihood estimation of misspecified models"), as real logits are never exactly calibrated.
    """
    wide = logits.double()
    p = (wide / temperature).softmax(1)
    mean = (p * wide).sum(1)
    gradient = mean - wide.gather(1, targets.long()[:, None]).squeeze(1)
    curvature = ((p * wide.square()).sum(1) - mean.square()).sum().item()
    if not curvature > 0:
        return LEAST, MOST
    half = 1.96 * gradient.square().sum().sqrt().item() / curvature
    low, high = 1 / temperature - half, 1 / temperature + half
    return max(LEAST, 1 / high), MOST if low <= 1 / MOST else 1 / low


def of(logits: Tensor, targets: Tensor, *, split: str, weights: str) -> Calibration:
    """The calibration of uncalibrated logits (N, C) of one split; ``weights`` is the digest of the weights that computed them.

    Raises:
        DataError: the images do not determine a temperature, as the best one is at a bound.
    """
    temperature = fit(logits, targets)
    if not 1.01 * LEAST < temperature < MOST / 1.01:
        right = int((logits.argmax(1) == targets).sum())
        raise DataError(
            f"{len(targets):,} {split} images do not determine a temperature ({right:,} are classified correctly, best temperature "
            f"{temperature:.3g}); hold out more, e.g. data.val=0.2"
        )
    before, after = (F.cross_entropy(logits.double() / t, targets.long()).item() for t in (1.0, temperature))
    low, high = interval(logits, targets, temperature)
    return Calibration(temperature, split, len(targets), before, after, weights, low, high)


def save(folder: Path, calibration: Calibration) -> None:
    """Write ``calibration.json`` into a run folder."""
    publish_text(folder / FILE, json.dumps(msgspec.to_builtins(calibration), indent=1) + "\n")


def read(folder: Path, weights: str) -> Calibration | None:
    """The calibration of a run's ``weights`` (their digest); None if there is none for these weights.

    Raises:
        FileError: a damaged file.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = converted(msgspec.json.decode(path.read_bytes()), Calibration)
        if not LEAST <= found.temperature <= MOST:
            raise ValueError(f"temperature {found.temperature:g} is not in [{LEAST:g}, {MOST:g}]")
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise FileError(f"damaged file ({path}, {str(error)[:80]}); repeat: zoo eval --calibrate") from error
    if found.weights != weights:
        print_line(f"warning  {path} belongs to other weights and is ignored; repeat: zoo eval --calibrate")
        return None
    return found


class _Divided:
    """A forward hook, of a class so that the model can be pickled."""

    def __init__(self, temperature: float) -> None:
        self.inverse = 1 / temperature

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        return logits.float() * self.inverse


def apply(model: nn.Module, temperature: float) -> None:
    """Divide every output of the model by ``temperature``, with a hook, so that tensor names stay the same; the result is float32.

    In half precision, the division would round different logits to the same number, and change predicted classes.
    """
    model.register_forward_hook(_Divided(temperature))


def digest_of(digests: dict[str, str]) -> str:
    """One digest over the digests of all tensors of a file."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:16]
