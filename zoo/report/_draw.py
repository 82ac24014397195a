"""The pictures of one run: learning curves, confusion matrix, accuracy of each class."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo import metrics, spec
from zoo.files import publish
from zoo.report._read import Folder, percent, shown

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for the common colour blindnesses (Wong 2011, Nature Methods 8:441)
BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"
GREY, FAINT = "#666666", "#dddddd"
SHOT_COLOURS = {"many": BLUE, "medium": ORANGE, "few": RED}
WIDTH, DPI = 8.0, 160
"""Inches and dots per inch: 1280 pixels, sharp when shown 800 wide."""
TEXT_UP_TO, BARS_UP_TO = 20, 120
"""Largest number of classes with counts in the confusion matrix, and with bars."""
WIDE = 30
"""Span above which an axis is logarithmic."""
FAR = 6
"""Ratio of maximum to median above which an axis is logarithmic too."""


def canvas(height: float) -> Figure:
    """An empty figure outside pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")


def save(figure: Figure, path: Path) -> Path:
    """Publish a figure in the format of the path's suffix, for PNG also as SVG; equal numbers give equal bytes."""
    import matplotlib as mpl

    empty = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "zoo"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # what no installed font has is drawn as boxes
        if engine := figure.get_layout_engine():  # lay out once, not before each file
            _choose_fonts(figure)
            engine.execute(figure)
            figure.set_layout_engine(None)
        if path.suffix == ".png":
            save(figure, path.with_suffix(".svg"))
        publish(path, lambda temporary: figure.savefig(temporary, metadata=empty))
    return path


