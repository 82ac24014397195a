"""Runs that differ only in seed, hardware and speed belong to one method: names, means over seeds, and tests between methods."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean, stdev

from zoo import metrics
from zoo.recipe import NOT_THE_RECIPE, aligned, settings
from zoo.report._blocks import Block, Heading, Table, Text
from zoo.report._read import Folder, set_names
from zoo.report._sweep import ROUNDING, interval, spread

LEVEL = 0.05


def numbers(runs: Sequence[Folder]) -> list[int]:
    """For each run the number of its method, in order of appearance."""
    recipes = [{key: value for key, value in settings(run.recipe).items() if key not in NOT_THE_RECIPE} for run in runs]
    losses = [run.env.get("loss_given") for run in runs]
    keys = [repr(each) for each in zip(recipes, set_names(runs), losses)]
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]


def names(runs: Sequence[Folder]) -> list[str]:
    """For each run its method's name: the loss, and the settings that distinguish methods with the same loss."""
    method = numbers(runs)
    values = aligned(run.recipe for run in runs)
    sets = set_names(runs)
    found = [run.loss if len(set(sets)) == 1 else f"{run.loss}, {data}" for run, data in zip(runs, sets)]
    for key in (key for key in values[0] if key not in NOT_THE_RECIPE):
        shared = {name: {repr(each[key]) for each, other in zip(values, found) if other == name} for name in found}
        found = [f"{name}, {key}={each[key]}" if len(shared[name]) > 1 else name for name, each in zip(found, values)]
    seeds = [len({run.recipe.seed for run, other in zip(runs, method) if other == each}) for each in method]
    return [f"{name} ({count} seed{'s' * (count > 1)})" for name, count in zip(found, seeds)]


def classes(group: Sequence[Folder]) -> list[metrics.Row]:
    """Rows of the classes of one method: the mean over its seeds, with Wilson's interval of one run's images."""
    found = []
    for rows in zip(*(run.per_class for run in group), strict=True):
        n, right = rows[0][0], round(mean(row[1] for row in rows))
        found.append(
            (n, right, mean(row[2] for row in rows) if n else None, *(metrics.wilson(right, n) if n else (None, None)))
        )
    return found


def by_seed(group: Sequence[Folder]) -> dict[int, float]:
    """Test accuracy of a method's finished runs by seed: the mean of several runs with one seed, e.g. on different devices."""
    found: dict[int, list[float]] = {}
    for run in group:
        if run.test:
            found.setdefault(run.recipe.seed, []).append(run.test["accuracy"])
    return {seed: mean(values) for seed, values in sorted(found.items())}


def over_seeds(runs: Sequence[Folder]) -> list[Block]:
    """Mean, deviation and interval of each method, the best first, and pairwise tests; empty if no method has two seeds."""
    method, called = numbers(runs), names(runs)
    methods = []
    for each in range(max(method) + 1):
        values = by_seed([run for run, number in zip(runs, method) if number == each])
        if values:
            methods.append((called[method.index(each)].rpartition(" (")[0], values))
    methods.sort(key=lambda item: -mean(item[1].values()))
    if all(len(values) < 2 for _, values in methods):
        return []
    rows = [
        (name, ", ".join(map(str, values)), spread(list(values.values())), interval(list(values.values())))
        for name, values in methods
    ]
    head = ("method", "seeds", ">test accuracy %, mean ± sd", "95 % interval (t)")
    blocks: list[Block] = [Heading("Methods, over seeds"), Table(head, rows)]
    pairs = [(a, b) for a, b in combinations(methods, 2) if min(len(a[1]), len(b[1])) > 1]
    tests = [difference(a, b) for (_, a), (_, b) in pairs]
    corrected = metrics.holm([found[2] for _, _, found in tests if found])
    left = iter(corrected)
    cells = []
    for ((a, _), (b, _)), (over, gap, found) in zip(pairs, tests):
        last = ("", "", "", "not tested: no variation between seeds")
        if found:
            low, high, p = found
            q = next(left)
            last = (f"{low:+.2f} to {high:+.2f}", f"{p:.2g}", f"{q:.2g}", _verdict(a, b, gap, q))
        cells.append((a, b, over, f"{gap:+.2f}", *last))
    if cells:
        many = f" (p below {LEVEL}, corrected for {len(corrected)} tests by Holm 1979)" if len(corrected) > 1 else ""
        columns = ("first", "second", "test over", ">difference, points", "95 % interval", ">p", ">p, Holm", "verdict")
        blocks += [
            Table(columns, cells),
            Text(f"A method is called better only if the difference exceeds the variation between seeds{many}."),
        ]
    return blocks


def _verdict(first: str, second: str, gap: float, p: float) -> str:
    return f"{first if gap > 0 else second} is better" if p < LEVEL else "no difference shown"


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[str, float, tuple[float, float, float] | None]:
    """Name of the test, mean difference first - second in points, and ends of its 95 % interval with p; accuracies by seed.

    Student's paired t if both have the same seeds, which then share their training images; otherwise Welch's (1947). Without
    variation between seeds there is no test: None.
    """
    from scipy import stats

    a, b = ({seed: 100 * value for seed, value in each.items()} for each in (first, second))
    paired = set(a) == set(b)
    samples = [[a[seed] - b[seed] for seed in a]] if paired else [list(a.values()), list(b.values())]
    over = f"{len(a)} seeds, paired" if paired else f"{len(a)} and {len(b)} seeds, Welch"
    gap = mean(a.values()) - mean(b.values())
    if max(map(stdev, samples)) <= 100 * ROUNDING:
        return over, gap, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, if one method alone has no variation
        found = stats.ttest_1samp(*samples, 0.0) if paired else stats.ttest_ind(*samples, equal_var=False)
        ends = found.confidence_interval()
    return over, gap, (max(float(ends.low), -100.0), min(float(ends.high), 100.0), float(found.pvalue))
