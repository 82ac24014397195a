"""MLPerf's scenarios: the statistics equal those of LoadGen, and the loops follow its rules."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from zoo.bench import _scenario
from zoo.bench._scenario import RULES, Outcome


def test_the_early_stopping_bound_is_loadgens() -> None:
    """Output of mlcommons-loadgen 6.0.17 for 1,063 queries, and for the fewest that it accepts (MLPerf's minima)."""
    assert _scenario.discarded(1063, 0.9) == 83, "it would discard 82, and reports the next"
    latencies = np.arange(1063.0)
    assert _scenario.bound(latencies, 0.9) == 1063 - 83
    assert _scenario.bound(latencies, 0.99) == 1063 - 3
    assert [_scenario.discarded(n, 0.9) for n in (63, 64)] == [0, 1]
    assert [_scenario.discarded(n, 0.99) for n in (661, 662)] == [0, 1]
    assert [_scenario.discarded(n, 0.99) for n in (458, 459)] == [-1, 0], "227 + 232 queries, none too late"
    assert math.isinf(_scenario.bound(latencies[:63], 0.9))


def test_a_closed_loop_ends_when_time_and_number_are_reached() -> None:
    seen: list[np.ndarray] = []
    rules = replace(RULES["multi"], queries=5)
    outcome = _scenario.closed_loop(seen.append, rules, 100, 0.0, 5)
    assert len(outcome.latencies) == 5
    assert outcome.samples == 40
    assert all(len(chosen) == 8 and chosen.max() < 100 for chosen in seen)
    assert len({tuple(chosen) for chosen in seen}) == 5, "each query draws anew"
    assert _scenario.closed_loop(lambda _: time.sleep(0.002), RULES["single"], 10, 0.05, 1).seconds >= 0.05


def test_poisson_latencies_begin_at_the_scheduled_time() -> None:
    """One query takes 50 ms: later ones wait meanwhile, and their waiting time counts."""
    calls = []

    def query(chosen: np.ndarray) -> None:
        calls.append(chosen)
        if len(calls) == 3:
            time.sleep(0.05)

    outcome = _scenario.poisson(query, 400.0, 10, 0.0, 40)
    assert len(outcome.latencies) == 40
    assert outcome.latencies[2] >= 50e6
    assert outcome.latencies[3] > 20e6, "it was due a few ms after the third"
    assert np.median(outcome.latencies) < np.max(outcome.latencies) / 2


@pytest.mark.parametrize(
    ("scenario", "latencies", "seconds", "unmet"),
    [
        ("single", np.ones(1024), 600, set()),
        ("single", np.ones(1023), 600, {"Min queries satisfied"}),
        ("single", np.ones(1024), 599, {"Min duration satisfied"}),
        ("server", np.ones(459), 600, set()),
        ("server", np.r_[np.ones(499), 2e7], 600, {"Early stopping satisfied"}),
        (
            "server",
            np.r_[np.ones(490), np.full(10, 2e7)],
            600,
            {"Early stopping satisfied", "Performance constraints satisfied"},
        ),
        ("multi", np.ones(662), 600, set()),
    ],
)
def test_what_a_result_has_to_meet(scenario: str, latencies: np.ndarray, seconds: float, unmet: set[str]) -> None:
    rules = RULES[scenario]
    outcome = Outcome(latencies, seconds, len(latencies) * rules.samples, 10.0)
    found = _scenario.met(outcome, rules, 15.0)
    assert {name for name, fits in found.items() if not fits} == unmet
    text = _scenario.summary(outcome, rules, 15.0, "net")
    assert f"Result is : {'INVALID' if unmet else 'VALID'}" in text
    assert f"Scenario : {rules.name}" in text


def test_offline_counts_samples() -> None:
    outcome = Outcome(np.ones(384), 600.0, 24_576)
    assert all(_scenario.met(outcome, RULES["offline"], 15.0).values())
    assert _scenario.headline(outcome, RULES["offline"]) == ("samples per second", 24_576 / 600)
