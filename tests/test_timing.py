"""The clock: turns, intervals, noise marks, and the origin recorded in each row."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo import files
from zoo.bench import _budget, _timing, inference
from zoo.bench._timing import Sample


def sample(*medians: float) -> Sample:
    return Sample(tuple(np.array([value]) for value in medians))


def test_every_round_times_everyone_in_changing_order() -> None:
    seen: list[str] = []

    def wait(name: str) -> None:
        time.sleep(0.05)
        seen.append(name)

    found = _timing.interleave({name: lambda name=name: wait(name) for name in "abc"}, rounds=6, warmup=2)
    assert [found[name].rounds for name in "abc"] == [6, 6, 6]
    turns = seen[9:]  # after two warm-up calls and one that sizes the groups, for each of the three
    orders = ["".join(turns[start : start + 3]) for start in range(0, len(turns), 3)]
    assert len(orders) == 6
    assert {"".join(sorted(order)) for order in orders} == {"abc"}
    assert len(set(orders)) > 1


class Clock:
    """Replaces the module time: it advances when sleeping, and by 50 ns when it is read."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds * 1e9

    def perf_counter_ns(self) -> int:
        self.now += 50
        return int(self.now)

    def perf_counter(self) -> float:
        return self.perf_counter_ns() / 1e9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(_timing, "time", made)
    return made


def test_times_and_ratio_are_right(clock: Clock) -> None:
    calls = {"long": lambda: clock.sleep(0.004), "short": lambda: clock.sleep(0.002)}
    found = _timing.interleave(calls, rounds=8)
    assert found["short"].median == pytest.approx(2e6, rel=1e-3)
    assert _timing.ratio(found["long"], found["short"]) == pytest.approx(2, rel=1e-3)
    assert found["short"].interval == pytest.approx((2e6, 2e6), rel=1e-3)
    assert [len(found[name].turns[0]) for name in calls] == [1, 2], "a turn is of 5 ms"


def test_a_slow_call_counts_in_full_in_the_rate_but_not_in_the_median(clock: Clock) -> None:
    took = itertools.cycle([0.0002] * 4 + [0.0012])  # 0.4 ms on average
    found = _timing.interleave({"a": lambda: clock.sleep(next(took))}, rounds=40)["a"]
    assert found.rate == pytest.approx(2500, rel=0.1)
    assert found.median == pytest.approx(2e5, rel=0.01)
    assert _timing.speedup(found, Sample(tuple(turn / 2 for turn in found.turns))) == pytest.approx(2)


def test_a_turn_is_as_long_after_a_slow_awakening(clock: Clock) -> None:
    asleep = [True]

    def rest(seconds: float) -> None:
        asleep[0] = True
        clock.now += seconds * 1e9

    def call() -> None:
        clock.now += 8e6 if asleep[0] else 2e5
        asleep[0] = False

    clock.sleep = rest  # type: ignore[method-assign]
    found = _timing.interleave({"a": call}, rounds=5)["a"]
    assert [len(turn) for turn in found.turns] == [25] * 5
    assert found.median == pytest.approx(2e5, rel=0.01)


def test_short_calls_are_timed_in_groups(clock: Clock) -> None:
    found = _timing.interleave({"nothing": lambda: clock.sleep(1e-7)}, rounds=3)
    assert found["nothing"].median == pytest.approx(100, rel=0.05), (
        "a call of 100 ns must not show the cost of reading the clock"
    )


def test_sync_is_called_before_the_clock_is_read(clock: Clock) -> None:
    pending: list[int] = []

    def sync() -> None:
        clock.sleep(0.003 * len(pending))
        pending.clear()

    found = _timing.interleave({"queued": lambda: pending.append(1)}, rounds=3, sync=sync)
    assert found["queued"].median == pytest.approx(3e6, rel=1e-3), "work that is only queued must be waited for"


def test_seconds_end_the_rounds(clock: Clock) -> None:
    found = _timing.interleave({"a": lambda: clock.sleep(0.05)}, seconds=0.5)
    assert found["a"].rounds == 8  # a pause of 20 ms and one call of 50
    assert _timing.interleave({"a": lambda: clock.sleep(9)}, seconds=0.3)["a"].rounds == _timing.FEWEST


