"""Several runs side by side: numbers with intervals, curves, classes, and paired tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo import metrics, spec
from zoo.data._parts import inside
from zoo.recipe import aligned
from zoo.report import _draw, _methods
from zoo.report._blocks import Block, Heading, Picture, Table, Text
from zoo.report._read import Folder, interval, percent, set_names, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (_draw.BLUE, _draw.ORANGE, _draw.GREEN, _draw.RED, _draw.PINK, _draw.SKY, _draw.BLACK, "#808080")
DASHES, HATCHES = ("-", "--", ":", "-."), ("", "///", "...", "xxx")
"""Line styles of the second eight methods and so on."""
HEAT_MAPS = 6
"""Largest number of confusion matrices in a comparison: the first run of each method."""
ALL_PAIRS = 4
"""Largest number of runs with tests of all pairs; with more, only pairs of methods with the same seed."""
BARS = 60
"""Largest number of bars in the picture of classes."""
PAIRS = 4
"""Number of confused pairs of classes to compare."""


def numbers(runs: Sequence[Folder]) -> dict[str, list[Block]]:
    """Tables of a comparison: the ``runs``, the ``methods`` over their seeds, and the ``pairs`` that are tested."""
    names = labels(runs)
    return {
        "runs": [_results(runs, names), *_data(runs)],
        "methods": _methods.over_seeds(runs),
        "pairs": _paired(runs, names),
    }


def story(runs: Sequence[Folder], intro: Iterable[Block], out: Path) -> tuple[str, list[Block]]:
    """Title and blocks of the page that begins with ``intro``; its pictures are written next to ``out``."""
    names = labels(runs)
    blocks: list[Block] = [*intro, *_confused(runs, names)]
    blocks += [Heading("Differences between the recipes"), _differences(runs, names), Heading("Pictures")]
    path = _draw.save(_curves(runs, names), out.with_name(f"{out.stem}_curves.png"))
    blocks.append(Picture(path, "learning curves of all runs"))
    tested = [(run, name) for run, name in zip(runs, names) if run.per_class]
    if len(tested) > 1 and len({run.classes for run, _ in tested}) == 1:
        path = _draw.save(_bars(*zip(*tested)), out.with_name(f"{out.stem}_classes.png"))
        blocks.append(Picture(path, "accuracy of each class, all runs"))
    shown_of: dict[int, Folder] = {}
    for run, number in zip(runs, _methods.numbers(runs)):
        if run.confusion is not None and len(shown_of) < HEAT_MAPS:
            shown_of.setdefault(number, run)
    for number, run in shown_of.items():
        path = _draw.save(_draw.confusion(run), out.with_name(f"{out.stem}_confusion{number + 1}.png"))
        blocks.append(Picture(path, f"confusion matrix of {run.name}"))
    return f"Comparison of {len(runs)} runs", blocks


def labels(runs: Sequence[Folder]) -> list[str]:
    """Folder names, with the parent's name if two are equal."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{run.path.absolute().parent.name}/{name}" for run, name in zip(runs, names)]


def _results(runs: Sequence[Folder], names: Sequence[str]) -> Table:
    rows: list[list[object]] = []
    for run, name, data in zip(runs, names, set_names(runs)):
        test, shots = run.test, {shot.name: percent(shot.macro) for shot in run.shots}
        n = f"{test['n']:,}" if test else "not finished"
        row = [
            name,
            data + run.thinned,
            n,
            percent(test.get("accuracy")),
            interval(test.get("low"), test.get("high")),
            percent(test.get("macro")),
        ]
        row += [shots.get(key, "") for key in spec.SHOTS]
        rows.append([*row, percent(test.get("ece")), len(run.split("train"))])
    head: Sequence[str] = (
        "run",
        "data",
        ">test images",
        ">accuracy %",
        "95 % interval",
        ">macro %",
        ">many %",
        ">medium %",
        ">few %",
        ">ECE %",
        ">epochs",
    )
    empty = {at for at in range(6, 9) if not any(row[at] for row in rows)}
    head = tuple(name for at, name in enumerate(head) if at not in empty)
    rows = [[cell for at, cell in enumerate(row) if at not in empty] for row in rows]
    best = set()
    for column in (3, *range(5, len(head) - 2)):
        values = [float(str(row[column])) if row[column] else -1.0 for row in rows]
        best |= {(number, column) for number, value in enumerate(values) if value == max(values) >= 0}
    return Table(head, rows, frozenset(best))


