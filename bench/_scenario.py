"""``zoo bench --scenario``: the four load patterns of MLPerf inference, with its rules for valid results.

Reddi et al. 2020, "MLPerf Inference Benchmark", section 4, and the rules of its load generator (LoadGen): queries hold samples drawn
at random, single and multi stream send the next query when the last is answered, server sends by a Poisson process, offline
sends all at once. Tail latencies are reported by the early-stopping bound (:func:`discarded`), not by the plain percentile.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import RenderableType
from torch import Tensor

from zoo import tables
from zoo.bench import Images, _agreement, _runtimes, _subjects, _timing, inference
from zoo.bench._contenders import Call, Contender
from zoo.console import SILENT_SECONDS, clock, print_line
from zoo.errors import FileError, UsageError
from zoo.export import _guard, _session
from zoo.files import publish_text

CONFIDENCE = 0.99
LATENCY_MS = 15.0
"""Bound of the server scenario for ResNet-50 in MLPerf; ``--latency-ms`` sets another."""
SEARCH = 7
"""Number of short runs for finding the highest rate of the server scenario, if none is given."""
SAMPLES = 1024
"""Number of distinct images for queries."""
FEWEST, MOST = 2, 10_000_000
"""Numbers of queries of the server scenario that a rate and a duration may result in."""
PAUSE_NS = 5e8
"""Longest sleep between two queries without a look at the clock, in ns."""


@dataclass(frozen=True)
class Rules:
    """Requirements of a scenario."""

    name: str
    """LoadGen's name of it."""
    samples: int
    """Per query."""
    percentile: float
    queries: int
    """The fewest."""
    seconds: float = 600.0
    """The shortest duration."""


RULES = {
    "single": Rules("SingleStream", 1, 0.90, 1024),
    "multi": Rules("MultiStream", 8, 0.99, 662),
    "server": Rules("Server", 1, 0.99, 459),  # fewer cannot satisfy the bound, even with none too late
    "offline": Rules("Offline", 64, 0.0, 1),
}
OFFLINE_SAMPLES = 24_576


@dataclass(frozen=True)
class Outcome:
    """One run: ``latencies`` (queries,) in ns, in order, and the time from the first query to the last answer."""

    latencies: np.ndarray
    seconds: float
    samples: int
    rate: float = 0.0
    """Scheduled queries per second of the server scenario."""


def discarded(queries: int, percentile: float) -> int:
    """The largest t such that t of ``queries`` above a latency still imply, at 99 % confidence, that it bounds the percentile.

    P(X <= t) <= 1 - 0.99 for X ~ Binomial(queries, 1 - percentile); -1 if there are too few queries for any.
    """
    from scipy.stats import binom

    late = 1 - percentile
    t = int(binom.ppf(1 - CONFIDENCE, queries, late)) + 1
    while t >= 0 and binom.cdf(t, queries, late) > 1 - CONFIDENCE:
        t -= 1
    return t


def bound(latencies: np.ndarray, percentile: float) -> float:
    """Early-stopping estimate of a percentile in ns, infinite if there are too few queries for one."""
    t = discarded(len(latencies), percentile)
    return float(np.sort(latencies)[len(latencies) - t]) if t >= 1 else math.inf


