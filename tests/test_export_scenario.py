"""MLPerf's scenarios: the statistics equal those of LoadGen, and the loops follow its rules."""

from __future__ import annotations

import math
import re
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zoo.bench import _contenders, _scenario, _subjects
from zoo.bench._scenario import RULES, Outcome
from zoo.errors import FileError, UsageError


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


def test_a_long_wait_is_not_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_scenario, "PAUSE_NS", 1e7)
    monkeypatch.setattr(_scenario, "SILENT_SECONDS", 0.05)
    _scenario.poisson(lambda _: None, 5.0, 10, 0.0, 2, np.array([0.0, 0.2e9]))
    assert capsys.readouterr().err.count("measure  1 queries") >= 2


@pytest.mark.parametrize(("rate", "seconds"), [(0.05, 2.0), (1e9, 2.0), (1e13, 600.0)])
def test_a_rate_without_an_end(rate: float, seconds: float) -> None:
    with pytest.raises(
        UsageError, match=rf"--qps {re.escape(f'{rate:g}')} results in .* queries in {seconds:g} s \(allowed 2 to"
    ):
        _scenario.main(targets=["absent"], scenario="server", rate=rate, seconds=seconds)


def test_the_expected_time() -> None:
    assert _scenario._duration(RULES["single"], 5.0, 0.0) == 5
    assert _scenario._duration(RULES["server"], 5.0, 100.0) == 5
    assert _scenario._duration(RULES["server"], 600.0, 0.1) == 4590, "459 queries by the rules"
    assert _scenario._duration(RULES["server"], 10.0, 0.0) == 13, "with the search"


def subject(name: str, fixed: int = 0) -> _subjects.Subject:
    return _subjects.Subject(name, (3, 4, 4), None, {"fp32": Path("model.onnx")}, fixed=fixed)


def test_a_fixed_batch_is_refused_first() -> None:
    with pytest.raises(
        FileError, match=r"only batches of 4 \(model.onnx, scenario single sends 1\); export it with a free batch"
    ):
        _scenario._check_batch(subject("net", 4), RULES["single"], "single")
    _scenario._check_batch(subject("net", 8), RULES["multi"], "multi")


def test_each_model_has_its_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of one model have one name."""
    contender = _contenders.Contender("onnxruntime cpu", "fp32", None, 0.0)  # type: ignore[arg-type]
    monkeypatch.setattr(_subjects, "opened", lambda target, *_, **__: nullcontext(subject("timm/net")))
    monkeypatch.setattr(_scenario._runtimes, "of_onnxruntime", lambda *_: [contender])
    monkeypatch.setattr(_scenario._runtimes, "of_openvino", lambda *_, **__: [])
    monkeypatch.setattr(_scenario, "_run", lambda *_: (Outcome(np.ones(4), 1.0, 4), (2, 4)))
    _scenario.main(True, ["a", "b"], scenario="single", out=tmp_path / "x.csv")
    found = {path.name.removesuffix(".mlperf_log_summary.txt") for path in tmp_path.glob("*.txt")}
    assert found == {"x.1-timm-net.onnxruntime-cpu", "x.2-timm-net.onnxruntime-cpu"}
    _scenario.main(True, ["a"], scenario="single", out=tmp_path / "y.csv")
    assert (tmp_path / "y.onnxruntime-cpu.mlperf_log_summary.txt").is_file()


def test_offline_counts_samples() -> None:
    outcome = Outcome(np.ones(384), 600.0, 24_576)
    assert all(_scenario.met(outcome, RULES["offline"], 15.0).values())
    assert _scenario.headline(outcome, RULES["offline"]) == ("samples per second", 24_576 / 600)
