"""Metrics computed from logits and targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import spec
from zoo.errors import DataError, DivergedError

Row = tuple[int, int, float | None, float | None, float | None]
"""n, correct, accuracy in [0, 1] and its 95 % interval; None where n is 0."""


class Pair(NamedTuple):
    """Two confused classes: ``share`` is (there + back) / n, where n is the number of test images of both."""

    first: int
    second: int
    there: int
    """Images of ``first`` classified as ``second``."""
    back: int
    n: int
    share: float


class Shot(NamedTuple):
    """The classes of one many/medium/few-shot split, with their test images pooled."""

    name: str
    classes: int
    n: int
    correct: int
    accuracy: float | None
    low: float | None
    high: float | None
    """Interval of ``accuracy``."""
    macro: float | None
    """Mean of the accuracies of its classes, as reported in papers; equals ``accuracy`` on a balanced test set."""
    macro_low: float | None
    macro_high: float | None


@dataclass(frozen=True)
class Result:
    """One evaluation. Accuracies and interval ends are shares in [0, 1]; ``confusion`` is (C, C) int64, rows the true class."""

    n: int
    accuracy: float
    low: float
    high: float
    macro: float
    """Mean of the accuracies of the classes that occur."""
    loss: float
    """Mean cross entropy, nats."""
    ece: float
    """Expected calibration error over 15 equal bins of confidence (Guo et al. 2017, eq. 3)."""
    confusion: np.ndarray
    per_class: list[Row]

    def worst_pairs(self, k: int = 3) -> list[Pair]:
        """Pairs of classes, the most confused first; pairs that were never confused are omitted."""
        return worst_pairs(self.confusion, k)

    def summary(self, classes: Sequence[str], counts: Sequence[int] = ()) -> dict[str, Any]:
        """Everything but the tables, for JSON: the overall numbers, the worst pairs and, given each class's training images,
        the many-, medium- and few-shot accuracies if the classes belong to more than one of these."""
        found = shots(self.per_class, counts) if len(counts) else []
        named = [
            pair._asdict() | {"first": classes[pair.first], "second": classes[pair.second]} for pair in self.worst_pairs(5)
        ]
        overall = {key: getattr(self, key) for key in ("n", "accuracy", "low", "high", "macro", "loss", "ece")}
        return overall | {"shots": [shot._asdict() for shot in found if len(found) > 1], "worst_pairs": named}


def evaluate(logits: Tensor | np.ndarray, targets: Tensor | np.ndarray) -> Result:
    """Result of logits (N, C) and integer targets (N,), tensors on any device or arrays. Of probabilities, give the logarithm.

    Raises:
        DataError: N is 0.
        DivergedError: a logit is NaN or infinite.
        TypeError, ValueError: types, shapes or classes do not fit.
    """
    logits, targets = _checked(logits, targets)
    n, classes = logits.shape
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise DivergedError(
            f"the model's output is not finite ({bad:,} of {n:,} images); lower the learning rate or use precision=fp32"
        )
    pairs = torch.bincount(targets * classes + logits.argmax(1), minlength=classes * classes)
    confusion = pairs.reshape(classes, classes).numpy()
    rows = [class_row(int(count), int(hit)) for count, hit in zip(confusion.sum(1), confusion.diagonal())]
    right = int(confusion.trace())
    macro = float(np.mean([row[2] for row in rows if row[2] is not None]))
    loss = F.cross_entropy(logits, targets).item()
    return Result(n, right / n, *wilson(right, n), macro, loss, calibration_error(logits, targets), confusion, rows)


def _checked(logits: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Logits (N, C) in float64 and targets (N,) in int64, on the CPU; errors as :func:`evaluate`."""
    logits, targets = (torch.as_tensor(each).detach().cpu() for each in (logits, targets))
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}; expected (N, C) and (N,)")
    if not logits.is_floating_point() or targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(f"logits are {logits.dtype} and targets {targets.dtype}; expected floats and integers")
    if not len(logits):
        raise DataError("no images to evaluate (0 images); choose another split")
    targets = targets.long()  # torch has no minimum of unsigned types
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError(f"targets from {targets.min()} to {targets.max()}; expected 0 to {logits.shape[1] - 1}")
    return logits.double(), targets


