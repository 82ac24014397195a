"""Choice, order and weights of samples: pure functions on arrays (NumPy only).

Random numbers come from Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by seed and epoch,
so they never depend on workers, batch size or earlier calls. They are derived from the generator's raw 64-bit words, which NumPy
keeps stable between versions, unlike the values of ``permutation`` or ``normal``.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from zoo.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DRAWS, ORDER, CARVE, TAIL, PICK = range(5)
"""Purposes of random numbers, so that no two uses of a seed share a stream."""

EASY, HARD = 0.8, 0.2
"""A sample counts as easy from the first p_t on and as hard below the second (no source gives thresholds)."""

FLOOR = 1e-3
"""Smallest 1 - p_t in the focal sampler: confident samples are still drawn occasionally, so that a confident error can be corrected."""


def words(seed: int, epoch: int, n: int, purpose: int = DRAWS, column: int = 0) -> np.ndarray:
    """Random words, (n,) uint64; word i depends only on the key and i, not on n.

    Raises:
        ValueError: the key is out of range (seed < 2^64, epoch < 2^48, column < 2^12).
    """
    if not (0 <= seed < 2**64 and 0 <= epoch < 2**48 and 0 <= column < 2**12):
        raise ValueError(f"random key out of range (seed {seed}, epoch {epoch}, column {column})")
    key = np.array([seed, epoch | column << 48 | purpose << 60], np.uint64)
    return np.random.Philox(key=key).random_raw(n)


def uniforms(seed: int, epoch: int, n: int, k: int) -> np.ndarray:
    """Random numbers (n, k), float32 in [0, 1); element (i, j) depends only on (seed, epoch, i, j), not on n or k."""
    drawn = np.empty((n, k), np.float32)
    for column in range(k):
        drawn[:, column] = (words(seed, epoch, n, DRAWS, column) >> np.uint64(40)).astype(np.float32)
    drawn *= np.float32(2.0**-24)
    return drawn


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of 0 .. n-1 for one epoch, (n,) int64."""
    return np.argsort(words(seed, epoch, n, ORDER), kind="stable")


def slots(seed: int, epoch: int, order: np.ndarray, n: int, k: int) -> np.ndarray:
    """Random numbers (len(order), k), float32 in [0, 1), for each position in ``order``, which lists samples below ``n``.

    Those of a sample's first occurrence depend on (seed, epoch, sample) and equal :func:`uniforms`; later ones, which depend on
    (seed, epoch, number of earlier repetitions of any sample), differ from them, so that a repeated sample is augmented anew.
    """
    drawn = uniforms(seed, epoch, n, k)[order]
    repeated = _rank(order, np.arange(len(order))) > 0
    # with epoch numbers far above any real one
    drawn[repeated] = uniforms(seed, epoch + (1 << 32), int(repeated.sum()), k)
    return drawn


def pick(seed: int, epoch: int, chances: np.ndarray) -> np.ndarray:
    """Positions (n,) int64, drawn independently with the probabilities ``chances`` (n,)."""
    reach = np.cumsum(chances, dtype=np.float64)
    at = (words(seed, epoch, len(chances), PICK) >> np.uint64(11)).astype(np.float64) * 2.0**-53 * reach[-1]
    return np.minimum(np.searchsorted(reach, at, side="right"), np.flatnonzero(chances)[-1])


CHANCES = ("class_balanced", "square_root", "progressive", "focal")
"""Samplers that :func:`chances` computes."""