@pytest.mark.parametrize("limits", [{}, {"rounds": 1, "seconds": 1.0}])
def test_one_limit_is_needed(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rounds or seconds"):
        _timing.interleave({"a": lambda: None}, **limits)  # type: ignore[arg-type]


def test_interval_covers_the_true_median() -> None:
    draw = np.random.default_rng(1)
    for n in (6, 7, 10, 15, 30, 60):
        hits = 0
        for _ in range(1000):
            low, high = _timing.median_interval(draw.lognormal(size=n))
            hits += low <= 1.0 <= high
        assert 940 <= hits <= 995, n


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 1), (6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (30, 10), (50, 18)])
def test_interval_is_that_of_the_sign_test(n: int, k: int) -> None:
    """Ranks of the tables of the sign test for 95 % (Conover 1999, table A3)."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert _timing.median_interval(values) == (k, n + 1 - k)
    if n >= 6:
        scipy = pytest.importorskip("scipy.stats")
        assert scipy.binom.cdf(k - 1, n, 0.5) <= 0.025 < scipy.binom.cdf(k, n, 0.5)


def test_rows_of_few_rounds_are_noisy(tmp_path: Path) -> None:
    assert sample(*[100.0] * 5).noisy
    rows = [{"noisy": "no", "rounds": rounds} for rounds in (3, 5, 6, 30)]
    found = _timing.read_csv(_timing.write_csv(tmp_path / "a.csv", rows))
    assert [row["noisy"] for row in found] == ["yes", "yes", "no", "no"]


@pytest.mark.parametrize(
    ("medians", "noisy"),
    [
        ([100.0] * 8, False),
        ([100, 101, 99, 100, 102, 98, 100, 101], False),
        ([100, 100, 100, 100, 140, 140, 140, 140], True),
        ([100, 160, 100, 160, 100, 160, 100, 160], True),
        ([100, 100, 100, 101, 112, 113, 112, 112], True),
        ([100.0] * 6, False),
        ([100.0] * 5, True),
    ],
)
def test_noise_is_marked(medians: list[float], noisy: bool) -> None:
    assert sample(*medians).noisy is noisy


def test_noise_of_the_rate_is_marked_too() -> None:
    quiet, hit = np.full(5, 100.0), np.array([100.0, 100, 100, 100, 800])
    found = Sample((quiet, hit, quiet, hit, hit, quiet))
    assert set(found.medians) == {100.0}
    assert found.noisy


def test_ratio_is_taken_round_by_round() -> None:
    assert _timing.ratio(sample(10, 20, 40), sample(5, 10, 20)) == pytest.approx(2.0)
    assert _timing.ratio(sample(10, 20, 1000), sample(5, 10, 1)) == pytest.approx(2.0)


def test_environment_names_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/zoo", "bench", "--out", "/srv/x.csv"])
    found = _timing.environment()
    assert tuple(found) == _timing.ENVIRONMENT
    assert found["torch"] == torch.__version__
    assert int(found["cores"]) >= 1
    assert all(found[key] for key in ("device", "cpu", "cores", "zoo", "python", "date"))
    assert found["command"] == "zoo bench --out x.csv"


def test_csv_round_trip_and_unequal_columns(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": "x,y"}, {"a": 2.5, "b": ""}]
    path = _timing.write_csv(tmp_path / "t.csv", rows)
    assert _timing.read_csv(path) == [{"a": "1", "b": "x,y"}, {"a": "2.5", "b": ""}]
    with pytest.raises(ValueError, match="columns differ"):
        _timing.write_csv(path, [{"a": 1}, {"b": 1}])
    with pytest.raises(ValueError, match="no rows"):
        _timing.write_csv(path, [])
    assert len(_timing.read_csv(path)) == 2


def test_default_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    assert _timing.default_out("timm/x", quick=True) == tmp_path / "bench" / "timm-x.csv"


def test_rounding() -> None:
    assert [_timing.rounded(value) for value in (1234.5678, 0.000123456, 7, "x")] == [1235.0, 0.0001235, 7, "x"]


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs Linux's /proc/stat")
def test_busy_sees_another_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(0.3)
            found = _timing.busy(1.0)
        finally:
            other.kill()
    assert found > 0.4


def test_a_second_benchmark_leaves_the_file_alone_that_a_first_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, started, second = (
        tmp_path / "bench.csv",
        [],
        threading.Thread(target=files.check_writable, args=(tmp_path / "bench.csv",)),
    )
    original = files._sync

    def sync(written: Path) -> None:
        original(written)
        if not started:
            started.append(written)
            second.start()
            second.join(0.3)  # it waits for the lock

    monkeypatch.setattr(files, "_sync", sync)
    _timing.write_csv(path, [{"a": 1}])
    second.join()
    assert _timing.read_csv(path) == [{"a": "1"}]


def test_the_fewest_rounds_fit_into_the_budget() -> None:
    """One call to check a contender, three to warm it up, one per round and one in reserve; a quick run needs no reserve."""
    assert 5 + _timing.FEWEST == _budget.CALLS
    assert 4 + _timing.FEWEST == inference.QUICK_CALLS
