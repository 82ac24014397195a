"""The measured results in the comments of the shipped recipes, generated from ``bench/results/recipes.csv``.

``python -m zoo.bench._headers`` replaces the lines ``# Result: ...`` at the top of each recipe. A row counts if it has the settings that the
recipe has now; other weights of the same model, the share of validation images and the precision may differ and are then named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo import recipe as recipes
from zoo.bench import _show, _tables, _timing
from zoo.bench.recipes import digest
from zoo.files import publish_text

FREE = ("weights", "data.val", "precision")
"""Settings that a row may change."""
MARK = "# Result"

Row = Mapping[str, str]


def results(name: str, rows: Sequence[Row]) -> list[str]:
    """One line per combination of changed settings: mean and standard deviation over seeds, test images, time and machine."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        shipped, *changes = row["recipe"].split()
        keys = [change.partition("=")[0] for change in changes]
        if shipped == name and all(key in FREE for key in keys) and row["digest"] == digest(_changed(name, changes)):
            groups.setdefault(" ".join(changes), []).append(row)
    return [_line(changes, group) for changes, group in sorted(groups.items())]


def _changed(name: str, changes: Sequence[str]) -> recipes.Recipe:
    return recipes.resolve(name, dict(recipes.parse_override(change) for change in changes))


def _line(changes: str, group: Sequence[Row]) -> str:
    accuracy = _tables.spread([float(f"{100 * float(row['accuracy']):.6g}") for row in group])  # rounded as in the tables
    minutes = sorted({f"{float(row['minutes']):.3g}" for row in group}, key=float)
    last = max(group, key=lambda row: row["date"])
    places = {row["cpu"] if row["device"] == "cpu" else row["device"]: None for row in group}
    precisions = " and ".join(dict.fromkeys(row["precision"] for row in group))
    chosen = ", epoch SELECTED ON TEST" if last["select_on"] == "test" else ""
    given = f" with {changes}" if changes else ""
    return (
        f"{MARK}{given}: {accuracy} % of {int(last['n']):,} test images (n = {len(group)}{chosen}), "
        f"{' to '.join(dict.fromkeys((minutes[0], minutes[-1])))} minutes, {precisions}, {_show.many(last['threads'], 'core')} of "
        f"{' and '.join(places)}, torch {last['torch']}, commit {last['commit']}."
    )


def updated(text: str, lines: Sequence[str]) -> str:
    """``text`` of a recipe with these lines at the end of its first comment, instead of those of earlier results."""
    kept = [line for line in text.split("\n") if not line.startswith(MARK)]
    end = next(at for at, line in enumerate(kept) if not line.startswith("#"))
    return "\n".join([*kept[:end], *lines, *kept[end:]])


def main(path: Path = _tables.RESULTS / "recipes.csv") -> None:
    """Update every shipped recipe."""
    rows = _timing.read_csv(path)
    for name, file in recipes.shipped().items():
        text = file.read_text(encoding="utf-8")
        if (new := updated(text, results(name, rows))) != text:
            publish_text(file, new)


if __name__ == "__main__":
    main()
