"""The tables of README and docs, generated from the CSV files of the benchmarks.

``python -m zoo.bench._tables README.md docs/*.md`` updates the text between markers such as
``<!-- table:inference batch=64 contender images_per_s ratio -->`` and ``<!-- /table:inference -->``: the named columns of the rows of
``bench/results/inference.csv`` that have these values (``*`` stands for anything, ``?`` for a character, ``|`` separates alternatives). With columns such as ``mean:accuracy``
rows that agree in the other columns are combined: their number, mean and standard deviation. ``accuracy%`` shows a
share in per cent. The rows are ordered by a column with a minus, ``-mean:accuracy%``, the largest first.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from zoo.bench import _show, _timing
from zoo.files import publish_text

MEAN = "mean:"
RESULTS = Path(__file__).parent / "results"
_MARKED = re.compile(r"(<!-- table:([\w-]+)([^>\n]*?) -->\n).*?(<!-- /table:\2 -->)", re.DOTALL)


def render(path: Path, columns: Sequence[str] = (), where: dict[str, str] | None = None) -> str:
    """Markdown of a CSV: ``columns`` (default: all but the environment) of the rows that match ``where``, and one line with machines, versions and a command.

    Raises:
        ValueError: no such column, or no matching row.
    """
    fits = (where or {}).items()
    rows = [row for row in _timing.read_csv(path) if all(_fits(row.get(key, ""), value) for key, value in fits)]
    if not rows:
        raise ValueError(f"{path.name} has no rows with {where}")
    order = next((name for name in columns if name.startswith("-")), "")[1:]
    columns = [name.removeprefix("-") for name in columns] or [name for name in rows[0] if name not in _timing.ENVIRONMENT]
    if missing := [name for name in columns if _bare(name) not in rows[0]]:
        raise ValueError(f"{path.name} has no column {missing[0]!r}; it has {', '.join(rows[0])}")
    for name in (name for name in columns if name.endswith("%")):
        for row in rows:
            row[name.removeprefix(MEAN)] = f"{100 * float(text):.6g}" if (text := row[_bare(name)]) else ""
    source = _source(rows)
    if any(name.startswith(MEAN) for name in columns):
        columns, rows = _means(columns, rows)
    if order:
        rows = sorted(rows, key=lambda row: float(row[order.removeprefix(MEAN)].split(" ")[0] or "-inf"), reverse=True)
    number = [all(_is_number(row[name]) for row in rows if row[name]) for name in columns]
    lines = [
        " | ".join(name.replace("_", " ").replace("%", " %") for name in columns),
        " | ".join("---:" if right else "---" for right in number),
    ]
    lines += [" | ".join(_cell(row[name]) for name in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + f"\n\n{source}\n"


def _fits(text: str, patterns: str) -> bool:
    """Whether one of the patterns between ``|`` matches.

    >>> _fits("a b", "c|a?b"), _fits("a b", "a|b")
    (True, False)
    """
    return any(fnmatch(text, pattern) for pattern in patterns.split("|"))


def _bare(column: str) -> str:
    return column.removeprefix(MEAN).removesuffix("%")


def _means(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> tuple[list[str], list[dict[str, str]]]:
    """One row for all that agree in the plain columns; ``runs`` is their number."""
    plain = [name for name in columns if not name.startswith(MEAN)]
    averaged = [name.removeprefix(MEAN) for name in columns if name.startswith(MEAN)]
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in plain), []).append(row)
    made = []
    for key, group in groups.items():
        averages = {name: spread([float(row[name]) for row in group if row[name]]) for name in averaged}
        made.append({**dict(zip(plain, key, strict=True)), "runs": str(len(group)), **averages})
    return [*plain, "runs", *averaged], made


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation as text.

    >>> spread([0.90, 0.92]), spread([0.5])
    ('0.91 ± 0.014', '0.5')
    """
    if not values:
        return ""
    mean = f"{statistics.mean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def _source(rows: Sequence[dict[str, str]]) -> str:
    """Machines, versions, commits and dates of the rows, and the command of the first."""

    def of(name: str) -> list[str]:
        return list(dict.fromkeys(row[name] for row in rows if row.get(name)))

    places = list(dict.fromkeys(row["cpu"] if row.get("device") == "cpu" else row.get("device", "") for row in rows))
    parts = [
        " and ".join(filter(None, (", ".join(places[:-1]), *places[-1:]))),
        " or ".join(_show.many(each, "core") for each in of("cores")),
    ]
    parts += [f"{name} {' and '.join(of(name))}" for name in ("python", "torch", "onnxruntime", "zoo") if of(name)]
    commits, dates = of("commit"), sorted(of("date"))
    parts += [f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits" if commits else ""]
    parts += [" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else []
    return f"<sub>{', '.join(filter(None, parts))}: `{rows[0].get('command', '')}`</sub>"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?( ± .*)?", text) is not None


def _cell(text: str) -> str:
    """Three significant digits; thousands separated.

    >>> _cell("1234.5"), _cell("0.01234"), _cell("eager")
    ('1,234', '0.0123', 'eager')
    """
    if not _is_number(text) or "±" in text:
        return text
    value = float(text)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def updated(text: str, results: Path = RESULTS) -> str:
    """``text`` with every marked table regenerated from ``results/NAME.csv``; empty if the file is missing."""

    def again(found: re.Match[str]) -> str:
        path, words = results / f"{found[2]}.csv", found[3].split()
        where = dict(word.split("=", 1) for word in words if "=" in word)
        columns = [word for word in words if "=" not in word]
        return found[1] + (render(path, columns, where) if path.is_file() else "") + found[4]

    return _MARKED.sub(again, text)


def update(path: Path, results: Path = RESULTS) -> None:
    """Update the marked tables of a Markdown file."""
    publish_text(path, updated(path.read_text(encoding="utf-8"), results))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        update(Path(name))