def chances(
    name: str, targets: np.ndarray, *, epoch: int = 0, epochs: int = 1, p: np.ndarray | None = None, exponent: float = 2.0
) -> np.ndarray:
    """Probability of each sample under a sampler, (n,) float64; the probabilities sum to 1.

    ``class_balanced`` draws every class equally often; ``square_root`` draws class c in proportion to n_c^(1/2); ``progressive``
    changes from n_c to equal probabilities over the ``epochs`` (Kang et al. 2020, "Decoupling", eq. 1 and 2; t/T with ``epoch``
    counted from 0). ``focal`` is proportional to (1 - p_t)^exponent, where ``p`` (n,) is the last p_t of each sample, or 0 if the
    sample has not been seen yet. For another training loop: ``torch.utils.data.WeightedRandomSampler(chances(...), n)``.

    Raises:
        ValueError: another name, or ``focal`` without ``p``.
    """
    targets, p = np.asarray(targets), None if p is None else np.asarray(p, np.float64)
    if name not in CHANCES:
        raise ValueError(f"name = {name!r} is not one of {', '.join(CHANCES)}")
    if name == "focal":
        if p is None or p.shape != targets.shape:
            raise ValueError(f"focal needs p, the last p_t of each of the {len(targets):,} samples (0 if not seen yet)")
        raw = np.maximum(1 - p, FLOOR) ** exponent
        return raw / raw.sum()
    counts = np.bincount(targets)
    present = counts > 0
    natural, balanced = counts / counts.sum(), present / present.sum()
    if name == "progressive":
        share = (1 - epoch / epochs) * natural + epoch / epochs * balanced
    else:
        share = {"class_balanced": balanced, "square_root": np.sqrt(counts) / np.sqrt(counts).sum()}[name]
    return (share / np.maximum(counts, 1))[targets]


def rare_odds(targets: np.ndarray) -> np.ndarray:
    """Odds of each sample, (n,) float64, that draw a class in proportion to 1 / samples of the class (Park et al. 2022, r = 1).

    Within a class, every sample is equally likely.
    """
    counts = np.bincount(targets)
    return (1.0 / np.maximum(counts, 1).astype(np.float64) ** 2)[targets]


@dataclass
class Sampler:
    """Samples of each epoch, drawn with replacement, and their last p_t.

    ``index`` (n,) has positions in a split of ``size`` samples, and ``targets`` (n,) has their classes. The whole state is in
    ``p``, ``next_p`` (size,) float32 and ``seen`` (3,) int64.
    """

    name: str
    index: np.ndarray
    targets: np.ndarray
    size: int
    seed: int
    epochs: int
    exponent: float = 2.0
    p: np.ndarray = field(init=False)
    """p_t of each sample before the epoch, by position in the split."""
    next_p: np.ndarray = field(init=False)
    """The same, updated with this epoch's samples."""
    seen: np.ndarray = field(init=False)
    """Numbers of easy, hard and all samples drawn so far in this epoch."""

    def __post_init__(self) -> None:
        self.p, self.next_p = np.zeros(self.size, np.float32), np.zeros(self.size, np.float32)
        self.seen = np.zeros(3, np.int64)

    def order(self, epoch: int) -> np.ndarray:
        """Positions in the split in the order of an epoch (counted from 0), (n,)."""
        p = self.p[self.index]
        odds = chances(self.name, self.targets, epoch=epoch, epochs=self.epochs, p=p, exponent=self.exponent)
        return self.index[pick(self.seed, epoch, odds)]

    def see(self, chosen: np.ndarray, p: np.ndarray) -> None:
        """Record p_t (m,) of the samples at ``chosen`` (m,)."""
        self.next_p[chosen] = p
        self.seen += [(p >= EASY).sum(), (p < HARD).sum(), len(p)]

    def end_epoch(self) -> dict[str, float]:
        """Shares in [0, 1] of easy and hard samples among those drawn; the recorded p_t applies from the next epoch on."""
        easy, hard, n = self.seen.tolist()
        self.p[:] = self.next_p
        self.seen[:] = 0
        return {"easy": easy / max(n, 1), "hard": hard / max(n, 1)}


def class_counts(targets: ArrayLike, classes: int) -> np.ndarray:
    """Number of samples of each class, (classes,) int64, from labels (N,).

    Raises:
        TypeError: the labels are not integers.
        ValueError: the labels are not (N,), or a label is outside of 0 to ``classes`` - 1.
    """
    labels = _labels(targets)
    if len(bad := np.flatnonzero((labels < 0) | (labels >= classes))):
        raise ValueError(f"targets[{bad[0]}] = {labels[bad[0]]} is out of range for {classes} classes")
    return np.bincount(labels.astype(np.int64), minlength=classes)


