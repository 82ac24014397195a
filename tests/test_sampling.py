"""Subsets, orders and weights: exact counts, and nothing that depends on batch size or on what ran before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import sampling
from zoo.spec import UsageError

CIFAR10 = np.repeat(np.arange(10), 5000)
labels = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(np.array)
seeds = st.integers(0, 2**31 - 1)


@pytest.mark.parametrize(
    ("imbalance", "expected"),
    [
        ("exp:0.01", [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        ("exp:0.1", [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        ("step:0.01", [5000] * 5 + [50] * 5),
        ("exp:1", [5000] * 10),
        ("none", [5000] * 10),
    ],
)
def test_long_tail_counts(imbalance: str, expected: list[int]) -> None:
    assert sampling.class_counts(CIFAR10[sampling.long_tail(CIFAR10, imbalance, 3)], 10).tolist() == expected


@pytest.mark.parametrize("text", ["exp", "exp:", "exp:0", "exp:-1", "exp:1.5", "exp:nan", "tail:0.1", "", "step:x"])
def test_a_wrong_imbalance_is_told(text: str) -> None:
    with pytest.raises(UsageError, match=r"data\.imbalance = .* use none, exp:F or step:F"):
        sampling.long_tail(CIFAR10, text, 0)


def test_a_milder_tail_keeps_what_a_stronger_one_has() -> None:
    strong, mild = (set(sampling.long_tail(CIFAR10, text, 1).tolist()) for text in ("exp:0.01", "exp:0.1"))
    assert strong < mild
    assert set(sampling.long_tail(CIFAR10, "exp:0.01", 2).tolist()) != strong


@given(labels, st.floats(0, 0.99), seeds)
@settings(max_examples=100, deadline=None)
def test_carve_is_a_stratified_partition(targets: np.ndarray, val: float, seed: int) -> None:
    train, held = sampling.carve(targets, val, seed)
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(len(targets)))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
    counts, taken = np.bincount(targets), np.bincount(targets[held], minlength=targets.max() + 1)
    assert (np.abs(taken - val * counts) < 1 + 1e-9).all()
    assert (taken[counts > 0] < counts[counts > 0]).all()
    assert len(held) <= round(val * len(targets))


def test_carve_meets_the_total_and_depends_on_the_seed() -> None:
    targets = np.repeat(np.arange(101), np.arange(31, 132))
    halves = [sampling.carve(targets, 0.5, seed)[1] for seed in (0, 0, 1)]
    assert len(halves[0]) == round(len(targets) / 2)
    assert np.array_equal(halves[0], halves[1])
    assert not np.array_equal(halves[0], halves[2])
    with pytest.raises(ValueError, match="val = 1"):
        sampling.carve(targets, 1.0, 0)


@given(seeds, st.integers(0, 1000), st.integers(1, 60), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_a_draw_depends_on_seed_epoch_row_and_column_only(seed: int, epoch: int, n: int, k: int) -> None:
    drawn = sampling.uniforms(seed, epoch, n, k)
    assert drawn.dtype == np.float32 and drawn.shape == (n, k)
    assert (drawn >= 0).all() and (drawn < 1).all()
    assert np.array_equal(sampling.uniforms(seed, epoch, n + 37, k + 2)[:n, :k], drawn)
    assert not np.array_equal(sampling.uniforms(seed, epoch + 1, n, k), drawn)


def test_draws_are_the_same_on_every_machine() -> None:
    """Golden values: a change here breaks the resuming of every run."""
    assert sampling.words(1, 2, 2).tolist() == [5705853004827290377, 6584680345644299050]
    assert sampling.order(7, 3, 8).tolist() == [4, 2, 7, 3, 1, 6, 0, 5]


def test_draws_are_uniform_and_columns_independent() -> None:
    drawn = sampling.uniforms(5, 0, 40_000, 4).astype(np.float64)
    assert np.allclose(drawn.mean(0), 0.5, atol=0.01)
    assert np.allclose(drawn.var(0), 1 / 12, atol=0.002)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.02


def test_order_is_a_permutation_of_its_own_stream() -> None:
    orders = [sampling.order(0, epoch, 1000) for epoch in (0, 0, 1)]
    assert np.array_equal(np.sort(orders[0]), np.arange(1000))
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    assert not np.array_equal(orders[0], np.argsort(sampling.uniforms(0, 0, 1000, 1)[:, 0]))


def test_keys_out_of_range_are_refused() -> None:
    for key in ((-1, 0), (2**64, 0), (0, -1), (0, 2**48)):
        with pytest.raises(ValueError, match="out of range"):
            sampling.words(*key, 3)


def test_effective_weights_follow_the_formula() -> None:
    counts, beta = np.array([5000, 2997, 50]), 0.9999
    plain = (1 - beta) / (1 - beta**counts)
    assert sampling.effective_weights(counts, beta) == pytest.approx(plain * 3 / plain.sum(), rel=1e-9)
    assert sampling.effective_weights(counts, 0.0).tolist() == [1, 1, 1]
    assert sampling.effective_weights(counts, 1 - 1e-15) == pytest.approx(sampling.inverse_weights(counts), rel=1e-3)


def test_inverse_weights() -> None:
    assert sampling.inverse_weights(np.array([1, 4])) == pytest.approx([1.6, 0.4])
    assert sampling.inverse_weights(np.array([1, 4]), 0.5) == pytest.approx([4 / 3, 2 / 3])


@pytest.mark.parametrize("make", [sampling.inverse_weights, lambda counts: sampling.effective_weights(counts, 0.9)])
def test_a_class_without_samples_has_no_weight(make: object) -> None:
    with pytest.raises(ValueError, match="class 1 has no samples"):
        make(np.array([3, 0, 2]))  # type: ignore[operator]
    with pytest.raises(ValueError, match="beta"):
        sampling.effective_weights(np.array([3]), 1.0)
