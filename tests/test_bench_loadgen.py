"""``zoo bench loadgen`` with a load generator that answers at once; the real one is compared by the benchmark itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zoo.bench import _scenario, _timing, loadgen
from zoo.errors import UsageError

SUMMARY = """50.00 percentile latency (ns)   : 2000000
Mean latency (ns)               : 4000000
Samples per second: 1.5e+02
"""


class Fake(SimpleNamespace):
    """The functions of ``mlperf_loadgen`` that are used; one query of 128 samples per test."""

    def __init__(self) -> None:
        names = SimpleNamespace(SingleStream="single", MultiStream="multi", Server="server", Offline="offline")
        plain = SimpleNamespace
        super().__init__(
            TestSettings=plain, LogSettings=plain, LogOutputSettings=plain, TestScenario=names, TestMode=plain(PerformanceOnly=0),
            QuerySampleResponse=lambda number, data, size: number, ConstructQSL=lambda *_: None, DestroyQSL=lambda _: None,
            DestroySUT=lambda _: None,
        )  # fmt: skip
        self.answered: list[int] = []
        self.queried: list[int] = []
        self.tested: list[Any] = []

    def ConstructSUT(self, issue: Callable[[list[Any]], None], flush: Callable[[], None]) -> Callable[[list[Any]], None]:
        return issue

    def QuerySamplesComplete(self, responses: list[int]) -> None:
        self.answered += responses

    def StartTestWithLogSettings(
        self, issue: Callable[[list[Any]], None], library: None, settings: Any, log: Any, _: str
    ) -> None:
        self.tested.append(settings)
        self.queried.clear()
        issue([SimpleNamespace(id=number, index=number % loadgen.POOL) for number in range(128)])
        assert sum(self.queried) == 128, "each sample is computed once"
        Path(log.log_output.outdir, "mlperf_log_summary.txt").write_text(SUMMARY)


def test_each_scenario_is_compared_with_what_loadgen_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", fake)
    prepared = _scenario.prepared

    def counting(*args: Any) -> Any:
        inputs, call, query = prepared(*args)

        def counted(chosen: np.ndarray) -> object:
            fake.queried.append(len(chosen))
            return query(chosen)

        return inputs, call, counted

    monkeypatch.setattr(_scenario, "prepared", counting)
    path = loadgen.main(out=tmp_path / "loadgen.csv", model="cnn_small", rounds=2, seconds=0.02)
    rows = {row["scenario"]: row for row in _timing.read_csv(path)}
    reported = {"SingleStream": 2.0, "MultiStream": 2.0, "Server": 4.0, "Offline": 150.0}
    assert {name: float(row["loadgen"]) for name, row in rows.items()} == reported
    for row in rows.values():
        assert float(row["ratio"]) == pytest.approx(float(row["measured"]) / float(row["loadgen"]), rel=0.01)
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"]) and row["rounds"] == "2"
    assert [settings.scenario for settings in fake.tested] == [
        name for name in ("single", "multi", "server", "offline") for _ in "ab"
    ]
    assert fake.answered == list(range(128)) * 8
    assert fake.tested[4].server_target_qps == fake.tested[5].server_target_qps > 0


def test_arrivals_are_those_of_loadgen() -> None:
    """The first gaps that LoadGen 6.0.17 left between queries at 50 per second, with seed 0, in ms."""
    assert len(loadgen.arrivals(50.0, 1.0)) == pytest.approx(50, abs=20)
    assert np.diff(loadgen.arrivals(50.0, 1.0))[:4] / 1e6 == pytest.approx([18.1, 37.2, 39.0, 37.8], abs=0.3)


def test_without_loadgen_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(UsageError, match="pip install mlcommons-loadgen"):
        loadgen.main()