class _Progress:
    """Prints a line every few seconds, between queries only."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, time.monotonic()
        self.printed = self.began

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.printed > SILENT_SECONDS - PAUSE_NS / 1e9:
            self.printed = now
            print_line(f"measure  {done:,} queries · {clock(now - self.began)} of {clock(self.seconds)}")


def closed_loop(query: Callable[[np.ndarray], object], rules: Rules, pool: int, seconds: float, queries: int) -> Outcome:
    """The next query when the last is answered, until both the time and the number are reached."""
    rng, found = np.random.default_rng(0), list[int]()
    now, progress = time.perf_counter_ns, _Progress(seconds)
    with _timing.no_collection():
        start = now()
        while len(found) < queries or now() - start < seconds * 1e9:
            chosen = rng.integers(0, pool, rules.samples)
            began = now()
            query(chosen)
            found.append(now() - began)
            progress(len(found))
    return Outcome(np.array(found, float), (now() - start) / 1e9, rules.samples * len(found))


def poisson(
    query: Callable[[np.ndarray], object], rate: float, pool: int, seconds: float, queries: int, due: np.ndarray | None = None
) -> Outcome:
    """Queries at the times of a Poisson process, served one after the other; a latency begins at the scheduled time.

    ``due`` (queries,) are these times in ns, drawn at random by default.
    """
    rng = np.random.default_rng(0)
    if due is None:
        due = np.cumsum(rng.exponential(1e9 / rate, max(queries, math.ceil(rate * seconds))))
    count = len(due)
    chosen, found = rng.integers(0, pool, (count, 1)), np.empty(count)
    now, progress = time.perf_counter_ns, _Progress(count / rate)
    with _timing.no_collection():  # collects garbage first, which takes a while
        start = now()
        for number in range(count):
            while (wait := start + due[number] - now()) > 0:
                time.sleep(min(wait, PAUSE_NS) / 1e9)
                if wait > 2 * PAUSE_NS:  # printing must not delay a query
                    progress(number)
            query(chosen[number])
            found[number] = now() - start - due[number]
            progress(number + 1)
    return Outcome(found, (now() - start) / 1e9, count, rate)


def met(outcome: Outcome, rules: Rules, latency_ms: float) -> dict[str, bool]:
    """Each requirement of the rules, in LoadGen's words, and whether it is met."""
    queries = len(outcome.latencies)
    found = {"Min duration satisfied": outcome.seconds >= rules.seconds, "Min queries satisfied": queries >= rules.queries}
    if rules.name == "Server":
        late = int((outcome.latencies > latency_ms * 1e6).sum())
        found |= {"Performance constraints satisfied": late <= (1 - rules.percentile) * queries}
        found |= {"Early stopping satisfied": late <= discarded(queries, rules.percentile)}
    elif rules.percentile:
        found |= {"Early stopping satisfied": discarded(queries, rules.percentile) >= 1}
    else:
        found |= {"Min queries satisfied": outcome.samples >= OFFLINE_SAMPLES}
    return found


def headline(outcome: Outcome, rules: Rules) -> tuple[str, float]:
    """Metric of a scenario: its name, and the value in ms or per second."""
    if rules.name == "Offline":
        return "samples per second", outcome.samples / outcome.seconds
    if rules.name == "Server":
        return "scheduled queries per second", outcome.rate
    return f"{100 * rules.percentile:.0f}th percentile latency (ms), early stopping", bound(
        outcome.latencies, rules.percentile
    ) / 1e6


def summary(outcome: Outcome, rules: Rules, latency_ms: float, system: str) -> str:
    """The result in the form of LoadGen's ``mlperf_log_summary.txt``."""
    demands, latencies = met(outcome, rules, latency_ms), np.sort(outcome.latencies)
    line = "=" * 48
    at = lambda share: latencies[min(int(len(latencies) * share), len(latencies) - 1)]  # noqa: E731
    figure = {
        "Server": f"Scheduled samples per second : {outcome.rate:.2f}", "Offline": f"Samples per second: {outcome.samples / outcome.seconds:.6g}",
    }.get(rules.name, f"{100 * rules.percentile:.1f}th percentile latency (ns) : {at(rules.percentile):.0f}")  # fmt: skip
    rows = [
        line,
        "MLPerf Results Summary",
        line,
        f"SUT name : {system}",
        f"Scenario : {rules.name}",
        "Mode     : PerformanceOnly",
        figure,
    ]
    rows += [f"Result is : {'VALID' if all(demands.values()) else 'INVALID'}"]
    rows += [f"  {name} : {'Yes' if fits else 'NO'}" for name, fits in demands.items()]
    if rules.percentile and rules.name != "Server":
        t = discarded(len(latencies), rules.percentile)
        rows += [
            "Early Stopping Result:",
            f" * Processed {len(latencies)} queries.",
            f" * Would discard {max(t - 1, 0)} highest latency queries.",
        ]
        rows += [
            f" * Early stopping {100 * rules.percentile:.1f}th percentile estimate: {bound(latencies, rules.percentile):.0f}"
        ]
    rows += ["", line, "Additional Stats", line, f"Min latency (ns)                : {latencies[0]:.0f}"]
    rows += [
        f"Max latency (ns)                : {latencies[-1]:.0f}",
        f"Mean latency (ns)               : {latencies.mean():.0f}",
    ]
    rows += [f"{100 * share:.2f} percentile latency (ns)   : {at(share):.0f}" for share in (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)]
    return "\n".join(rows) + "\n"


