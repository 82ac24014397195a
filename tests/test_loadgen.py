"""The scenarios of ``zoo bench`` against MLPerf's own load generator on the same model: ``pip install mlcommons-loadgen``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.bench import _scenario
from zoo.bench._scenario import RULES

pytestmark = pytest.mark.slow
lg = pytest.importorskip("mlperf_loadgen")

SECONDS, ROUNDS, SAMPLES = 4.0, 7, 64
Query = Callable[[np.ndarray], object]


@pytest.fixture
def query() -> Query:
    """A net of a few milliseconds that copies its samples as zoo's scenarios do."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 32, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(10),
    ]
    net, images = torch.nn.Sequential(*layers).eval(), torch.randn(SAMPLES, 3, 64, 64)

    def run(chosen: np.ndarray) -> object:
        with torch.inference_mode():
            return net(images[torch.from_numpy(chosen)])

    run(np.zeros(8, np.int64))
    return run


def theirs(query: Query, scenario: str, folder: Path) -> float:
    """The metric in LoadGen's summary: a latency in ns, or samples per second."""

    def issue(samples: list[Any]) -> None:
        for start in range(0, len(samples), size):
            query(np.array([each.index for each in samples[start : start + size]]))
        lg.QuerySamplesComplete([lg.QuerySampleResponse(each.id, 0, 0) for each in samples])

    size = max(RULES[scenario].samples, 1)
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, RULES[scenario].name)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(1000 * SECONDS)
    settings.min_query_count = 1
    settings.multi_stream_samples_per_query = 8
    settings.offline_expected_qps = 200
    log = lg.LogSettings()
    output = lg.LogOutputSettings()
    output.outdir = str(folder)
    log.log_output = output
    system, library = lg.ConstructSUT(issue, lambda: None), lg.ConstructQSL(SAMPLES, SAMPLES, lambda _: None, lambda _: None)
    try:
        lg.StartTestWithLogSettings(system, library, settings, log, "")
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(system)
    text = (folder / "mlperf_log_summary.txt").read_text()
    pattern = r"Samples per second: ([\d.e+]+)" if scenario == "offline" else r"50.00 percentile latency \(ns\)\s*: (\d+)"
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


def ours(query: Query, scenario: str) -> float:
    outcome = _scenario.closed_loop(query, RULES[scenario], SAMPLES, SECONDS, 1)
    return outcome.samples / outcome.seconds if scenario == "offline" else float(np.median(outcome.latencies))


@pytest.mark.parametrize("scenario", ["single", "multi", "offline"])
def test_a_scenario_measures_what_loadgen_measures(scenario: str, query: Query, tmp_path: Path) -> None:
    """The median of the ratios of :data:`ROUNDS` interleaved rounds is within 2 %."""
    ratios = []
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        if number % 2:
            second, first = theirs(query, scenario, folder), ours(query, scenario)
        else:
            first, second = ours(query, scenario), theirs(query, scenario, folder)
        ratios.append(first / second)
    print(f"{scenario}: {np.median(ratios):.4f}, {min(ratios):.4f} to {max(ratios):.4f}")
    assert abs(np.median(ratios) - 1) <= 0.02, ratios