def _labels(targets: ArrayLike) -> np.ndarray:
    """Labels (N,); TypeError or ValueError for others than integers, or another shape."""
    labels = np.asarray(targets)
    if not np.issubdtype(labels.dtype, np.integer) and labels.size:
        raise TypeError(f"targets must be integers, not {labels.dtype}; number the classes from 0")
    if labels.ndim != 1:
        raise ValueError(f"targets must be (N,), not {labels.shape}")
    return labels


def carve(targets: np.ndarray, val: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions for training and for validation, disjoint and sorted; round(val n) are for validation, stratified by class.

    Each class contributes the integer part of its share; the classes with the largest remainders contribute one more sample each
    until the total is reached. Every class keeps at least one training sample, even if the total is then not reached.

    Raises:
        ValueError: ``val`` is outside of [0, 1).
    """
    if not 0 <= val < 1:
        raise ValueError(f"val = {val} is not in [0, 1)")
    targets = np.asarray(targets, np.int64)
    counts = np.bincount(targets)
    take = np.floor(val * counts).astype(np.int64)
    remainder = np.where(take + 1 < counts, val * counts - take, -1.0)
    more = min(round(val * len(targets)) - int(take.sum()), int((remainder > 0).sum()))
    take[np.argsort(-remainder, kind="stable")[: max(more, 0)]] += 1
    held = _rank(targets, words(seed, 0, len(targets), CARVE)) < take[targets]
    return np.flatnonzero(~held), np.flatnonzero(held)


def long_tail(targets: ArrayLike, imbalance: str, seed: int) -> np.ndarray:
    """Positions of a long-tailed subset, sorted.

    ``exp:f`` keeps int(n_max f^(i/(C-1))) samples of class i; ``step:f`` keeps n_max samples of each class in the first half of the
    classes and int(n_max f) of each other class (Cui et al. 2019, "Class-balanced loss", section 5.1; Cao et al. 2019, "LDAM",
    section 4). n_max is the mean number of samples per class: the classes should have equally many, and of a class with fewer than its
    share all are kept. A class whose share is below 1 gets no samples (see :func:`class_counts`). ``none`` keeps all samples. The
    subset of a larger f contains the subset of a smaller f.

    Raises:
        UsageError: ``imbalance`` has another form, or f is outside of (0, 1].
        TypeError, ValueError: the labels are not integers from 0 on of shape (N,), or ``imbalance`` or ``seed`` has another type.
    """
    if not isinstance(imbalance, str) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"imbalance = {imbalance!r}, seed = {seed!r}; give e.g. 'exp:0.01' and an integer")
    labels = _labels(targets).astype(np.int64)
    if labels.min(initial=0) < 0:
        raise ValueError(f"targets has the label {labels.min()}; number the classes from 0")
    if imbalance == "none" or not len(labels):
        return np.arange(len(labels))
    kind, factor = parse_imbalance(imbalance)
    classes = int(labels.max()) + 1
    ranks = np.arange(classes)
    shares = factor ** (ranks / max(classes - 1, 1)) if kind == "exp" else np.where(ranks < classes // 2, 1.0, factor)
    keep = (len(labels) / classes * shares).astype(np.int64)
    return np.flatnonzero(_rank(labels, words(seed, 0, len(labels), TAIL)) < keep[labels])


def per_class(targets: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Positions of ``n`` samples per class (all samples of a smaller class), drawn with ``seed``, sorted; 0 keeps all samples.

    The subset of a larger n contains the subset of a smaller n.
    """
    targets = np.asarray(targets, np.int64)
    if not n or not len(targets):
        return np.arange(len(targets))
    return np.flatnonzero(_rank(targets, words(seed, 0, len(targets), TAIL)) < n)


def training_index(targets: np.ndarray, imbalance: str, n: int, seed: int) -> np.ndarray:
    """Positions of the training samples of a recipe: those of :func:`long_tail`, at most ``n`` per class (:func:`per_class`)."""
    index = long_tail(targets, imbalance, seed)
    return index[per_class(np.asarray(targets)[index], n, seed)]


def parse_imbalance(text: str) -> tuple[str, float]:
    """``exp:0.01`` as kind and factor, ``none`` as ``("none", 1.0)``; UsageError for anything else."""
    if text == "none":
        return "none", 1.0
    kind, _, number = text.partition(":")
    try:
        factor = float(number)
    except ValueError:
        factor = -1.0
    if kind not in ("exp", "step") or not 0 < factor <= 1:
        raise UsageError(
            f"data.imbalance = {text[:40]!r} is not allowed; use none, exp:F or step:F with F in (0, 1], e.g. exp:0.01"
        )
    return kind, factor


def _rank(targets: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(n,) int64: the rank of each sample within its class when sorted by ``keys``."""
    by_class = np.lexsort((keys, targets))
    counts = np.bincount(targets)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.empty(len(targets), np.int64)
    rank[by_class] = np.arange(len(targets)) - first
    return rank


def effective_weights(counts: ArrayLike, beta: float) -> np.ndarray:
    """(1 - beta) / (1 - beta^n_c), scaled to sum to the number of classes, (C,) float64 (Cui et al. 2019, eq. 2 and 4).

    Raises:
        ValueError: beta is outside of [0, 1), or a class has no samples.
        TypeError: counts or beta are not numbers.
    """
    if not isinstance(beta, numbers.Real):
        raise TypeError(f"beta must be a number, not {type(beta).__name__}")
    if not 0 <= beta < 1:
        raise ValueError(f"beta = {beta} is not in [0, 1)")
    n = _populated(counts)
    # expm1 keeps 1 - beta^n exact for beta near 1, where beta^n rounds to 1
    return _scaled(1 / -np.expm1(n * np.log(beta)) if beta else np.ones(len(n)))


def inverse_weights(counts: ArrayLike, power: float = 1.0) -> np.ndarray:
    """n_c^-power, scaled to sum to the number of classes, (C,) float64; ValueError for a class without samples."""
    return _scaled(_populated(counts) ** -power)


def class_weights(counts: np.ndarray, kind: str, *, beta: float = 0.0, given: Sequence[float] = ()) -> np.ndarray | None:
    """Class weights (C,) float64 of a kind: ``effective``, ``inverse``, ``sqrt_inverse`` or ``given``; None for ``none``.

    The weight of a class without samples is undefined; it is set to 0, and the other weights sum to the number of the other classes.

    Raises:
        UsageError: ``given`` has the wrong length.
        ValueError: beta is outside of [0, 1).
    """
    if kind == "given":
        if len(given) != len(counts):
            raise UsageError(
                f"loss.given_weights has {len(given)} numbers, the data {len(counts)} classes; give one number per class"
            )
        return np.array(given, np.float64)
    if kind == "none":
        return None
    counts, weights = np.asarray(counts), np.zeros(len(counts))
    there = counts[counts > 0]
    power = {"inverse": 1.0, "sqrt_inverse": 0.5}
    weights[counts > 0] = effective_weights(there, beta) if kind == "effective" else inverse_weights(there, power[kind])
    return weights


def _populated(counts: ArrayLike) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.dtype.kind not in "iuf":
        raise TypeError(f"counts must be numbers, not {counts.dtype}; give the samples of each class")
    if counts.ndim != 1 or not len(counts):
        raise ValueError(f"counts must be (C,) with at least one class, not {counts.shape}")
    if len(bad := np.flatnonzero(~(np.isfinite(counts) & (counts > 0)))):
        raise ValueError(f"class {bad[0]} has {counts[bad[0]]} samples, so it has no weight; give at least 1")
    return counts.astype(np.float64)


def _scaled(weights: np.ndarray) -> np.ndarray:
    return weights * len(weights) / weights.sum()
