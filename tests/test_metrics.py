"""Numbers of an evaluation against values computed by hand or by another formula."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from zoo import metrics, tables
from zoo.errors import DataError, DivergedError


def certain(predicted: list[int], classes: int) -> torch.Tensor:
    """Logits (N, C) whose largest entry is the predicted class."""
    return 9.0 * torch.eye(classes)[predicted]


def wilson(correct: int, n: int) -> tuple[float, float]:
    """scipy's."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def test_a_small_evaluation() -> None:
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    result = metrics.evaluate(certain([0, 0, 0, 1, 1, 0, 2], 4), targets)
    assert result.confusion.tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert result.confusion.dtype == np.int64
    assert (result.n, result.accuracy) == (7, 5 / 7)
    assert result.macro == pytest.approx((3 / 4 + 1 / 2 + 1) / 3), "a class without images has no part in the mean"
    assert (result.low, result.high) == pytest.approx(wilson(5, 7))
    assert result.per_class[0] == pytest.approx((4, 3, 0.75, *wilson(3, 4)))
    assert result.per_class[3] == (0, 0, None, None, None)
    assert result.worst_pairs() == [(0, 1, 1, 1, 6, 2 / 6)], "both directions count, pairs that were never confused do not"
    wrong, right = math.log(math.exp(9) + 3), math.log(math.exp(9) + 3) - 9
    assert result.loss == pytest.approx((2 * wrong + 5 * right) / 7)


def test_worst_pairs_are_sorted() -> None:
    confusion = np.array([[9, 1, 4], [2, 9, 0], [4, 1, 9]])
    assert metrics.worst_pairs(confusion, 2) == [(0, 2, 4, 4, 28, 8 / 28), (0, 1, 1, 2, 25, 3 / 25)]
    assert [pair[:2] for pair in metrics.worst_pairs(confusion, 9)[2:]] == [(1, 2)]


def test_a_summary_names_the_pairs_and_splits_the_tail() -> None:
    result = metrics.evaluate(certain([0, 0, 0, 1, 1, 0, 2], 3), torch.tensor([0, 0, 0, 0, 1, 1, 2]))
    found = result.summary(("cat", "dog", "eel"), [500, 50, 5])
    assert found["worst_pairs"] == [{"first": "cat", "second": "dog", "there": 1, "back": 1, "n": 6, "share": 2 / 6}]
    assert [(shot["name"], shot["classes"], shot["correct"]) for shot in found["shots"]] == [
        ("many", 1, 3),
        ("medium", 1, 1),
        ("few", 1, 1),
    ]
    assert (found["accuracy"], found["ece"], found["low"]) == (result.accuracy, result.ece, result.low)
    assert result.summary(("cat", "dog", "eel"), [500, 500, 500])["shots"] == [], "nothing to split"
    assert result.summary(("cat", "dog", "eel"))["shots"] == []
    assert json.loads(json.dumps(found)) == found


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_is_wilsons(pair: tuple[int, int]) -> None:
    correct, n = pair
    _, _, share, low, high = metrics.class_row(n, correct)
    assert share is not None
    assert low is not None
    assert high is not None
    assert (low, high) == pytest.approx(wilson(correct, n), abs=1e-9)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


def test_nothing_to_evaluate() -> None:
    with pytest.raises(DataError, match=r"no images to evaluate \(0 images\)"):
        metrics.evaluate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite(bad: float) -> None:
    logits = torch.zeros(5, 3)
    logits[2, 1] = bad
    with pytest.raises(DivergedError, match="1 of 5 images"):
        metrics.evaluate(logits, torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("targets", [[0, 3], [-1, 0], [0], [[0, 1]]])
def test_targets_that_do_not_fit(targets: list) -> None:
    with pytest.raises(ValueError, match="targets"):
        metrics.evaluate(torch.zeros(2, 3), torch.tensor(targets))


def test_unsigned_targets() -> None:
    for kind in (np.uint16, np.uint32, np.uint64):
        assert metrics.evaluate(np.eye(3), np.arange(3, dtype=kind)).accuracy == 1
    with pytest.raises(ValueError, match="bins is 0; expected at least 1"):
        metrics.calibration_error(np.eye(3), np.arange(3), bins=0)


def test_half_precision_logits() -> None:
    logits, targets = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.arange(64) % 10
    assert metrics.evaluate(logits, targets).loss == pytest.approx(metrics.evaluate(logits.float(), targets).loss, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # two images at confidence 0.9 (one right), two at 0.6 (both right): (|1 - 1.8| + |2 - 1.2|) / 4
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]).log()
    assert metrics.calibration_error(logits, torch.tensor([0, 1, 0, 0])) == pytest.approx((0.8 + 0.8) / 4)


