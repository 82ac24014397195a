"""Results of recipes: one row per finished run on this machine, and the mean of each recipe over its seeds.

``zoo bench recipes`` trains nothing: it reads run folders of ``zoo train``. ``--quick`` trains one epoch first.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.table import Table
from scipy import stats

from zoo import csv_files, metrics, report, run_folders, tables, training
from zoo import recipe as recipes
from zoo.bench import _analogues, _course, _few, _timing
from zoo.errors import FileError
from zoo.report import _draw
from zoo.report._read import shown
from zoo.training import checkpoint

DIFFERENCE = (
    "difference: measured minus reported in points, 95 % interval (* excludes 0): with several seeds a prediction interval for\n"
    "one more run, with one seed an interval over the test images only, without the variation of the seed"
)
NEAR = 5  # a run that differs in more settings from every shipped recipe is named after its model and loss


def main(quick: bool = False, *, out: Path | None = None) -> Path:
    """Write a row for each finished run, and keep the rows of other runs in the file; FileError if there is none."""
    if quick:
        training.train(recipes.resolve("demo", {"epochs": 1, "data.imbalance": "none", "data.per_class": 60}))
    folders = [*run_folders.all_runs(), *sorted(path.parent for path in run_folders.sweeps().glob("*/*/recipe.toml"))]
    rows = rows_of(folders)
    if not rows:
        raise FileError(f"no finished run ({run_folders.root().absolute()}); make one with: zoo train")
    path = out or _timing.default_out("recipes", quick=quick)
    merged = sorted(_merged(path, rows), key=_key)
    _timing.write_csv(path, merged)
    draw(merged, path)
    if course := course_of(folders):
        beside = path.with_name(f"{path.stem}_course.csv")
        _timing.write_csv(
            beside, sorted(_merged(beside, course), key=lambda row: (row["recipe"], int(row["seed"]), int(row["epoch"])))
        )
    return path


def rows_of(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each of the run folders that is finished."""
    return [row for folder in folders if (row := _row(folder))]