def worst_pairs(confusion: np.ndarray, k: int = 3) -> list[Pair]:
    """Up to ``k`` pairs of a confusion matrix (C, C), rows the true class, with the most confusions in both directions, most first."""
    both, n = np.triu(confusion + confusion.T, 1), confusion.sum(1)
    order = np.argsort(-both, axis=None, kind="stable")[:k]
    pairs = [(int(a), int(b), int(n[a] + n[b])) for a, b in zip(*np.unravel_index(order, both.shape)) if both[a, b]]
    return [
        Pair(a, b, int(confusion[a, b]), int(confusion[b, a]), both_n, float(both[a, b] / both_n)) for a, b, both_n in pairs
    ]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of ``n`` > 0 (Wilson 1927). scipy.stats has it too, but takes over a second to import."""
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} of {n}; expected 0 <= correct <= n and n > 0")
    z = NormalDist().inv_cdf(0.975)
    middle = (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(correct * (n - correct) / n + z * z / 4)
    return (middle - half if correct else 0.0), (middle + half if correct < n else 1.0)  # exact where rounding is not


def class_row(n: int, correct: int) -> Row:
    """Accuracy of ``correct`` of ``n`` with its interval; None where there are no images, never nan."""
    return (n, correct, correct / n, *wilson(correct, n)) if n else (0, 0, None, None, None)


def mean_interval(rows: Sequence[Row]) -> tuple[float, float]:
    """95 % interval of the mean of the classes' accuracies; of classes with equally many images, that of all their images.

    Otherwise the classes' Wilson intervals [l, u] are combined: mean - sqrt(sum (p - l)^2) / C and mean + sqrt(sum (u - p)^2) / C
    (Zou, Huang and Zhang 2009, "A note on confidence interval estimation for a linear function of binomial proportions").
    Classes without images are omitted; one must have some.
    """
    found = [row for row in rows if row[0]]
    if len({row[0] for row in found}) == 1:
        return wilson(sum(row[1] for row in found), sum(row[0] for row in found))
    share, low, high = np.array([row[2:] for row in found], float).T
    middle = share.mean()
    below, above = (float(np.sqrt(((share - end) ** 2).sum())) / len(found) for end in (low, high))
    return max(float(middle) - below, 0.0), min(float(middle) + above, 1.0)


def shots(rows: Sequence[Row], counts: Sequence[int]) -> list[Shot]:
    """Many-, medium- and few-shot accuracy of the classes' rows, given each class's training images; empty splits are omitted."""
    if len(rows) != len(counts):
        raise ValueError(f"{len(rows)} classes, {len(counts)} training counts; expected one count per class")
    found = []
    for name, (first, last) in spec.SHOTS.items():
        members = [row for row, count in zip(rows, counts) if first <= count <= last]
        shares = [row[2] for row in members if row[2] is not None]
        if members:
            pooled = class_row(sum(row[0] for row in members), sum(row[1] for row in members))
            mean = (float(np.mean(shares)), *mean_interval(members)) if shares else (None, None, None)
            found.append(Shot(name, len(members), *pooled, *mean))
    return found


def calibration_error(logits: Tensor | np.ndarray, targets: Tensor | np.ndarray, bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over equal bins of confidence, weighted by their images (Guo et al. 2017, eq. 3).

    Arguments and errors are those of :func:`evaluate`; ValueError also if ``bins`` is below 1.
    """
    logits, targets = _checked(logits, targets)
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected at least 1")
    confidence, predicted = logits.softmax(1).max(1)
    gap = (predicted == targets).double() - confidence
    where = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)  # bin m is ((m - 1) / bins, m / bins]
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, where, gap)
    return float(sums.abs().sum() / len(targets))


def mcnemar(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> tuple[int, int, float]:
    """Images only the first got right, only the second, and the exact two-sided p (McNemar 1947) of two models on the same images."""
    a, b = np.asarray(first), np.asarray(second)
    if a.dtype != bool or b.dtype != bool:
        raise TypeError(
            f"results are {a.dtype} and {b.dtype}; give whether each image is classified correctly: predicted == targets"
        )
    if a.shape != b.shape:
        raise ValueError(f"results have shapes {a.shape} and {b.shape}; McNemar's test needs the same images")
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return only_a, only_b, float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for multiple tests (Holm 1979): a value is significant only if all smaller ones are."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, at in enumerate(np.argsort(values, kind="stable")):
        largest = max(largest, min(1.0, (len(values) - rank) * values[at]))
        corrected[at] = largest
    return corrected
