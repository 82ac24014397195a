"""Pictures, README and HTML page of a run folder, and the comparison of several; reads and writes files only."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from zoo import metrics, sampling, spec
from zoo.console import plain
from zoo.errors import UsageError
from zoo.files import near, publish_text
from zoo.report import _blocks, _compare, _draw, _profile
from zoo.report._blocks import Block, Code, Heading, Picture, Table, Text
from zoo.report._csv import write_tables as write_tables
from zoo.report._read import Folder, interval, percent, read
from zoo.report._sweep import Point as Point
from zoo.report._sweep import chosen as sweep_choice
from zoo.report._sweep import spread as spread
from zoo.report._sweep import table as sweep_table
from zoo.report._sweep import write as sweep

__all__ = [
    "Comparison",
    "Point",
    "compare",
    "figures",
    "page",
    "spread",
    "summary",
    "sweep",
    "sweep_choice",
    "sweep_table",
    "write_tables",
]
PICTURES = {
    "curves.png": "learning curves",
    "confusion.png": "confusion matrix",
    "per_class.png": "accuracy of each class",
    "profile.png": "where the time of training went",
    "bench.png": "throughput",
}
ENVIRONMENT = (
    "zoo",
    "commit",
    "python",
    "torch",
    "platform",
    "cpu",
    "device",
    "threads",
    "precision",
    "layout",
    "allocator",
    "kernel",
)
OPTIMISTIC = (
    "The epoch was selected on the test images (select_on = test): the accuracy above is optimistic and cannot be compared "
    "with that of a run selected on validation images."
)
WEAKEST = 20
"""Largest number of classes in a README; all are in per_class.csv and report.html."""


def figures(run_dir: Path) -> list[Path]:
    """Draw curves.png, confusion.png, per_class.png and the profile, if any, each also as SVG; no test results for an unfinished run.

    Raises:
        FileError: not a run folder, or a damaged file. DataError: no epoch is finished yet.
    """
    run = read(run_dir)
    made = [_draw.save(_draw.curves(run), run.path / "curves.png")]
    if run.test and run.confusion is not None:
        made.append(_draw.save(_draw.confusion(run), run.path / "confusion.png"))
        made.append(_draw.save(_draw.per_class(run), run.path / "per_class.png"))
    if (run.path / "profile.csv").is_file():
        made.append(_draw.save(_profile.picture(run), run.path / "profile.png"))
    return made


def summary(run_dir: Path) -> Path:
    """Write README.md of a run folder; errors as :func:`figures`."""
    run = read(run_dir)
    publish_text(run.path / "README.md", _blocks.markdown(run.name, _story(run, WEAKEST)))
    return run.path / "README.md"


def page(run_dir: Path) -> Path:
    """Write report.html, a self-contained file; errors as :func:`figures`."""
    run = read(run_dir)
    recipe = (run.path / "recipe.toml").read_text(encoding="utf-8")
    blocks = [*_story(run, len(run.classes)), Heading("Recipe"), Code(recipe)]
    publish_text(run.path / "report.html", _blocks.page(run.name, blocks))
    return run.path / "report.html"


class Comparison(NamedTuple):
    """The page, and its first tables: the ``runs``, the ``methods`` over their seeds, the tested ``pairs``."""

    page: Path
    tables: dict[str, list[Table]]
    remarks: tuple[str, ...] = ()
    """What the page says about the tables, such as why runs are not tested."""


def compare(run_dirs: Sequence[Path], out: Path) -> Comparison:
    """Write one HTML page that compares runs; its two pictures are also written as PNG files next to it.

    Two models are compared by McNemar's exact test on the same test images, corrected after Holm (1979) for more than two runs.

    Raises:
        UsageError: fewer than two different runs. FileError, DataError: as :func:`figures`.
    """
    folders = list({Path(path).resolve(): Path(path) for path in run_dirs}.values())
    if len(folders) < 2:
        raise UsageError(f"a comparison needs two runs (got {len(folders)}); add another, e.g. zoo report RUN1 RUN2")
    runs, out = [read(path) for path in folders], Path(out)
    tables = _compare.numbers(runs)
    title, blocks = _compare.story(runs, chain(*tables.values()), out)
    publish_text(out, _blocks.page(title, blocks))
    texts = tuple(block.text for part in tables.values() for block in part if isinstance(block, Text))
    return Comparison(out, {name: [each for each in part if isinstance(each, Table)] for name, part in tables.items()}, texts)


def _story(run: Folder, classes: int) -> list[Block]:
    parts: list[Block] = [Text(_what(run)), Text(_outcome(run), strong=True)]
    if run.recipe.select_on == "test":
        parts += [Text(OPTIMISTIC, strong=True)]
    if run.test:
        parts += [Text(_chosen(run))]
    parts += [_splits(run), *_shots(run), *_confused(run), *_course(run), Heading("Pictures")]
    parts += [Picture(run.path / name, alt) for name, alt in PICTURES.items() if (run.path / name).is_file()]
    parts += _classes(run, classes)
    parts += [
        Heading("Once more"),
        Code(plain(_again(run))),
        Heading("Environment"),
    ]
    facts = [(key, run.env[key]) for key in ENVIRONMENT if run.env.get(key) not in (None, "")]
    facts += [("training time", _time(run.seconds)), ("data digest", str(run.env.get("data_digest", ""))[:16])]
    return [*parts, Table(("what", "value"), [*facts, ("command", run.env.get("command", ""))])]


def _again(run: Folder) -> str:
    """The command, or the call if the run was trained with objects from Python."""
    path = str(near(run.path) / "recipe.toml")
    objects = [f"{name}=..." for name in ("data", "loss") if run.env.get(f"{name}_given")]
    return f"zoo.train({path!r}, {', '.join(objects)})" if objects else f"zoo train {shlex.quote(path)}"


def _what(run: Folder) -> str:
    recipe, env, counts = run.recipe, run.env, run.counts
    images = f"{env['data_train']:,} training images" if env.get("data_train") else "training images"
    if counts and min(counts) != max(counts):
        images += f", {max(counts):,} to {min(counts):,} per class"
    started = f", started from weights {recipe.weights!r}" if recipe.weights != "none" else ""
    gamma = f" (focal gamma {recipe.loss.options['focal_gamma']:g})" if "focal_gamma" in recipe.loss.options else ""
    return (
        f"{recipe.model} on {run.data}: {images}, {len(run.classes) or '?'} classes; loss {run.loss}{gamma}; "
        f"{recipe.optim.name}, lr {recipe.optim.lr:g}, {recipe.schedule.name} schedule, batch size {recipe.batch_size}, "
        f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}, seed {recipe.seed}{started}."
    )


def _outcome(run: Folder) -> str:
    test = run.test
    if not test:
        return f"Not finished: {len(run.split('train'))} of {run.recipe.epochs} epochs."
    return (
        f"{percent(test['accuracy'])} % of {test['n']:,} test images are classified correctly (95 % interval {interval(test['low'], test['high'])} %), "
        f"macro {percent(test['macro'])} %."
    )


def _chosen(run: Folder) -> str:
    """Selection of the weights, and their calibration."""
    at = run.test["epoch"]
    by = run.recipe.select_by
    best = next((row.get(by) for row in run.held if row["epoch"] == at), None)
    how = (
        f"Weights of epoch {at}, the best on {run.held_name} ({'macro ' * (by == 'macro')}{percent(best)} %)."
        if best is not None
        else f"Weights of the last epoch, {at}."
    )
    return f"{how} Macro is the mean over classes. Calibration error over 15 bins: {percent(run.test['ece'])} %. The interval is Wilson's."


def _splits(run: Folder) -> Table:
    rows = []
    at = run.test.get("epoch") or len(run.split("train"))
    for name in ("train", "val", "test"):
        found: dict[str, Any] = next((row for row in run.split(name) if row["epoch"] == at), {})
        n = run.env.get(f"data_{name}") or found.get("n") or 0
        if found:
            ends = metrics.wilson(round(found["accuracy"] * n), n) if n and name != "train" else (None, None)
            rows.append((name, f"{n:,}" if n else "", f"{found['loss']:.3f}", percent(found["accuracy"]), interval(*ends)))
    return Table((f"split (epoch {at})", ">images", ">loss", ">accuracy %", "95 % interval"), rows)


def _shots(run: Folder) -> list[Block]:
    if len(run.shots) < 2:
        return []
    rows = [
        (s.name, s.classes, f"{s.n:,}", percent(s.macro), interval(s.macro_low, s.macro_high), percent(s.accuracy), interval(s.low, s.high))
        for s in run.shots
    ]  # fmt: skip
    head = (
        "split", ">classes", ">test images", ">mean over classes %", "95 % interval", ">over images %", "95 % interval"
    )  # fmt: skip
    images = ", ".join(map(spec.shots_text, spec.SHOTS))
    return [Heading(f"Many, medium and few shots ({images} training images)"), Table(head, rows)]


def _confused(run: Folder) -> list[Block]:
    if run.confusion is None:
        return []
    rows = []
    for a, b, there, back, n, share in metrics.worst_pairs(run.confusion, 5):
        both = f"{there + back:,} of {n:,}"
        rows.append((f"{run.classes[a]} and {run.classes[b]}", f"{there:,}", f"{back:,}", both, percent(share)))
    head = ("pair", ">first as second", ">second as first", ">both, share of the two classes' images", ">%")
    return [Heading("Most confused pairs"), Table(head, rows)] if rows else []


COURSE = {
    "mean_factor": (">mean of (1 - p_t)^gamma", lambda value: f"{value:.3f}"),
    "focal_scale": (">new scale", lambda value: f"{value:.2f}"),
    "easy": (">easy draws %", percent),
    "hard": (">hard draws %", percent),
}


def _course(run: Folder) -> list[Block]:
    """Statistics of a rescaling loss and of a sampler, at the epochs of rescaling; metrics.jsonl has all epochs."""
    train, every = run.split("train"), run.recipe.loss.options.get("rescale_every", 5)
    keys = [key for key in COURSE if train and key in train[0]]
    rows = [
        (row["epoch"], *(COURSE[key][1](row[key]) for key in keys))
        for row in train
        if row["epoch"] % every == 0 or row is train[-1]
    ]
    head = ("epoch", *(COURSE[key][0] for key in keys))
    bounds = f" (easy: p_t from {sampling.EASY}, hard: below {sampling.HARD})" if "easy" in keys else ""
    return [Heading(f"Loss and sampler by epoch{bounds}"), Table(head, rows)] if keys else []


def _classes(run: Folder, most: int) -> list[Block]:
    """One row per class, the weakest first."""
    if not run.per_class:
        return []
    weakest = sorted(range(len(run.classes)), key=lambda i: (run.per_class[i][2] is None, run.per_class[i][2] or 0))[:most]
    rows = []
    for i in weakest:
        n, right, share, low, high = run.per_class[i]
        trained = f"{run.counts[i]:,}" if run.counts else ""
        rows.append((run.classes[i], trained, f"{n:,}", f"{right:,}", percent(share), interval(low, high)))
    rest = f", the {most} weakest of {len(run.classes)}; all are in per_class.csv" if most < len(run.classes) else ""
    head = ("class", ">training images", ">test images", ">correct", ">%", "95 % interval")
    return [Heading(f"Classes{rest or ', the weakest first'}"), Table(head, rows)]


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
