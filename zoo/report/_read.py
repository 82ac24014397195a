"""Content of a run folder, read once and checked, and the texts shared by pictures and pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from zoo import csv_files, files, metrics
from zoo import recipe as recipes
from zoo.console import plain
from zoo.errors import DataError, FileError
from zoo.recipe import Recipe
from zoo.tables import percent as percent
from zoo.training import checkpoint

T = TypeVar("T")
NAME = 26
"""Longest class or run name in a picture, in characters."""


@dataclass(frozen=True)
class Folder:
    """Content of a run folder; ``test`` and later fields are empty until the run is finished."""

    path: Path
    recipe: Recipe
    env: dict[str, Any]
    rows: list[dict[str, Any]]
    """``metrics.jsonl``."""
    test: dict[str, Any]
    """Its row of the test split: n, accuracy, low, high, macro, loss, ece, epoch."""
    classes: tuple[str, ...]
    per_class: list[metrics.Row]
    confusion: np.ndarray | None
    """Counts (C, C), rows the true class."""
    predictions: list[dict[str, str]]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return plain(self.path.absolute().name)

    @property
    def counts(self) -> list[int]:
        """Training images per class, or an empty list if they were not stored."""
        counts = self.env.get("counts") or []
        return list(counts) if len(counts) == len(self.classes) else []

    @property
    def shots(self) -> list[metrics.Shot]:
        """Many-, medium- and few-shot accuracies; empty without counts."""
        return metrics.shots(self.per_class, self.counts) if self.counts else []

    @property
    def right(self) -> list[bool]:
        """For each row of ``predictions.csv``, whether it is correct."""
        return [row["target"] == row["predicted"] for row in self.predictions]

    def split(self, name: str) -> list[dict[str, Any]]:
        """Rows of one split, in order of epochs."""
        return [row for row in self.rows if row["split"] == name]

    @property
    def held(self) -> list[dict[str, Any]]:
        """Rows of the split that selected the epoch, in order of epochs."""
        return self.split(checkpoint.CHOOSING[self.recipe.select_on])

    @property
    def held_name(self) -> str:
        """Description of these images."""
        return "validation" if self.recipe.select_on == "val" else "the test images"

    @property
    def seconds(self) -> float:
        """Time of training, without evaluation."""
        return sum(row.get("seconds", 0.0) for row in self.split("train"))

    @property
    def data(self) -> str:
        """``cifar10 (long tail exp:0.01)``; of a user's folder ``parent/folder``, as many are named ``images``."""
        return self.set_name(2) + self.thinned

    @property
    def thinned(self) -> str:
        """`` (long tail exp:0.01)``, or nothing."""
        thinned = self.recipe.data.imbalance
        return f" (long tail {thinned})" if thinned != "none" else ""

    def set_name(self, parts: int) -> str:
        """The data set; a user's folder or file by so many parts of its path."""
        data = self.recipe.data
        if given := self.env.get("data_given"):
            return str(given)
        return "/".join(Path(self.env.get("data_dir") or data.label).parts[-parts:]) if data.own else data.label

    @property
    def given(self) -> bool:
        """The data was an object in Python, which only its digest identifies."""
        return "data_given" in self.env

    def same_set(self, other: Folder) -> bool:
        """Whether both use the same data set. The digest depends on the size of the images, so it may differ for one folder."""
        digest, own = self.env.get("data_digest"), self.recipe.data.own and other.recipe.data.own
        if own and digest and digest == other.env.get("data_digest"):  # a folder that was moved or renamed
            return True
        if self.set_name(1) != other.set_name(1):
            return False
        digests, places = ({run.env.get(key, "") for run in (self, other)} for key in ("data_digest", "data_dir"))
        return not (self.recipe.data.own or self.given) or len(digests) == 1 or (len(places) == 1 and "" not in places)

    @property
    def loss(self) -> str:
        """``focal, effective weights``, the loss of the run."""
        if given := self.env.get("loss_given"):
            return str(given)
        weights = self.recipe.loss.class_weights
        return self.recipe.loss.name.replace("_", " ") + (f", {weights.replace('_', ' ')} weights" if weights != "none" else "")

    @property
    def headline(self) -> str:
        """Data, model and loss in one line."""
        mark = ", selected on test" if self.recipe.select_on == "test" else ""
        return f"{self.data}, {self.recipe.model}, {self.loss}{mark}"


