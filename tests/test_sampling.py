"""Subsets, orders and weights: exact counts, independent of batch size and earlier calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import sampling
from zoo.errors import UsageError

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
def test_a_wrong_imbalance_is_reported(text: str) -> None:
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
    """Golden values: a change breaks resuming of every existing run."""
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
    with pytest.raises(ValueError, match="class 1 has 0 samples"):
        make(np.array([3, 0, 2]))  # type: ignore[operator]
    with pytest.raises(ValueError, match="beta"):
        sampling.effective_weights(np.array([3]), 1.0)


TAIL = np.repeat(np.arange(3), [600, 80, 20])


def test_draws_of_a_place_are_its_sample_s_and_its_turn_s() -> None:
    order = np.array([5, 2, 5, 5, 0, 2])
    drawn = sampling.slots(3, 4, order, 9, 6)
    plain = sampling.uniforms(3, 4, 9, 6)
    assert np.array_equal(drawn[[0, 1, 4]], plain[[5, 2, 0]])  # first draw: as without a sampler
    assert len(np.unique(drawn[:, 0])) == 6  # repeated draws of a sample are augmented differently
    shuffled = np.array([2, 5, 2, 0, 5, 5])
    again = sampling.slots(3, 4, shuffled, 9, 6)
    assert np.array_equal(again[[0, 1, 3]], drawn[[1, 0, 4]])  # of a first draw: independent of the position in the epoch
    assert np.array_equal(sampling.slots(3, 4, order[:3], 9, 6), drawn[:3])


def test_a_sample_that_is_drawn_very_often_has_other_draws_each_time() -> None:
    """Few images of a class that is drawn as often as all others: each repetition costs one row of numbers."""
    order = np.zeros(70_000, np.int64)
    drawn = sampling.slots(0, 0, order, 100_000, 2)
    assert len(np.unique(drawn[:, 0])) > 69_000 and drawn[0].tolist() == sampling.uniforms(0, 0, 1, 2)[0].tolist()
    assert drawn[1].tolist() != drawn[0].tolist()


def test_class_chances_follow_the_formulas() -> None:
    def by_class(name: str, **options: int) -> np.ndarray:
        each = sampling.chances(name, TAIL, **options)
        assert each.sum() == pytest.approx(1)
        return np.bincount(TAIL, each)

    counts = np.array([600, 80, 20])
    assert by_class("class_balanced") == pytest.approx([1 / 3] * 3)
    assert by_class("square_root") == pytest.approx(np.sqrt(counts) / np.sqrt(counts).sum())
    assert by_class("progressive", epoch=0, epochs=8) == pytest.approx(counts / 700)
    assert by_class("progressive", epoch=2, epochs=8) == pytest.approx(0.75 * counts / 700 + 0.25 / 3)


def test_a_class_that_is_not_there_takes_no_share() -> None:
    assert np.bincount([0, 0, 2], sampling.chances("class_balanced", np.array([0, 0, 2]))) == pytest.approx([0.5, 0, 0.5])


def test_focal_chances_prefer_hard_samples_and_drop_none() -> None:
    p = np.array([0.0, 0.5, 0.75, 1.0], np.float32)
    chances = sampling.chances("focal", np.zeros(4, int), p=p, exponent=2.0)
    assert chances / chances[0] == pytest.approx([1, 0.25, 0.0625, 1e-6])
    assert sampling.chances("focal", np.zeros(4, int), p=p, exponent=0.0) == pytest.approx([0.25] * 4)


def test_picks_have_the_chances_they_are_given() -> None:
    chances = np.repeat([0.5, 0.0, 0.3, 0.2], 1000) / 1000
    picks = np.concatenate([sampling.pick(1, epoch, chances) for epoch in range(10)])
    assert np.bincount(picks // 1000, minlength=4) / len(picks) == pytest.approx([0.5, 0, 0.3, 0.2], abs=0.01)
    assert np.array_equal(picks[:4000], sampling.pick(1, 0, chances))
    assert not np.array_equal(picks[:4000], picks[4000:8000])
    assert not np.array_equal(picks[:4000], sampling.pick(2, 0, chances))


def test_a_sampler_s_epoch_does_not_hang_on_what_the_epoch_shows() -> None:
    sampler = sampling.Sampler("focal", np.arange(100, 800), TAIL, 900, seed=0, epochs=5)
    first = sampler.order(0)
    assert first.min() >= 100
    assert first.max() < 800
    sampler.see(np.arange(100, 700), np.full(600, 0.99, np.float32))
    sampler.see(np.arange(700, 800), np.full(100, 0.1, np.float32))
    assert np.array_equal(sampler.order(0), first)  # a run that stops here resumes with the same epoch
    assert sampler.end_epoch() == {"easy": pytest.approx(600 / 700), "hard": pytest.approx(100 / 700)}
    assert (sampler.order(1) >= 700).mean() > 0.99
    assert sampler.end_epoch() == {"easy": 0, "hard": 0}