def _data(runs: Sequence[Folder]) -> list[Block]:
    data = list(dict.fromkeys(set_names(runs)))
    text = f"The runs use different data ({', '.join(data)}), so their accuracies cannot be compared."
    return [Text(text, strong=True)] if len(data) > 1 else []


def same_images(a: Folder, b: Folder) -> bool:
    """Whether both have predictions for the same test images in the same order; files of the same name may differ in another set."""
    if not a.same_set(b):
        return False
    files = [inside([row["file"] for row in run.predictions]) for run in (a, b)]
    targets = [[row["target"] for row in run.predictions] for run in (a, b)]
    return bool(files[0]) and files[0] == files[1] and targets[0] == targets[1]


def _paired(runs: Sequence[Folder], names: Sequence[str]) -> list[Block]:
    every, method = list(combinations(range(len(runs)), 2)), _methods.numbers(runs)
    if len(runs) > ALL_PAIRS:
        every = [(a, b) for a, b in every if method[a] != method[b] and runs[a].recipe.seed == runs[b].recipe.seed]
    pairs = [(a, b) for a, b in every if same_images(runs[a], runs[b])]
    tests = [metrics.mcnemar(runs[a].right, runs[b].right) for a, b in pairs]
    corrected = metrics.holm([p for _, _, p in tests])
    rows = []
    for (a, b), (only_a, only_b, p), q in zip(pairs, tests, corrected):
        better = names[a] if only_a > only_b else names[b]
        verdict = f"{better} is better" if q < _methods.LEVEL else "no difference shown"
        rows.append((names[a], names[b], f"{only_a:,}", f"{only_b:,}", _p(p), *([_p(q)] if len(pairs) > 1 else []), verdict))
    head = [
        "first",
        "second",
        ">only first right",
        ">only second right",
        ">p",
        *([">p, Holm"] if len(pairs) > 1 else []),
        "verdict",
    ]
    blocks: list[Block] = [Heading("Paired test on the same test images (McNemar, exact)")]
    blocks += [Table(head, rows)] if rows else []
    if left := len(every) - len(pairs):
        blocks.append(Text(f"{left} of {len(every)} pairs are not tested: predictions.csv is missing or of other images."))
    if rows:
        blocks.append(
            Text("The test compares these trained models on these images; comparing the methods needs several seeds.")
        )
    return blocks


def _confused(runs: Sequence[Folder], names: Sequence[str]) -> list[Block]:
    """The pairs of classes with the most confusions over all runs, by run."""
    tested = [(run, name, run.confusion) for run, name in zip(runs, names) if run.confusion is not None]
    if len({run.classes for run, _, _ in tested}) != 1:
        return []
    classes = tested[0][0].classes
    pairs = metrics.worst_pairs(np.sum([counts for _, _, counts in tested], axis=0), PAIRS)
    cells = [
        (name, *(percent((c[p.first, p.second] + c[p.second, p.first]) / c[[p.first, p.second]].sum()) for p in pairs))
        for _, name, c in tested
    ]
    head = ("run", *(f">{classes[p.first]} and {classes[p.second]} %" for p in pairs))
    caption = "Images of the first class classified as the second or vice versa, as a share of the test images of both."
    return [Heading("Most confused pairs of classes"), Table(head, cells), Text(caption)] if pairs else []


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _differences(runs: Sequence[Folder], names: Sequence[str]) -> Table:
    values = aligned(run.recipe for run in runs)
    keys = [key for key in values[0] if key != "data.dir" and any(each[key] != values[0][key] for each in values)]
    return Table(("run", *keys), [(name, *(each[key] for key in keys)) for name, each in zip(names, values)])


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
        "linewidth": 1.6,
    }