def main(
    quick: bool = False,
    targets: Sequence[str] = (),
    *,
    scenario: str,
    out: Path | None = None,
    threads: int = 0,
    seconds: float = 0.0,
    rate: float = 0.0,
    latency_ms: float = LATENCY_MS,
    max_memory: int = 0,
    timeout: float = _guard.TIMEOUT,
    given: Images | None = None,
    size: int = 0,
) -> Path:
    """Run one scenario for onnxruntime and OpenVINO in fp32 and int8; returns the CSV, with a LoadGen summary per row next to it.

    ``seconds`` shortens the run (10 minutes by the rules; the result is then marked as not valid); ``rate`` is that of the server
    scenario, which is searched for otherwise.

    Raises:
        UsageError: a rate that results in too few or too many queries. FileError: a file that does not accept the scenario's batch.
    """
    rules = RULES[scenario]
    seconds = seconds or (2.0 if quick else rules.seconds)
    _check_rate(rate, seconds)
    used, rows = inference.checked_threads(threads), []
    folders: list[Path | None] = []
    logs: dict[str, str] = {}
    for number, target in enumerate(targets, 1):
        with _subjects.opened(
            target, ("fp32", "int8"), max_memory=max_memory, timeout=timeout, given=given, size=size
        ) as subject:
            _check_batch(subject, rules, scenario)
            folders.append(subject.folder)
            tested = subject.images("test", SAMPLES)
            images = tested[0] if tested else subject.noise(SAMPLES if rules.samples > 1 else 256)
            device = torch.device("cpu")
            contenders = _runtimes.of_onnxruntime(subject.files, device, used) + _runtimes.of_openvino(
                subject.files, used, half=False
            )
            print_line(f"expect   about {clock(len(contenders) * _duration(rules, seconds, rate))} for {subject.name}")
            for each in contenders:
                print_line(f"measure  {subject.name}, {each.name}, {rules.name}")
                with _session.boundary(f"{subject.name}, {each.name}"):
                    outcome, right = _run(each, images, tested, rules, seconds, rate, latency_ms)
                rows.append(_row(subject.name, each.name, rules, outcome, right, used, latency_ms))
                # two runs may be of one model, so its name alone is not enough
                several = f"{number}-{re.sub(r'[^A-Za-z0-9_-]+', '-', subject.name)}." if len(targets) > 1 else ""
                logs[several + each.name.replace(" ", "-")] = summary(outcome, rules, latency_ms, f"{subject.name} {each.name}")
    path = out or inference.default_out(f"scenario-{scenario}", folders, [str(row["model"]) for row in rows])
    _timing.write_csv(path, rows)
    for name, text in logs.items():
        publish_text(path.with_name(f"{path.stem}.{name}.mlperf_log_summary.txt"), text)
    return path


def _check_rate(rate: float, seconds: float) -> None:
    """UsageError if a given rate results in too few queries, or in more than memory and patience allow."""
    if rate and not FEWEST <= rate * seconds <= MOST:
        raise UsageError(
            f"--qps {rate:g} results in {rate * seconds:.3g} queries in {seconds:g} s (allowed {FEWEST} to {MOST:,}); change it or --seconds"
        )


def _check_batch(subject: _subjects.Subject, rules: Rules, scenario: str) -> None:
    """FileError if a file does not accept the scenario's batch size."""
    if subject.fixed not in (0, rules.samples):
        raise FileError(
            f"model accepts only batches of {subject.fixed} ({next(iter(subject.files.values()))}, scenario {scenario} sends "
            f"{rules.samples}); export it with a free batch"
        )


def _duration(rules: Rules, seconds: float, rate: float) -> float:
    """Seconds of a scenario for one contender: the fewest queries may take longer than the shortest duration, as does a search."""
    if rules.name != "Server":
        return seconds
    return max(seconds, _queries(rules, seconds) / rate) if rate else 1.3 * seconds


