"""Pictures and pages from run folders: learning curves, confusion, classes, side-by-side comparison."""

from __future__ import annotations

import base64
import csv
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from zoo import checkpoint, metrics
from zoo.files import publish, publish_text
from zoo.spec import FileError

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"  # Okabe and Ito's colours, told apart by colour-blind readers
CYCLE = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DPI = 110
PICTURES = ("curves.png", "confusion.png", "per_class.png")


@dataclass(frozen=True)
class Folder:
    """The numbers of a run folder, read once."""

    path: Path
    rows: list[dict[str, Any]]
    env: dict[str, Any]
    test: dict[str, Any]
    classes: list[str]
    per_class: list[dict[str, float]]
    confusion: np.ndarray

    @property
    def what(self) -> str:
        """Model and data."""
        return f"{self.env.get('model', '?')} on {self.env.get('data', '?')}"

    def curve(self, split: str, key: str) -> tuple[list[int], list[float]]:
        """Epochs and values of one curve."""
        rows = [row for row in self.rows if row["split"] == split and key in row]
        return [row["epoch"] for row in rows], [row[key] for row in rows]


def read(path: Path) -> Folder:
    """The numbers of a finished run; FileError if it isn't finished."""
    if not (path / "result.json").is_file():
        raise FileError(f"run is not finished ({path}, no result.json); go on with: zoo train --resume --out {path}")
    test = json.loads((path / "result.json").read_text(encoding="utf-8"))
    env = json.loads((path / "env.json").read_text(encoding="utf-8"))
    with (path / "per_class.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    with (path / "confusion.csv").open(newline="", encoding="utf-8") as file:
        counts = np.array([[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]])
    numbers = [{key: float(value) if value else float("nan") for key, value in row.items() if key != "class"} for row in table]
    return Folder(path, checkpoint.read_rows(path), env, test, [row["class"] for row in table], numbers, counts)


def figures(path: Path) -> list[Path]:
    """Draw ``curves.png``, ``confusion.png`` and ``per_class.png`` of a finished run."""
    run = read(path)
    drawn = zip(PICTURES, (_curves([run]), _confusion(run), _per_class([run])))
    return [_save(figure, path / name) for name, figure in drawn]


def _save(figure: Figure, path: Path) -> Path:
    publish(path, lambda temporary: figure.savefig(temporary, dpi=DPI, facecolor="white"))
    return path


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for each in axes.flat:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
    return figure, axes


def _curves(runs: Sequence[Folder]) -> Figure:
    figure, ((accuracy, loss), (rate, _)) = _figure(8, 5.2, 2, 2, sharex=True, height_ratios=(3, 1))
    _.set_axis_off()
    several = len(runs) > 1
    for color, run in zip(CYCLE, runs):
        for split, style, tint in (("train", "--", color if several else BLUE), ("val", "-", color if several else ORANGE)):
            label = (
                f"{run.path.name[:40]} {split}" if several else {"train": "training (augmented)", "val": "validation"}[split]
            )
            epochs, values = run.curve(split, "accuracy")
            accuracy.plot(epochs, [100 * value for value in values], style, color=tint, label=label)
            loss.plot(*run.curve(split, "loss"), style, color=tint)
        rate.plot(*run.curve("train", "lr"), color=color if several else GREY)
    accuracy.set_ylabel("accuracy, %")
    loss.set_ylabel("loss")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    loss.set_xlabel("epoch")
    loss.tick_params(labelbottom=True)
    accuracy.legend(frameon=False, fontsize=8)
    test = "" if several else f": test {100 * runs[0].test['accuracy']:.1f} % of {runs[0].test['n']:,} images"
    figure.suptitle(("Learning curves" if several else runs[0].what) + test, fontsize=11)
    return figure


def _confusion(run: Folder) -> Figure:
    count = len(run.classes)
    small = count <= 20
    side = min(8.0, 2.6 + 0.52 * count) if small else 8.0
    figure, ((axes,),) = _figure(side, side * 0.92)
    axes.grid(False)
    share = run.confusion / np.maximum(run.confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class, %")
    if small:
        axes.set_xticks(range(count), run.classes, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(count), run.classes, fontsize=8)
        for (row, column), number in np.ndenumerate(run.confusion):
            if number:
                axes.text(
                    column,
                    row,
                    f"{number:,}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if share[row, column] > 0.55 else "black",
                )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{run.what}: {run.test['n']:,} test images, counts in cells", fontsize=10)
    return figure


def _per_class(runs: Sequence[Folder]) -> Figure:
    classes, counts = runs[0].classes, runs[0].env.get("counts")
    order = np.argsort([-n for n in counts], kind="stable") if counts else np.arange(len(classes))
    order = order[:40]
    figure, ((axes,),) = _figure(8, 4.2)
    width = 0.8 / len(runs)
    for number, (color, run) in enumerate(zip(CYCLE, runs)):
        shares = np.array([run.per_class[i]["accuracy"] for i in order]) * 100
        ends = np.array([[run.per_class[i][key] for i in order] for key in ("low", "high")]) * 100
        at = np.arange(len(order)) + (number - (len(runs) - 1) / 2) * width
        errors = np.abs(ends - shares)
        axes.bar(at, shares, width * 0.9, yerr=errors, color=color, ecolor="#333333", capsize=2, label=run.path.name[:40])
    names = [f"{classes[i]}\n{counts[i]:,}" if counts and len(order) <= 12 else classes[i] for i in order]
    axes.set_xticks(
        range(len(order)), names, rotation=0 if len(order) <= 10 and max(map(len, classes)) < 11 else 60, fontsize=8
    )
    axes.set_ylim(0, 100)
    axes.set_ylabel("test accuracy, %")
    axes.set_xlabel("class, and its training images" if counts and len(order) <= 12 else "class, most training images first")
    if len(runs) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set_title(
        f"{runs[0].what}: accuracy of each class, bars are 95 % intervals (Wilson), n = {runs[0].test['n']:,}", fontsize=10
    )
    return figure


def summary(path: Path) -> Path:
    """Write the run folder's README.md: what was run, the result, the pictures, the line that repeats it."""
    run = read(path)
    text = "\n".join(_summary_lines(run)) + "\n"
    publish_text(path / "README.md", text)
    return path / "README.md"


def _summary_lines(run: Folder) -> Iterator[str]:
    test, env = run.test, run.env
    yield f"# {run.path.name}\n"
    yield f"{run.what}, {env.get('data_train', 0):,} training, {env.get('data_val', 0):,} validation, {env.get('data_test', 0):,} test images.\n"
    yield (
        f"**Test accuracy {100 * test['accuracy']:.2f} %** (95 % interval {100 * test['low']:.2f} to {100 * test['high']:.2f}, n = {test['n']:,}), "
        f"mean over classes {100 * test['macro']:.2f} %, calibration error {100 * test['ece']:.1f} %, weights of epoch {test['epoch']}.\n"
    )
    yield (
        "The test images were used once, after training; weights were chosen on validation images.\n"
        if env.get("data_val")
        else ("The test images were used once, after training; without validation images the last epoch's weights are kept.\n")
    )
    yield f"Repeat: `zoo train {run.path}/recipe.toml`\n"
    yield from (f"![{name}]({name})\n" for name in PICTURES)
    yield "| class | n | correct | % | 95 % interval |\n|---|---|---|---|---|"
    for name, row in zip(run.classes, run.per_class):
        yield f"| {name} | {row['n']:.0f} | {row['correct']:.0f} | {100 * row['accuracy']:.1f} | {100 * row['low']:.1f} to {100 * row['high']:.1f} |"
    yield "\n| made with | |\n|---|---|"
    yield from (f"| {key} | {value} |" for key, value in env.items() if key != "counts")


def page(path: Path) -> Path:
    """Write ``report.html`` of a run: one file with the pictures inside."""
    run = read(path)
    headline = f"{run.what}: test {_share(run)}"
    parts = [
        *(_picture(path / name) for name in PICTURES),
        _table(("made with", ""), [(k, v) for k, v in run.env.items() if k != "counts"]),
    ]
    publish_text(path / "report.html", _html(run.path.name, headline, parts))
    return path / "report.html"


def compare(paths: Sequence[Path], out: Path) -> Path:
    """Write one HTML page with several finished runs side by side and McNemar's test between the first and each other."""
    runs = [read(path) for path in paths]
    rows = [(run.path.name, _share(run), f"{100 * run.test['macro']:.2f}", _against(runs[0], run)) for run in runs]
    parts = [_table(("run", "test %", "macro %", f"against {runs[0].path.name}"), rows)]
    for name, figure in (
        ("curves", _curves(runs)),
        ("classes", _per_class(runs) if len({tuple(r.classes) for r in runs}) == 1 else None),
    ):
        if figure is not None:
            picture = out.with_name(f".{out.stem}-{name}.png")
            parts.append(_picture(_save(figure, picture)))
            picture.unlink()
    publish_text(out, _html("zoo report", " against ".join(run.path.name for run in runs), parts))
    return out


def _share(run: Folder) -> str:
    return f"{100 * run.test['accuracy']:.2f} % [{100 * run.test['low']:.2f}, {100 * run.test['high']:.2f}]"


def _against(first: Folder, other: Folder) -> str:
    if first is other:
        return ""
    right = [_right(run.path) for run in (first, other)]
    if right[0].keys() != right[1].keys():
        return "other test images"
    keys = sorted(right[0])
    lost, won, p = metrics.mcnemar([right[0][key] for key in keys], [right[1][key] for key in keys])
    verdict = "not a difference" if p >= 0.05 else "a difference"
    return f"{won} images gained, {lost} lost, McNemar p = {p:.2g}: {verdict}"


def _right(path: Path) -> dict[str, bool]:
    with (path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return {row["file"]: row["target"] == row["predicted"] for row in csv.DictReader(file)}


def _picture(path: Path) -> str:
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _html(title: str, headline: str, parts: Sequence[str]) -> str:
    style = "body{font:15px system-ui,sans-serif;max-width:900px;margin:2em auto;color:#222}img{max-width:100%}td,th{padding:.15em .8em;text-align:left}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(headline)}</p>{''.join(parts)}</html>\n"
    )