def _choose_fonts(figure: Figure) -> None:
    """Give the texts whose characters the default font lacks, such as Chinese class names, installed fonts that have them."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and not text.get_text().isascii()]
    default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    lacking = {
        char for text in texts for char in text.get_text() if char.isprintable() and not default.get_char_index(ord(char))
    }
    chosen: list[str] = []
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name) if lacking else []:
        with contextlib.suppress(OSError, RuntimeError):  # removed since matplotlib listed the fonts, or not readable
            if has := {char for char in lacking if font_manager.get_font(font.fname).get_char_index(ord(char))}:
                chosen.append(font.name)
                lacking -= has
    for text in texts if chosen else []:
        text.set_fontfamily([*text.get_fontfamily(), *chosen])


def tidy(axes: Axes, grid: str = "y") -> None:
    """Light grid behind the data, no frame above and right."""
    axes.grid(True, axis=grid, color=FAINT, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def curves(run: Folder) -> Figure:
    """Loss, accuracy and learning rate of each epoch, in training and validation, with the test result as a point."""
    figure = canvas(6.4)
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=[4, 4, 1.6])
    train, val, trained = run.split("train"), run.held, run.recipe.loss
    plain = trained.name == "cross_entropy" and trained.class_weights == "none" and not trained.options.get("label_smoothing")
    held = run.held_name.removeprefix("the ")
    names = ("train", held) if plain else (f"train ({run.loss})", f"{held} (plain cross entropy)")
    _line(loss, train, "loss", BLUE, names[0])
    _line(loss, val, "loss", ORANGE, names[1])
    _line(accuracy, train, "accuracy", BLUE, "train")
    _line(accuracy, val, "accuracy", ORANGE, held)
    _line(rate, train, "lr", GREEN, "")
    if (n := run.env.get(f"data_{run.recipe.select_on}")) and val:
        ends = np.array([metrics.wilson(round(row["accuracy"] * n), n) for row in val])
        accuracy.fill_between([row["epoch"] for row in val], *(100 * ends.T), color=ORANGE, alpha=0.2, linewidth=0)
    _test_point(accuracy, run)
    for axes, name in ((loss, "loss (nats)"), (accuracy, "accuracy (%)"), (rate, "learning rate")):
        axes.set_ylabel(name, fontsize=9)
        tidy(axes)
    for axes in (loss, accuracy):
        axes.legend(fontsize=8, frameon=False, loc="best")
    images = "on augmented images" if run.recipe.data.augment else "while learning"
    rate.set_xlabel(f"epoch (train: mean over the epoch, {images}; band and bar: 95 % interval)", fontsize=9)
    rate.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{shown(run.headline, 90)}\n{_sizes(run)}", fontsize=10)
    return figure


def _line(axes: Axes, rows: Sequence[dict[str, Any]], key: str, colour: str, label: str) -> None:
    """One quantity over the epochs, accuracy in per cent; with a logarithmic axis for a large span."""
    values = [row[key] * (100 if key == "accuracy" else 1) for row in rows]
    marker = "o" if len(rows) <= 30 else ""
    if rows:
        axes.plot([row["epoch"] for row in rows], values, color=colour, label=label, marker=marker, markersize=3, linewidth=1.6)
    if key != "accuracy":
        spread_axis(axes, values)


def spread_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis if ``values`` have a large span, or a few would flatten the others."""
    positive = sorted(value for value in values if 0 < value < np.inf)
    if positive and positive[-1] > min(WIDE * positive[0], FAR * positive[len(positive) // 2]):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axes.tick_params(which="minor", labelsize=8, pad=5)


def _test_point(axes: Axes, run: Folder) -> None:
    if not run.test:
        return
    at, share = run.test["epoch"], 100 * run.test["accuracy"]
    ends = [[share - 100 * run.test["low"]], [100 * run.test["high"] - share]]
    look: dict[str, Any] = {"color": BLACK, "marker": "D", "markersize": 5, "capsize": 3, "linestyle": ""}
    axes.errorbar([at], [share], ends, label=f"test, weights of epoch {at}: {share:.1f} %", zorder=5, **look)


def _sizes(run: Folder) -> str:
    env = run.env
    sizes = [f"{env[f'data_{key}']:,} {key}" for key in ("train", "val", "test") if env.get(f"data_{key}")]
    return " · ".join([*sizes, f"seed {run.recipe.seed}"])


def _result(run: Folder) -> str:
    test = run.test
    return f"{percent(test['accuracy'])} % [{percent(test['low'])}, {percent(test['high'])}] of n = {test['n']:,} test images"


def confusion(run: Folder) -> Figure:
    """Counts of true against predicted class; the colour is the share of the row."""
    from matplotlib.colors import PowerNorm

    counts = run.confusion
    assert counts is not None
    classes, sums = len(counts), counts.sum(1, keepdims=True)
    share = np.divide(counts, sums, out=np.full(counts.shape, np.nan), where=sums > 0)
    figure = canvas(min(8.4, 3.4 + 0.36 * classes))
    axes = figure.subplots()
    axes.set_facecolor(FAINT)  # rows without images stay grey
    picture = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto", interpolation="nearest")
    size = 8.5 if classes <= TEXT_UP_TO else max(4.0, 8.5 - 0.045 * classes)
    names = [shown(name, 18) for name in run.classes]
    axes.set_xticks(range(classes), names, rotation=90 if classes > 6 else 0, fontsize=size)
    axes.set_yticks(range(classes), names, fontsize=size)
    axes.tick_params(length=0 if classes > TEXT_UP_TO else 3)
    if classes <= TEXT_UP_TO:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.4 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8 if classes <= 12 else 6, color=colour)
    axes.set_xlabel("predicted class", fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    bar = figure.colorbar(picture, ax=axes, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], fraction=0.04, pad=0.01)
    bar.ax.set_yticklabels(["0", "1", "5", "10", "25", "50", "100"], fontsize=8)
    bar.set_label("% of the true class's images", fontsize=9)
    figure.suptitle(f"{shown(run.headline, 90)}\n{_result(run)}", fontsize=10)
    return figure


def order(run: Folder) -> list[int]:
    """Classes in the order of the bars: most training images first, or in the given order; the weakest if there are too many."""
    found = list(range(len(run.classes)))
    if len(found) > BARS_UP_TO:
        found = sorted(found, key=lambda i: (run.per_class[i][2] is None, run.per_class[i][2]))[:BARS_UP_TO]
    return sorted(found, key=lambda i: -run.counts[i]) if run.counts else sorted(found)


def per_class(run: Folder) -> Figure:
    """Accuracy of each class with its 95 % interval, most training images first, coloured by many, medium and few shots."""
    chosen, counts = order(run), run.counts
    figure = canvas(1.5 + (0.27 if len(chosen) <= TEXT_UP_TO else 0.14) * max(len(chosen), 3))
    axes = figure.subplots()
    bars(
        axes,
        [run.per_class[i] for i in chosen],
        np.arange(len(chosen)),
        0.72,
        {"color": [_colour(counts[i]) if counts else BLUE for i in chosen]},
    )
    names = [shown(run.classes[i]) + (f"  {counts[i]:,}" if counts else "") for i in chosen]
    class_axis(axes, names)
    axes.set_ylabel("class, training images" if counts else "class", fontsize=9)
    axes.axvline(100 * run.test["accuracy"], color=BLACK, linewidth=1, linestyle="--", label="all test images")
    for shot in run.shots if len(run.shots) > 1 else []:
        first, last = spec.SHOTS[shot.name]
        span = f"{first} to {last}" if last < np.inf and first else f"over {first - 1}" if first else f"under {last + 1}"
        axes.bar(0, 0, color=SHOT_COLOURS[shot.name], label=f"{shot.name} ({span} training images): {percent(shot.macro)} %")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    cut = f", the {len(chosen)} weakest of {len(run.classes)} classes" if len(chosen) < len(run.classes) else ""
    figure.suptitle(f"{shown(run.headline, 90)}\n{_result(run)}{cut}", fontsize=10)
    return figure


def _colour(count: int) -> str:
    return next(SHOT_COLOURS[name] for name, (first, last) in spec.SHOTS.items() if first <= count <= last)


def bars(
    axes: Axes, rows: Sequence[metrics.Row], at: np.ndarray, height: float, look: Mapping[str, Any], label: str = ""
) -> None:
    """Horizontal bars in per cent with interval whiskers; a class without images has no bar."""
    values = np.array([[100 * (value or 0) for value in row[2:]] for row in rows]).reshape(-1, 3)
    axes.barh(at, values[:, 0], height, label=label or None, edgecolor="white", linewidth=0, **look)
    drawn = np.array([row[0] > 0 for row in rows], bool)
    middle, low, high = values[drawn].T
    whiskers = [np.maximum(middle - low, 0), np.maximum(high - middle, 0)]
    axes.errorbar(
        middle, at[drawn], xerr=whiskers, linestyle="", color="#222222", linewidth=0.9, capsize=1.5 if height > 0.3 else 0
    )
    for y in at[~drawn]:
        axes.text(0.5, y, "no test image", va="center", fontsize=7, color=GREY)


def class_axis(axes: Axes, names: Sequence[str]) -> None:
    """Names on the y axis, per cent on the x axis."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 101)  # room for the whisker's end at 100
    axes.set_xlabel("accuracy (%), whisker: 95 % Wilson interval", fontsize=9)
    tidy(axes, "x")
    axes.tick_params(axis="y", labelsize=8.5 if len(names) <= TEXT_UP_TO else 6.5, length=0)
