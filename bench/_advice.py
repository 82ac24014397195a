"""Recommendation of a contender: the last line of ``zoo bench``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MAX_DROP = 0.5
"""Largest loss of accuracy in points of a faster contender, as ``zoo export --max-drop``."""


def lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """For each model and device one line: the fastest contender for single images and for many, within :data:`MAX_DROP`.

    Without measured accuracy, only float32 is recommended.
    """
    found = []
    for model, device in dict.fromkeys((row["model"], row["device"]) for row in rows):
        own = [row for row in rows if (row["model"], row["device"]) == (model, device)]
        reference = next((_measured(row) for row in own if row["precision"] == "fp32"), math.nan)
        fit = [row for row in own if _fits(row, reference)]
        if not fit:
            continue
        batches = sorted({int(row["batch"]) for row in fit})
        first = min((row for row in fit if int(row["batch"]) == batches[0]), key=lambda row: float(row["median_ms"]))
        many = max(fit, key=lambda row: float(row["images_per_s"]))
        parts = [f"{first['contender']} for batch {batches[0]} ({_number(first['median_ms'])} ms)"]
        if int(many["batch"]) != batches[0]:
            parts.append(f"{many['contender']} for batch {many['batch']} ({_number(many['images_per_s'])} images per second)")
        noisy = "; noisy figures, measure again on an idle machine" if "yes" in (first["noisy"], many["noisy"]) else ""
        cost = "" if math.isnan(reference) else f"; accuracy {_accuracy(first, many)}, float32 {100 * reference:.2f} %"
        found.append(f"use      {model}: {', '.join(parts)}{cost}{noisy}")
    return found


def _measured(row: Mapping[str, str]) -> float:
    """A contender's accuracy, nan if not measured."""
    return float(row["accuracy"] or "nan")


def _fits(row: Mapping[str, str], reference: float) -> bool:
    accuracy = _measured(row)
    if math.isnan(reference) or math.isnan(accuracy):
        return row["precision"] == "fp32"
    return 100 * (reference - accuracy) <= MAX_DROP


def _accuracy(*rows: Mapping[str, str]) -> str:
    return " and ".join(dict.fromkeys(f"{100 * _measured(row):.2f} %" for row in rows))


def _number(text: str) -> str:
    value = float(text)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