def course_of(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of the epochs of finished runs whose loss or sampler changes with them (:mod:`zoo.bench._course`)."""
    made = ((folder, _row(folder)) for folder in folders)
    return [row for folder, facts in made if facts for row in _course.rows(folder, facts, _shipped(facts["recipe"]))]


def _merged(path: Path, rows: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """``rows`` and those of the file that are of other runs: runs trained elsewhere or deleted are kept.

    Rows of a shipped recipe are dropped if a new row has other settings under the same name, as the recipe has changed since. The
    warnings of the linter, which may have had other words, are those of a new row with the same settings; the reported results are
    those that the recipes have now.
    """
    new = {(row["digest"], str(row["seed"])) for row in rows}
    settings = {row["recipe"]: row["digest"] for row in rows if row["recipe"].split()[0] in recipes.shipped()}

    def keep(row: Mapping[str, str]) -> bool:
        digest = row.get("digest")
        return (digest, row["seed"]) not in new and settings.get(row["recipe"], digest) == digest

    texts = {row["digest"]: row["lint"] for row in rows if "lint" in row}
    merged = _timing.merged(path, rows, keep)
    linted = [{**row, "lint": texts[row["digest"]]} if row["digest"] in texts else row for row in merged]
    return [{**row, **_reported(row["recipe"])} if "reported" in row else row for row in linted]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["data"], row["imbalance"], row["model"], row["recipe"], int(row["seed"])


def _name(recipe: recipes.Recipe) -> str:
    """The name of the shipped recipe with the changed settings: ``cifar10_resnet32_ce epochs=20``."""
    known = {name: recipes.resolve(name, {}) for name in recipes.shipped()}
    changes = {name: _changes(known[name], recipe) for name in known}
    # weights from elsewhere are a smaller change than weights instead of none
    nearest = min(known, key=lambda name: (len(changes[name]), (known[name].weights == "none") != (recipe.weights == "none")))
    if len(changes[nearest]) > NEAR or recipes.read(recipes.shipped()[nearest]).model != recipe.model:
        return f"{recipe.model} {recipe.loss.name}"
    return " ".join([nearest, *changes[nearest]])


def _changes(old: recipes.Recipe, new: recipes.Recipe) -> list[str]:
    """``key=value`` of the settings in which ``new`` differs; of paths the last part."""
    lines = (line.partition(": ") for line in recipes.differences(old, new))
    return [f"{key}={Path(line.rpartition(' -> ')[2]).name}" for key, _, line in lines if key not in recipes.NOT_THE_RECIPE]


def digest(recipe: recipes.Recipe) -> str:
    """Eight hexadecimal digits that are equal for runs that differ only in seed or location."""
    return hashlib.sha256("\n".join(_changes(recipes.Recipe(), recipe)).encode()).hexdigest()[:8]


def _row(folder: Path) -> dict[str, Any] | None:
    if not run_folders.is_finished(folder) or run_folders.objects(folder):
        return None
    recipe = recipes.read(folder / "recipe.toml")
    result = run_folders.result(folder, "n", "accuracy", "low", "high", "macro", "epoch", "seconds")
    env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    finished = datetime.datetime.fromtimestamp((folder / "result.json").stat().st_mtime, datetime.UTC)
    name = _name(recipe)
    compiled = "compile=true " if recipe.compile else ""
    command = (
        f"zoo train {name} {compiled}seed={recipe.seed}"
        if name.split()[0] in recipes.shipped()
        else f"zoo train {folder.name}/recipe.toml"
    )
    facts = env | {"cores": env["threads"], "date": f"{finished:%Y-%m-%d}", "command": command}
    train = [row for row in checkpoint.read_rows(folder) if row["split"] == "train"]
    return {
        "recipe": name,
        "digest": digest(recipe),
        "run": folder.name,
        "data": recipe.data.label,
        "imbalance": recipe.data.imbalance,
        "model": recipe.model,
        "weights": Path(recipe.weights).name,
        "freeze": recipe.freeze,
        "loss": recipe.loss.name,
        "class_weights": recipe.loss.class_weights,
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "select_on": recipe.select_on,
        "n": result["n"],
        "accuracy": round(result["accuracy"], 5),
        "low": round(result["low"], 5),
        "high": round(result["high"], 5),
        "macro": round(result["macro"], 5),
        **_views(folder),
        **_reported(name),
        "kept_epoch": result["epoch"],
        "images_per_s": round(statistics.median(row["images_per_s"] for row in train), 1),
        "minutes": round(result["seconds"] / 60, 1),
        "precision": env["precision"],
        "threads": env["threads"],
        "compiled": "yes" if recipe.compile else "no",
        "lint": "; ".join(env.get("lint", [])),
        **{name: facts[name] for name in _timing.ENVIRONMENT},
    }


def _views(folder: Path) -> dict[str, Any]:
    """The result with averaged views that ``zoo eval RUN --views KIND --out RUN/views`` wrote; empty without one."""
    path = folder / "views" / "result.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("split") != "test" or "views" not in found:
        return {"views": "", "views_accuracy": ""}
    return {"views": found["views"], "views_accuracy": round(found["accuracy"], 5)}


def _shipped(name: str) -> recipes.Reported:
    """Reported result of a shipped recipe; empty if the run changed it."""
    return recipes.read(recipes.shipped()[name]).reported if name in recipes.shipped() else recipes.Reported()


def _reported(name: str) -> dict[str, Any]:
    found = _shipped(name)
    return {"reported": found.accuracy or "", "source": found.source, "note": found.note}


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows that differ only in their seed, by recipe and digest; those selected on the test images are marked in the name."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        mark = " (SELECTED ON TEST)" if row.get("select_on") == "test" else ""
        groups.setdefault((f"{row['recipe']}{mark}", str(row["digest"])), []).append(row)
    return groups


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per recipe: mean and standard deviation over seeds, and the 95 % interval (over images for one seed)."""
    columns = ("recipe", "data", ">test %", "95 % interval", ">reported %", ">difference")
    cells = [
        (key[0], _data(group[0]), *_spread(group), tables.percent(_published(group[0])), _apart(group))
        for key, group in _groups(rows).items()
    ]
    return tables.make(columns, cells)


def classes(folders: Sequence[Path], reported: recipes.Reported) -> Table | None:
    """One line per class: the mean of the measured runs and the reported value; None without reported values."""
    measured: dict[str, list[float]] = {}
    for folder in folders:
        for row in csv_files.read(folder / "per_class.csv"):
            measured.setdefault(row["class"], []).append(float(row["accuracy"] or "nan"))
    if len(measured) != len(reported.classes):
        return None
    cells = [
        (
            name,
            report.spread(shares).partition(" (")[0],
            tables.percent(published),
            f"{100 * (statistics.mean(shares) - published):+.1f}",
        )
        for (name, shares), published in zip(measured.items(), reported.classes)
    ]
    return tables.make(("class", ">test %", ">reported %", ">difference"), cells)


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes on each recipe: source of the reported value, known differences, warnings of the linter."""
    lines: dict[str, None] = {}
    for row in rows:
        kinds = {"reported": row["source"], "note": row["note"], "lint": row["lint"]}
        lines |= {f"{kind:9} {row['recipe']}: {text}": None for kind, text in kinds.items() if text}
    return list(lines)


def _published(row: Mapping[str, Any]) -> float | None:
    return float(row["reported"]) if row.get("reported") else None


def difference(group: Sequence[Mapping[str, Any]]) -> tuple[float, float, float] | None:
    """Measured minus reported accuracy in points, and its 95 % interval; None without a reported value.

    With several seeds: a prediction interval for one more run (t over seeds), since the reported value is one run. With one
    seed: Newcombe's interval of two independent shares (1998, method 10), both of as many images.
    """
    published = _published(group[0])
    if published is None:
        return None
    apart = statistics.mean(_shares(group)) - 100 * published
    if len(group) > 1:
        half = _t(len(group)) * statistics.stdev(_shares(group)) * (1 + 1 / len(group)) ** 0.5
        return apart, apart - half, apart + half
    n = int(group[0]["n"])
    measured, (low, high) = float(group[0]["accuracy"]), _ends(group)
    below, above = metrics.wilson(round(published * n), n)
    down = math.hypot(100 * measured - low, 100 * (above - published))
    up = math.hypot(high - 100 * measured, 100 * (published - below))
    return apart, apart - down, apart + up


def _apart(group: Sequence[Mapping[str, Any]]) -> str:
    found = difference(group)
    if found is None:
        return ""
    apart, low, high = found
    return f"{apart:+.1f} ({low:+.1f} to {high:+.1f}){'' if low <= 0 <= high else '*'}"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the pictures next to the CSV ``path``."""
    for title, part in panels(rows).items():
        _draw.save(picture(part), path.with_name(f"{path.stem}-{re.sub('[^a-z0-9.]+', '-', title.lower())}.png"))
    common, ours = _analogues.compared(rows)
    if len(ours) > 1:
        _draw.save(_analogues.picture(common, ours), path.with_name(f"{path.stem}-analogues.png"))
    for name, by in _few.curves(rows).items():
        _draw.save(_few.picture(name, by), path.with_name(f"{path.stem}-few-images-{name.split()[0]}.png"))


def panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of one panel: those of a data set, without the reported experiments on it (s0_1 to s4_r1).

    Results selected on the test images are omitted if there are others: they are optimistic.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in [row for row in rows if row.get("select_on") != "test"] or rows:
        repeated = ", reported experiments" if re.match(r"s\d_", row["recipe"]) else ""
        found.setdefault(f"{_data(row)}{repeated}", []).append(row)
    return found


def picture(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Test accuracy of each recipe, by :func:`panels`: one dot per seed, the mean with its 95 % interval, the best mean first."""
    titled = {title: [(name, group) for (name, _), group in _groups(part).items()] for title, part in panels(rows).items()}
    lines = [len(panel) for panel in titled.values()]
    figure = _draw.canvas(0.9 + sum(0.34 * n + 1.0 for n in lines))
    every = figure.subplots(len(titled), 1, squeeze=False, height_ratios=[n + 2 for n in lines])[:, 0]
    for axes, (title, panel) in zip(every, titled.items()):
        panel.sort(key=lambda item: -statistics.mean(_shares(item[1])))
        seen: list[float] = []
        for at, (_, group) in enumerate(panel):
            seen += _line(axes, at, group)
        axes.set_xlim(max(min(seen) - 1, 0), min(max(seen) + 1, 100))
        axes.set_yticks(range(len(panel)), _labels(panel), fontsize=8)
        axes.set_ylim(len(panel) - 0.5, -0.5)
        axes.set_title(f"{title}: {int(panel[0][1][0]['n']):,} test images", fontsize=10)
        _draw.tidy(axes, "x")
    every[-1].set_xlabel("test accuracy (%)", fontsize=9)
    note = "interval: 95 %, Student's t over n seeds, or Wilson over the test images if n = 1\n" + _timing.trained_on(rows)
    handles, labels = _legend(
        seeds=any(len(group) > 1 for panel in titled.values() for _, group in panel),
        reported=any(_published(group[0]) for panel in titled.values() for _, group in panel),
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False, title=note, title_fontsize=8)
    return figure


def _labels(panel: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """Names with the number of seeds, without the weights if these do not distinguish two recipes."""
    short = [re.sub(r" weights=\S+", "", name) for name, _ in panel]
    names = short if len(set(short)) == len(short) else [name for name, _ in panel]
    return [f"{shown(name, 64)}  n={len(group)}" for name, (_, group) in zip(names, panel)]


def _legend(*, seeds: bool, reported: bool) -> tuple[list[Line2D], list[str]]:
    """Legend of the marks of :func:`_line` that occur."""
    marks = {
        "one seed": Line2D([], [], marker="o", markersize=4, linestyle="", color=_draw.SKY),
        "mean and its interval": Line2D([], [], marker="D", markersize=5, color=_draw.BLUE),
        "reported": Line2D([], [], marker="s", markersize=6, linestyle="", markerfacecolor="none", color=_draw.ORANGE),
    }
    used = [name for name in marks if {"one seed": seeds, "reported": reported}.get(name, True)]
    return [marks[name] for name in used], used


def _line(axes: Axes, at: int, group: Sequence[Mapping[str, Any]]) -> list[float]:
    """Draw one recipe; returns the values that must be visible, in per cent: seeds, reported value and interval, clipped to 0 and 100."""
    shares, (low, high) = _shares(group), (min(max(end, 0), 100) for end in _ends(group))
    if len(shares) > 1:
        axes.plot(
            shares, [at + 0.25] * len(shares), "o", color=_draw.SKY, markersize=4
        )  # below the mean, which would hide them
    middle = statistics.mean(shares)
    whiskers = [[max(middle - low, 0)], [max(high - middle, 0)]]
    axes.errorbar([middle], [at], xerr=whiskers, marker="D", markersize=5, color=_draw.BLUE, capsize=3)
    published = [100 * share] if (share := _published(group[0])) else []
    if published:
        axes.plot(published, [at], "s", markersize=6, markerfacecolor="none", color=_draw.ORANGE)
    return [*shares, *published, low, high]


def _shares(group: Sequence[Mapping[str, Any]]) -> list[float]:
    return [100 * float(row["accuracy"]) for row in group]


def _ends(group: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """95 % interval in per cent: Student's t of the mean over seeds, Wilson's over images for a single seed."""
    if len(group) == 1:
        return 100 * float(group[0]["low"]), 100 * float(group[0]["high"])
    shares = _shares(group)
    half = _t(len(shares)) * statistics.stdev(shares) / len(shares) ** 0.5
    return statistics.mean(shares) - half, statistics.mean(shares) + half


def _t(n: int) -> float:
    """Student's t that leaves 2.5 % above, of ``n`` values."""
    return float(stats.t.ppf(0.975, n - 1))


def _data(row: Mapping[str, Any]) -> str:
    return str(row["data"]) if row["imbalance"] == "none" else f"{row['data']} {row['imbalance']}"


def _spread(group: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    low, high = _ends(group)
    return report.spread([float(row["accuracy"]) for row in group]), f"{low:.1f} to {high:.1f}"