def test_calibrated_outputs_have_little_error() -> None:
    chance = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(20000, 5, generator=chance)
    drawn = torch.multinomial(logits.softmax(1), 1, generator=chance)[:, 0]
    assert metrics.calibration_error(logits, drawn) < 0.02
    assert metrics.calibration_error(4 * logits, drawn) > 0.15, "the same predictions, too sure"


def test_shots_follow_the_training_counts() -> None:
    rows = [metrics.class_row(10, right) for right in (9, 8, 7, 6, 5, 4)]
    many, medium, few = metrics.shots(rows, [5000, 101, 100, 20, 19, 0])
    assert [(s.name, s.classes, s.n, s.correct) for s in (many, medium, few)] == [
        ("many", 2, 20, 17), ("medium", 2, 20, 13), ("few", 2, 20, 9),
    ]  # fmt: skip
    assert many.macro == pytest.approx(0.85)
    assert (many.low, many.high) == pytest.approx(wilson(17, 20))


def test_shots_of_a_test_set_that_is_not_balanced() -> None:
    (many,) = metrics.shots([metrics.class_row(30, 30), metrics.class_row(10, 0), metrics.class_row(0, 0)], [500, 500, 500])
    assert (many.accuracy, many.macro) == (0.75, 0.5)
    (empty,) = metrics.shots([metrics.class_row(0, 0)], [3])
    assert (empty.name, empty.accuracy, empty.low, empty.macro) == ("few", None, None, None)


def test_the_interval_of_the_mean_over_classes_is_about_that_mean() -> None:
    rows = [metrics.class_row(10, 8), metrics.class_row(3, 0), metrics.class_row(0, 0)]
    (few,) = metrics.shots(rows, [18, 7, 7])
    assert few.macro == pytest.approx(0.4)
    assert (few.low, few.high) == pytest.approx(wilson(8, 13)), "of all images, whose share is 0.62"
    (low, high), (first_low, first_high), (_, last_high) = (few.macro_low, few.macro_high), wilson(8, 10), wilson(0, 3)
    assert low == pytest.approx(0.4 - (0.8 - first_low) / 2)
    assert high == pytest.approx(0.4 + np.hypot(first_high - 0.8, last_high) / 2)
    assert metrics.mean_interval([rows[0], rows[2]]) == pytest.approx(wilson(8, 10)), "one class: Wilson's"
    assert metrics.mean_interval(rows[:1] * 4) == pytest.approx(wilson(32, 40)), "classes of one size: Wilson's"


def test_the_table_has_the_interval_of_the_mean_over_classes(capsys: pytest.CaptureFixture[str]) -> None:
    targets = torch.tensor([0] * 40 + [1] * 10 + [2] * 3)
    predicted = torch.tensor([0] * 40 + [1] * 8 + [0] * 5)
    result = metrics.evaluate(torch.eye(3)[predicted], targets)
    tables.evaluation("test", ("cat", "dog", "eel"), result, [90, 18, 7])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("few"))
    assert line.split()[-4:] == ["40.0", "24.5", "to", "69.0"]


def test_the_interval_of_the_mean_over_classes_covers_it() -> None:
    chance, n, p = np.random.default_rng(0), (500, 20, 5), (0.9, 0.2, 0.5)
    drawn = [[metrics.class_row(k, int(chance.binomial(k, share))) for k, share in zip(n, p)] for _ in range(1000)]
    ends = np.array([metrics.mean_interval(rows) for rows in drawn])
    covered = ((ends[:, 0] <= np.mean(p)) & (np.mean(p) <= ends[:, 1])).mean()
    assert 0.92 <= covered <= 0.98, "the interval of all images covers it never"


def test_shots_need_a_count_a_class() -> None:
    with pytest.raises(ValueError, match="2 classes, 1 training"):
        metrics.shots([metrics.class_row(1, 1)] * 2, [5])


def test_mcnemar_is_the_exact_binomial_test() -> None:
    a = np.array([True] * 12 + [False] * 3 + [True] * 50 + [False] * 5)
    b = np.array([False] * 12 + [True] * 3 + [True] * 50 + [False] * 5)
    only_a, only_b, p = metrics.mcnemar(a, b)
    assert (only_a, only_b) == (12, 3)
    assert p == pytest.approx(2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    assert metrics.mcnemar(b, a) == (3, 12, p)


def test_mcnemar_of_a_model_with_itself() -> None:
    assert metrics.mcnemar([True, False], [True, False]) == (0, 0, 1.0)


def test_mcnemar_needs_the_same_images() -> None:
    with pytest.raises(ValueError, match="same images"):
        metrics.mcnemar([True], [True, False])