def set_names(runs: Sequence[Folder]) -> list[str]:
    """Name of the data set of each run; two sets never have the same name."""
    sets: list[Folder] = []
    for run in runs:
        if not any(run.same_set(other) for other in sets):
            sets.append(run)
    longer = ([each.set_name(parts) for each in sets] for parts in range(2, 20))
    by_digest = [f"{each.set_name(2)} [{str(each.env.get('data_digest', ''))[:8]}]" for each in sets]
    names = next((names for names in longer if len(set(names)) == len(names)), by_digest)
    return [next(name for name, each in zip(names, sets) if run.same_set(each)) for run in runs]


def read(path: Path) -> Folder:
    """The contents of a run folder.

    Raises:
        FileError: not a run folder, or a damaged file. DataError: no epoch is finished yet.
    """
    path = Path(path)
    if not (path / "recipe.toml").is_file():
        raise FileError(f"not a run folder ({path.absolute()}, no recipe.toml in it); make one with: zoo train")
    rows = checkpoint.read_rows(path)
    if not rows:
        raise DataError(f"no finished epoch ({path}, metrics.jsonl is empty); continue with: zoo train --resume --out {path}")
    test: dict[str, Any] = next((row for row in reversed(rows) if row.get("split") == "test"), {})
    env = files.read_facts(path / "env.json")
    classes, per_class = _parsed(path / "per_class.csv", _per_class, lambda: ((), []))
    confusion = _parsed(path / "confusion.csv", _confusion, lambda: None)
    if confusion is not None and confusion.shape != (len(classes), len(classes)):
        raise FileError(
            f"confusion.csv does not match the {len(classes)} classes of per_class.csv ({path}); restore both, or repeat the run"
        )
    predictions = _parsed(path / "predictions.csv", _predictions, list)
    recipe = recipes.read(path / "recipe.toml")
    if not test:  # the tables are of an earlier training in this folder
        return Folder(path, recipe, env, rows, test, (), [], None, [])
    return Folder(path, recipe, env, rows, test, classes, per_class, confusion, predictions)


def _parsed(path: Path, parse: Callable[[str], T], absent: Callable[[], Any]) -> T:
    if not path.is_file():
        return absent()
    try:
        return parse(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(
            f"damaged file ({path}, {str(error)[:80]}); restore it, or repeat the run: zoo train {path.parent}/recipe.toml"
        ) from error


def _per_class(text: str) -> tuple[tuple[str, ...], list[metrics.Row]]:
    rows = csv_files.records(text)
    return tuple(row["class"] for row in rows), [metrics.class_row(int(row["n"]), int(row["correct"])) for row in rows]


def _confusion(text: str) -> np.ndarray:
    rows = csv_files.lines(text)
    return np.array([[int(cell) for cell in row[1:]] for row in rows[1:]], np.int64)


def _predictions(text: str) -> list[dict[str, str]]:
    rows = csv_files.records(text)
    if rows and not {"file", "target", "predicted"} <= set(rows[0]):
        raise ValueError("expected the columns file, target and predicted")
    return rows


def interval(low: float | None, high: float | None) -> str:
    """``93.9 to 94.3``; nothing for None."""
    return "" if low is None else f"{percent(low)} to {percent(high)}"


def shown(name: str, longest: int = NAME) -> str:
    """A name for a picture: one line, valid Unicode, limited length, no mathematical markup."""
    name = re.sub(r"[\x00-\x1f\x7f]+", " ", name.encode("utf-8", "replace").decode())
    return (name if len(name) <= longest else name[: longest - 1] + "…").replace("$", r"\$")
