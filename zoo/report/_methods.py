"""Runs that differ in their seed, and in where and how fast they were trained, are one method: its name, its mean over seeds,
and whether two differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import mean

from zoo import metrics
from zoo.recipe import NOT_THE_RECIPE, settings
from zoo.report._blocks import Block, Heading, Table, Text
from zoo.report._read import Folder
from zoo.report._sweep import interval, spread

LEVEL = 0.05


def numbers(runs: Sequence[Folder]) -> list[int]:
    """For each run the number of its method, in the order in which methods come."""
    keys = [repr({key: value for key, value in settings(run.recipe).items() if key not in NOT_THE_RECIPE}) for run in runs]
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]


def names(runs: Sequence[Folder]) -> list[str]:
    """For each run its method's name: the loss, and of methods of one loss the settings that it takes to tell them apart."""
    method = numbers(runs)
    values = [settings(run.recipe) for run in runs]
    found = [run.loss for run in runs]
    for key in (key for key in values[0] if key not in NOT_THE_RECIPE):
        shared = {name: {repr(each[key]) for each, other in zip(values, found) if other == name} for name in found}
        found = [f"{name}, {key}={each[key]}" if len(shared[name]) > 1 else name for name, each in zip(found, values)]
    return [f"{name} ({count} seed{'s' * (count > 1)})" for name, count in zip(found, map(method.count, method))]


def classes(group: Sequence[Folder]) -> list[metrics.Row]:
    """Rows of the classes of one method: the mean over its seeds, with Wilson's interval of one run's images."""
    found = []
    for rows in zip(*(run.per_class for run in group), strict=True):
        n, right = rows[0][0], round(mean(row[1] for row in rows))
        found.append(
            (n, right, mean(row[2] for row in rows) if n else None, *(metrics.wilson(right, n) if n else (None, None)))
        )
    return found


def over_seeds(runs: Sequence[Folder]) -> list[Block]:
    """Mean, deviation and interval of each method, and a test of each two over their seeds; nothing if no method has two."""
    method, called = numbers(runs), names(runs)
    groups = [[run for run, number in zip(runs, method) if number == each and run.test] for each in range(max(method) + 1)]
    labels = [called[method.index(each)].rpartition(" (")[0] for each in range(len(groups))]
    if all(len(group) < 2 for group in groups):
        return []
    rows = []
    for name, group in zip(labels, groups):
        if group:
            values = [run.test["accuracy"] for run in group]
            rows.append((name, ", ".join(str(run.recipe.seed) for run in group), spread(values), interval(values)))
    head = ("method", "seeds", ">test accuracy %, mean ± sd", "95 % interval (t)")
    blocks: list[Block] = [Heading("Methods, over their seeds"), Table(head, rows)]
    tests = [
        (labels[a], labels[b], *difference(groups[a], groups[b]))
        for a, b in combinations(range(len(groups)), 2)
        if min(len(groups[a]), len(groups[b])) > 1
    ]
    if tests:
        columns = ("first", "second", "test over", ">difference, points", "95 % interval", ">p", "verdict")
        corrected = (
            f" (p below {LEVEL / len(tests):.2g}: {LEVEL} over {len(tests)} tests, Bonferroni)" if len(tests) > 1 else ""
        )
        cells = [
            (a, b, over, f"{gap:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{p:.2g}", _verdict(a, b, gap, p * len(tests)))
            for a, b, over, gap, low, high, p in tests
        ]
        blocks += [Table(columns, cells), Text(f"A verdict needs a difference beyond the chance of seeds{corrected}.")]
    return blocks


def _verdict(first: str, second: str, gap: float, p: float) -> str:
    return f"{first if gap > 0 else second} is better" if p < LEVEL else "not a difference"


def difference(first: Sequence[Folder], second: Sequence[Folder]) -> tuple[str, float, float, float, float]:
    """What was tested, mean difference first - second in points, its 95 % interval, and p.

    Student's paired t where both have the same seeds, which then share their training images; Welch's (1947) where not.
    """
    from scipy import stats

    a, b = ({run.recipe.seed: 100 * run.test["accuracy"] for run in group} for group in (first, second))
    if set(a) == set(b):
        seeds = sorted(a)
        gaps = [a[seed] - b[seed] for seed in seeds]
        if len(set(gaps)) == 1:
            return f"{len(seeds)} seeds, paired", gaps[0], gaps[0], gaps[0], 0.0 if gaps[0] else 1.0
        found = stats.ttest_1samp(gaps, 0.0)
        over = f"{len(seeds)} seeds, paired"
    else:
        found = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False)
        over = f"{len(a)} and {len(b)} seeds, Welch"
    ends = found.confidence_interval()
    return over, mean(a.values()) - mean(b.values()), float(ends.low), float(ends.high), float(found.pvalue)