def _queries(rules: Rules, seconds: float) -> int:
    """The fewest queries of a run of these seconds."""
    return rules.queries if seconds >= rules.seconds else FEWEST


def _row(
    model: str, contender: str, rules: Rules, outcome: Outcome, right: tuple[int, int], threads: int, latency_ms: float
) -> dict[str, Any]:
    """The row of one contender in the CSV."""
    name, value = headline(outcome, rules)
    row = {
        "model": model, "contender": contender, "scenario": rules.name, "threads": threads, "measure": name, "value": value,
        "p50_ms": float(np.quantile(outcome.latencies, 0.5)) / 1e6, "p99_ms": float(np.quantile(outcome.latencies, 0.99)) / 1e6,
        "queries": len(outcome.latencies), "seconds": outcome.seconds, "accuracy": right[0] / right[1] if right[1] else math.nan, "images": right[1],
        "valid": "yes" if all(met(outcome, rules, latency_ms).values()) else "no",
    }  # fmt: skip
    return {key: _timing.rounded(entry) for key, entry in row.items()} | _timing.environment()


def _run(
    each: Contender,
    images: Tensor,
    tested: tuple[Tensor, Tensor] | None,
    rules: Rules,
    seconds: float,
    rate: float,
    latency_ms: float,
) -> tuple[Outcome, tuple[int, int]]:
    """The outcome of one contender, and how many test images the same call classifies correctly, of how many."""
    inputs, call, query = prepared(each, images, rules.samples)
    right = _agreement.correct(call, inputs, *tested) if tested else (0, 0)
    queries = _queries(rules, seconds)
    if rules.name == "Server":
        rate = rate or _highest(query, rules, len(images), seconds / 4, latency_ms)
        outcome = poisson(query, rate, len(images), seconds, queries)
    elif rules.name == "Offline":
        outcome = closed_loop(query, rules, len(images), seconds, OFFLINE_SAMPLES // rules.samples if queries == 1 else 2)
    else:
        outcome = closed_loop(query, rules, len(images), seconds, queries)
    return outcome, right


def prepared(each: Contender, images: Tensor, samples: int) -> tuple[Tensor, Call, Callable[[np.ndarray], object]]:
    """The input (samples, ...), the call that reads it, and a query for chosen rows (samples,) of ``images``; warmed up."""
    inputs = images[torch.arange(samples) % len(images)].contiguous()
    call = each.prepare(inputs).call

    def query(chosen: np.ndarray) -> object:
        inputs.copy_(images[torch.from_numpy(chosen)])
        return call()

    for _ in range(5):
        query(np.zeros(samples, np.int64))
    return inputs, call, query


def _highest(query: Callable[[np.ndarray], object], rules: Rules, pool: int, seconds: float, latency_ms: float) -> float:
    """A rate whose 99th percentile stays below the bound, by bisection between none and the rate of a closed loop."""
    loop = closed_loop(query, rules, pool, seconds / 4, 20)
    low, high = 0.0, len(loop.latencies) / loop.seconds
    for _ in range(SEARCH):
        middle = (low + high) / 2
        tried = poisson(query, middle, pool, seconds / SEARCH, 50)
        low, high = (middle, high) if np.quantile(tried.latencies, rules.percentile) <= latency_ms * 1e6 else (low, middle)
    if not low:
        raise UsageError(f"no rate keeps 99 % of the queries below {latency_ms:g} ms; use a larger --latency-ms")
    print_line(f"server   {low:.4g} queries per second keep the 99th percentile below {latency_ms:g} ms")
    return low


def table(rows: Sequence[Mapping[str, str]]) -> RenderableType:
    """The rows as a table for a terminal."""
    heads = (
        "model",
        "contender",
        "threads",
        rows[0]["measure"],
        "p50 ms",
        "p99 ms",
        "queries",
        "s",
        "accuracy",
        "images",
        "valid",
    )
    keys = ("model", "contender", "threads", "value", "p50_ms", "p99_ms", "queries", "seconds", "accuracy", "images", "valid")
    return tables.make(heads, [[row[key] for key in keys] for row in rows], title=rows[0]["scenario"])