def _curves(runs: Sequence[Folder], names: Sequence[str]) -> Figure:
    """Validation loss and accuracy of each run; the training accuracy if there is no validation."""
    figure = _draw.canvas(4 + 0.2 * len(runs))
    held = any(run.held for run in runs)
    *left, right = figure.subplots(1, 1 + held, squeeze=False)[0]
    marker = "o" if max(len(run.split("train")) for run in runs) <= 30 else ""
    method = _methods.numbers(runs)
    several = len(set(method)) < len(runs)
    for at, (run, name, called) in enumerate(zip(runs, names, _methods.names(runs))):
        number = method[at]
        label = ("" if number in method[:at] else called) if several else name
        rows, look = run.held, _style(number) | {"marker": marker, "markersize": 3}
        for axes in left:
            axes.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], **look)
        kind, rows = ("", rows) if rows else (" (training accuracy: no validation)" if held else "", run.split("train"))
        right.plot(
            [row["epoch"] for row in rows],
            [100 * row["accuracy"] for row in rows],
            label=shown(label, 70) + kind if label else None,
            **look,
        )
        if run.test:
            ends = [[100 * abs(run.test[key] - run.test["accuracy"])] for key in ("low", "high")]
            look |= {"marker": "D", "markersize": 4, "markeredgecolor": "black", "capsize": 3, "zorder": 5}
            right.errorbar([run.test["epoch"]], [100 * run.test["accuracy"]], ends, **look)
    for axes, title, unit in (
        *((axes, "validation loss", "cross entropy (nats)") for axes in left),
        (right, f"{'validation' if held else 'training'} accuracy (diamond: test, 95 % interval)", "accuracy (%)"),
    ):
        axes.set_title(title, fontsize=9)
        axes.set_ylabel(unit, fontsize=9)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _draw.tidy(axes)
    for axes in left:
        _draw.spread_axis(axes, [row["loss"] for run in runs for row in run.held])
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    figure.suptitle(f"{_common(runs)}: {len(runs)} runs", fontsize=10)
    return figure


def _common(runs: Sequence[Folder]) -> str:
    return shown(", ".join(dict.fromkeys(data + run.thinned for data, run in zip(set_names(runs), runs))), 80)


def _bars(runs: Sequence[Folder], names: Sequence[str]) -> Figure:
    """Accuracy of each class, one bar per method, the mean over its seeds; the classes that differ most if there are too many."""
    method = _methods.numbers(runs)
    groups = [[run for run, number in zip(runs, method) if number == each] for each in range(max(method) + 1)]
    several = len(groups) < len(runs)
    called = _methods.names(runs) if several else names
    rows = [_methods.classes(group) for group in groups]
    classes, most = list(range(len(runs[0].classes))), max(5, BARS // len(groups))
    cut = len(classes) > most
    if cut:
        shares = np.array([[row[2] or 0.0 for row in each] for each in rows])
        classes = sorted(np.argsort(-np.ptp(shares, axis=0), kind="stable")[:most].tolist())
    counts = runs[0].counts if all(run.counts == runs[0].counts for run in runs) else []
    if counts:
        classes.sort(key=lambda i: -counts[i])
    figure = _draw.canvas(1.6 + len(classes) * (0.12 + 0.11 * len(groups)) + 0.17 * len(groups))
    axes = figure.subplots()
    height = 0.84 / len(groups)
    for number, each in enumerate(rows):
        at = np.arange(len(classes)) + (number - (len(groups) - 1) / 2) * height
        look = {"color": COLOURS[number % len(COLOURS)], "hatch": HATCHES[number // len(COLOURS) % len(HATCHES)]}
        _draw.bars(axes, [each[i] for i in classes], at, height, look, shown(called[method.index(number)], 60))
    _draw.class_axis(axes, [shown(runs[0].classes[i]) + (f"  {counts[i]:,}" if counts else "") for i in classes])
    axes.set_ylabel("class, training images" if counts else "class", fontsize=9)
    if several:
        axes.set_xlabel("accuracy (%), mean over seeds; whisker: 95 % Wilson interval of one run's images", fontsize=9)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    tail = f"the {most} of {len(runs[0].classes)} classes that differ most" if cut else f"{len(classes)} classes"
    sizes = " / ".join(dict.fromkeys(f"{run.test['n']:,}" for run in runs))
    figure.suptitle(f"{_common(runs)}, n = {sizes} test images: {tail}", fontsize=10)
    return figure
