"""The scenarios of ``zoo bench --scenario`` against MLPerf's load generator (the PyPI package ``mlcommons-loadgen``).

Both send the same queries to the same onnxruntime session, in turns; a ratio is that of one round. Single and multi stream compare the
median latency, offline the samples per second, server the mean latency at half the highest rate, for the same arrival times.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from zoo import machine, tables
from zoo.bench import _runtimes, _scenario, _subjects, _timing
from zoo.bench._scenario import RULES, Rules
from zoo.console import print_line
from zoo.errors import UsageError

Query = Callable[[np.ndarray], object]
POOL = 256
"""Number of distinct images for queries."""
PATTERNS = {
    "single": r"50.00 percentile latency \(ns\)\s*: (\d+)", "multi": r"50.00 percentile latency \(ns\)\s*: (\d+)",
    "server": r"Mean latency \(ns\)\s*: (\d+)", "offline": r"Samples per second: ([\d.e+]+)",
}  # fmt: skip
"""What is compared, in LoadGen's summary."""
MEASURES = {"single": "median ms", "multi": "median ms", "server": "mean ms", "offline": "samples per s"}


def main(
    quick: bool = False, *, out: Path | None = None, model: str = "resnet110", rounds: int = 0, seconds: float = 0.0
) -> Path:
    """Compare all scenarios on a model with random weights; returns the CSV.

    Raises:
        UsageError: LoadGen is not installed.
    """
    generator = _generator()
    rounds, seconds = rounds or (1 if quick else 15), seconds or (0.5 if quick else 4.0)
    path, found, threads = out or _timing.default_out("loadgen", quick=quick), [], machine.cores()
    with _subjects.opened(model, ("fp32",)) as subject:
        (contender,) = _runtimes.of_onnxruntime(subject.files, torch.device("cpu"), threads)
        images = subject.noise(POOL)
        for scenario, rules in RULES.items():
            _, _, query = _scenario.prepared(contender, images, rules.samples)
            pairs = _rounds(generator, query, scenario, rounds, seconds)
            found.append({"model": subject.name, "runtime": contender.name, "threads": threads} | row(scenario, pairs))
    return _timing.write_csv(path, [each | _timing.environment() for each in found])


def _rounds(generator: Any, query: Query, scenario: str, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """(zoo, LoadGen) of each round, in alternating order."""
    rules, found = RULES[scenario], []
    rate = _speed(query, rules) / 2 if rules.name == "Server" else 0.0
    ours = partial(_ours, query, rules, rate, seconds)
    theirs = partial(_theirs, generator, query, scenario, rate, seconds)
    for number in range(rounds):
        print_line(f"measure  {rules.name}, round {number + 1} of {rounds}")
        if number % 2:
            second, first = theirs(), ours()
        else:
            first, second = ours(), theirs()
        found.append((first, second))
    return found


def _generator() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise UsageError(
            "MLPerf's load generator is not installed (mlperf_loadgen); install it: pip install mlcommons-loadgen"
        ) from error
    return mlperf_loadgen


def _ours(query: Query, rules: Rules, rate: float, seconds: float) -> float:
    """ns, or samples per second."""
    if rules.name == "Server":
        return float(_scenario.poisson(query, rate, POOL, seconds, 1, arrivals(rate, seconds)).latencies.mean())
    outcome = _scenario.closed_loop(query, rules, POOL, seconds, 1)
    return outcome.samples / outcome.seconds if rules.name == "Offline" else float(np.median(outcome.latencies))


def arrivals(rate: float, seconds: float) -> np.ndarray:
    """LoadGen's arrival times (queries,) in ns for seed 0: std::mt19937 and libstdc++'s exponential distribution, from 0 on.

    Waiting times depend so much on the arrivals that other ones would differ by far more than 2 %.
    """
    words = np.random.RandomState(0).randint(0, 2**32, size=(1 + int(3 * rate * seconds), 2), dtype=np.uint32).astype(float)
    gaps = -np.log1p(-(words[:, 0] + words[:, 1] * 2**32) / 2**64) / rate
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    return np.asarray(times[times < seconds] * 1e9)


def _theirs(generator: Any, query: Query, scenario: str, rate: float, seconds: float) -> float:
    """ns, or samples per second, as LoadGen reports them."""
    rules = RULES[scenario]

    def issue(samples: list[Any]) -> None:
        for start in range(0, len(samples), rules.samples):
            chosen = np.array([each.index for each in samples[start : start + rules.samples]])
            query(chosen)
        generator.QuerySamplesComplete([generator.QuerySampleResponse(each.id, 0, 0) for each in samples])

    settings = generator.TestSettings()
    settings.scenario = getattr(generator.TestScenario, rules.name)
    settings.mode = generator.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = int(1000 * seconds), 1
    settings.multi_stream_samples_per_query = RULES["multi"].samples
    if scenario == "server":
        settings.server_target_qps, settings.server_target_latency_ns = rate, int(1e9)
    settings.schedule_rng_seed = 0
    if scenario == "offline":  # one query of whole parts: samples that fill the last part would be computed but not counted
        settings.min_query_count = rules.samples * max(1, round(_speed(query, rules) * seconds / rules.samples))
        settings.min_duration_ms, settings.offline_expected_qps = 1, 1.0
    with tempfile.TemporaryDirectory() as folder:
        log, output = generator.LogSettings(), generator.LogOutputSettings()
        output.outdir = folder
        log.log_output = output
        system = generator.ConstructSUT(issue, lambda: None)
        library = generator.ConstructQSL(POOL, POOL, lambda _: None, lambda _: None)
        try:
            generator.StartTestWithLogSettings(system, library, settings, log, "")
        finally:
            generator.DestroyQSL(library)
            generator.DestroySUT(system)
        text = (Path(folder) / "mlperf_log_summary.txt").read_text()
    reported = re.search(PATTERNS[scenario], text)
    assert reported, text
    return float(reported[1])


def _speed(query: Query, rules: Rules) -> float:
    """Samples per second of a closed loop: they determine the rate of server and the length of offline's only query."""
    loop = _scenario.closed_loop(query, rules, POOL, 0.5, 2)
    return loop.samples / loop.seconds


def row(scenario: str, pairs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The CSV row of rounds of (zoo, LoadGen) values in ns or samples per second."""
    values = np.array(pairs, float) / (1.0 if scenario == "offline" else 1e6)
    ratios = values[:, 0] / values[:, 1]
    low, high = _timing.median_interval(ratios)
    figures = {
        "scenario": RULES[scenario].name, "measure": MEASURES[scenario], "measured": float(np.median(values[:, 0])),
        "loadgen": float(np.median(values[:, 1])), "ratio": float(np.median(ratios)), "ratio_low": low, "ratio_high": high,
        "rounds": len(ratios),
    }  # fmt: skip
    return {key: _timing.rounded(value) for key, value in figures.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    shown = (
        (each["scenario"], each["measure"], each["measured"], each["loadgen"], each["ratio"], f"{each['ratio_low']}-{each['ratio_high']}")
        for each in rows
    )  # fmt: skip
    return tables.make(("scenario", "measure", ">zoo", ">LoadGen", ">ratio", ">95 %"), shown)
