"""Generated run folders, and the content of pages and pictures."""

from __future__ import annotations

import csv
import html.parser
import json
import math
import re
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from zoo import metrics, recipe

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TAIL = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)


def write_csv(path: Path, header: list, rows: list) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def fake_run(
    path: Path, *, classes: tuple[str, ...] = CIFAR, counts: tuple[int, ...] | None = TAIL, n: int = 100, epochs: int = 12,
    skill: float = 0.8, seed: int = 0, noise: int = 0, finished: bool = True, val: int = 500, **settings: object,
) -> Path:  # fmt: skip
    """A run folder whose test predictions are correct with probability ``skill``, lower for rare classes; ``noise`` varies them."""
    path.mkdir(parents=True)
    chance = np.random.default_rng(noise)
    changes = {
        "epochs": epochs,
        "seed": seed,
        "data": "cifar10",
        "data.imbalance": "exp:0.01" if counts else "none",
        **settings,
    }
    (path / "recipe.toml").write_text(recipe.dump(recipe.resolve("resnet32", changes)))
    env = {
        "zoo": "0.1.0", "python": "3.11", "torch": "2.15", "device": "cpu", "cpu": "a <fast> one", "threads": 2, "precision": "fp32",
        "data_train": sum(counts or (0,)), "data_val": val, "data_test": n * len(classes), "command": "zoo train x", "data_digest": "ab" * 32,
    }  # fmt: skip
    (path / "env.json").write_text(json.dumps(env | ({"counts": list(counts)} if counts else {})))
    rows = [row for epoch in range(1, epochs + 1) for row in epoch_rows(epoch, epochs, skill, val)]
    if finished:
        rows.append(write_test(path, classes, n, skill, chance) | {"epoch": max(1, epochs - 1)})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def epoch_rows(epoch: int, epochs: int, skill: float, val: int) -> list[dict]:
    far = 1 - math.exp(-4 * epoch / epochs)
    lr = 0.05 * (1 + math.cos(math.pi * (epoch - 1) / epochs)) + 1e-5
    train = {"split": "train", "loss": 2.3 - 2 * far, "accuracy": far, "lr": lr, "images_per_s": 900.0, "seconds": 61.5}
    check = {"split": "val", "loss": 2.2 - 1.6 * far * skill, "accuracy": far * skill}
    return [{"epoch": epoch, **row} for row in ([train, check] if val else [train])]


def write_test(path: Path, classes: tuple[str, ...], n: int, skill: float, chance: np.random.Generator) -> dict:
    size = len(classes)
    targets = np.repeat(np.arange(size), n)
    sure = skill + 0.18 - 0.4 * targets / size
    others = (targets + 1 + np.minimum(chance.geometric(0.4, len(targets)), size - 1) - 1) % size
    predicted = np.where(chance.random(len(targets)) < sure, targets, others)
    confusion = np.zeros((size, size), np.int64)
    np.add.at(confusion, (targets, predicted), 1)
    table = [metrics.class_row(int(row.sum()), int(row[i])) for i, row in enumerate(confusion)]
    write_csv(
        path / "per_class.csv", ["class", "n", "correct", "accuracy", "low", "high"], [[c, *r] for c, r in zip(classes, table)]
    )
    write_csv(path / "confusion.csv", ["true\\pred", *classes], [[c, *r.tolist()] for c, r in zip(classes, confusion)])
    answers = [[f"test[{i}]", classes[t], classes[p], 0.5] for i, (t, p) in enumerate(zip(targets, predicted))]
    write_csv(path / "predictions.csv", ["file", "target", "predicted", "probability"], answers)
    right, total = int(confusion.trace()), len(targets)
    low, high = metrics.wilson(right, total)
    macro = float(np.mean([row[2] for row in table]))
    return {
        "split": "test", "loss": 0.9, "accuracy": right / total, "n": total, "low": low, "high": high, "macro": macro, "ece": 0.05,
    }  # fmt: skip


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text; fails on a tag that closes another."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def overlaps(figure: object) -> list[tuple[str, str]]:
    """Titles and axis labels that overlap or leave the picture."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [figure._suptitle, *(text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label))]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    whole = figure.bbox
    found = [(name, "edge") for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > whole.x1 or box.y1 > whole.y1]
    return found + [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.overlaps(two)]


def cells(page: str) -> list[list[str]]:
    """The rows of all tables of a page, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]
