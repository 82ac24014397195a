"""The rows of an inference benchmark as tables for a terminal and as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from zoo import tables
from zoo.bench import _picture

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> RenderableType:
    """One table per model, device and batch, the fastest in bold; then memory and file sizes. 80 columns wide."""
    parts: list[RenderableType] = []
    for (model, device, batch), own in _grouped(rows, "model", "device", "batch").items():
        place = own[0]["cpu"] if device == "cpu" else device
        found = tables.make(
            ("contender", ">img/s", ">95 % interval", *resident_head(own), ">ratio", ">p50 ms", ">p95 ms", ">peak %"), [],
            title=f"{model} · batch {batch} · {many(own[0]['threads'], 'thread')} · {place}",
        )  # fmt: skip
        fastest = max(float(row["images_per_s"]) for row in own)
        for row in own:
            found.add_row(*_speed(row, own), style="bold" if float(row["images_per_s"]) == fastest else None)
        parts += [found, ""]
    for (model, _), own in _grouped(rows, "model", "device").items():
        largest = [row for row in own if row["batch"] == own[-1]["batch"]]
        columns = ("contender", ">load ms", ">first ms", ">peak MB", ">file MB", ">accuracy %", ">max diff")
        parts += [tables.make(columns, map(_cost, largest), title=f"{model} · cost, batch {own[-1]['batch']}"), ""]
    return Group(*parts, *_notes(rows))


def resident_head(rows: Sequence[Row]) -> tuple[str, ...]:
    """One more column if data can stay on a GPU."""
    return (">resident",) if any(row["resident_per_s"] != "" for row in rows) else ()


def _grouped(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _speed(row: Row, own: Sequence[Row]) -> tuple[str, ...]:
    speed, low, high, median, p95 = (float(row[key]) for key in ("images_per_s", "low", "high", "median_ms", "p95_ms"))
    stays = [_number(row["resident_per_s"], ",.0f")] if resident_head(own) else []
    name = f"{row['contender']}{'*' if row['noisy'] == 'yes' else ''}"
    interval = f"{short(low)}-{short(high)}"
    return (
        name, short(speed), interval, *stays, f"{float(row['ratio']):.2f}", f"{median:.3g}", f"{p95:.3g}",
        _number(row["share"], ".0%").rstrip("%"),
    )  # fmt: skip


def many(number: Any, word: str) -> str:
    """``1 core``, ``2 cores``."""
    return f"{number} {word}{'' if str(number) == '1' else 's'}"


def short(value: float) -> str:
    """Thousands separated; decimals only below ten."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _number(value: Any, form: str) -> str:
    return "" if value in ("", None) else format(float(value), form)


def _cost(row: Row) -> tuple[str, ...]:
    interval = f" [{float(row['accuracy_low']):.1%}, {float(row['accuracy_high']):.1%}]" if row["accuracy"] != "" else ""
    return (
        row["contender"], _number(row["load_ms"], ",.0f"), _number(row["first_ms"], ",.0f"), _number(row["peak_mb"], ",.0f"),
        _number(row["file_mb"], ",.1f"), (_number(row["accuracy"], ".1%") + interval).replace("%", ""), _number(row["max_diff"], ".0e"),
    )  # fmt: skip


def _notes(rows: Sequence[Row]) -> list[str]:
    bases = sorted({str(row["base"]) for row in rows})
    notes = [
        f"ratio: to {', '.join(bases)}, per round. peak: share of the lower limit of a matrix product and a copy, measured here."
    ]
    if any(row["noisy"] == "yes" for row in rows):
        notes.append("* noisy: rounds are too few or differ too much; do not rely on the figure.")
    chosen = {f"{row['contender']}: {row['settings']}" for row in rows if row["settings"]}
    return [*notes, f"chosen by measurement: {'; '.join(sorted(chosen))}"] if chosen else notes


def figures(rows: Sequence[Row], out: Path) -> list[Path]:
    """Pictures next to the CSV ``out``, for each model: throughput and latency, and accuracy against latency if there is any."""
    made = []
    models = _grouped(rows, "model")
    for (model,), own in models.items():
        stem = out.stem if len(models) == 1 else f"{out.stem}-{str(model).replace('/', '-')}"
        made.append(_drawn(out.with_name(f"{stem}.png"), own, _picture.draw))
        if any(row["accuracy"] != "" for row in own):
            made.append(_drawn(out.with_name(f"{stem}_accuracy.png"), own, _picture.draw_accuracy))
    return made


def _drawn(path: Path, rows: Sequence[Row], draw: Callable[..., None]) -> Path:
    devices = list(dict.fromkeys(str(row["device"]) for row in rows))
    title = f"{rows[0]['model']}: inference on {' and '.join(d if d != 'cpu' else rows[0]['cpu'] for d in devices)}"
    lines = [
        line
        for name in dict.fromkeys(row["contender"] for row in rows)
        for device in devices
        if (line := _line(rows, name, device))
    ]
    if len(devices) > 1:
        lines = [replace(line, name=f"{line.name} ({line.device})") for line in lines]
    note = f"{many(rows[0]['threads'], 'thread')}, torch {rows[0]['torch']}, onnxruntime {rows[0]['onnxruntime']}, {rows[0]['date']}"
    if draw is _picture.draw_accuracy:
        images = sorted({int(row["images"]) for row in rows if row["accuracy"] != ""})
        note = f"accuracy on {' or '.join(f'{n:,}' for n in images)} images; {note}"
    return _picture.publish_both(path, lambda temporary: draw(temporary, title, note, lines))


def _line(rows: Sequence[Row], name: str, device: str) -> _picture.Line | None:
    own = [row for row in rows if row["contender"] == name and row["device"] == device]
    keys = ("batch", "images_per_s", "low", "high", "median_ms", "p95_ms", "accuracy", "accuracy_low", "accuracy_high")
    numbers = {key: [float(row[key]) if row[key] != "" else float("nan") for row in own] for key in keys}
    return _picture.Line(name, device, numbers, [row["noisy"] == "yes" for row in own]) if own else None
