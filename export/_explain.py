"""Error of each layer in a reduced precision, as rows, a CSV file and a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from zoo import files
from zoo.console import print_line
from zoo.export import _cases, _external, _repair
from zoo.export._job import Job

IMAGES, LARGE_IMAGES = 32, 4
"""Number of images for measuring errors; the second from :data:`_repair.LARGE` pixels on."""


def rows(job: Job, graph: ModelProto) -> list[dict[str, Any]]:
    """For each layer of ``graph``: ``layer`` (PyTorch module), ``kind``, ``sqnr`` and, for 8 bits, ``sqnr_alone``, in dB.

    ``sqnr`` is that of the layer's output with all layers before it converted too; ``sqnr_alone`` that of the network's
    output with only this layer in 8 bits.
    """
    subject = job.subject
    part = subject.images[: IMAGES if subject.shape[-1] <= _repair.LARGE else LARGE_IMAGES]
    fed = _cases.fed(part, job.exported)
    inside = {name for node in graph.graph.node for name in node.output}
    makers = {node.name: node.output[0] for node in job.exact.graph.node}
    found = job.ranked or _repair.layers(job.exact)
    last = {layer.name: [makers[name] for name in layer.nodes if makers[name] in inside] for layer in found}
    wanted = sorted({names[-1] for names in last.values() if names})
    exact, made = _values(job.exact, wanted, fed), _values(graph, wanted, fed)
    return [
        {
            "layer": layer.name, "kind": layer.kind,
            "sqnr": round(_repair.sqnr(exact[last[layer.name][-1]], made[last[layer.name][-1]]), 2) if last[layer.name] else "",
            "sqnr_alone": round(layer.sqnr, 2) if job.ranked else "",
        }
        for layer in found
    ]  # fmt: skip


def _values(graph: ModelProto, names: Sequence[str], fed: np.ndarray) -> dict[str, np.ndarray]:
    """Float32 values of these tensors, computed as the graph is written."""
    probe = ModelProto()
    probe.CopyFrom(graph)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = _external.session(probe, optimise=False)
    return dict(zip(names, (each.astype(np.float32) for each in session.run(list(names), {session.get_inputs()[0].name: fed}))))


def save(found: Sequence[Mapping[str, Any]], path: Path, title: str) -> list[Path]:
    """Write ``NAME.layers.csv`` and ``NAME.layers.png`` next to the exported file ``path``."""
    table, picture = (path.with_name(f"{path.stem}.layers{suffix}") for suffix in (".csv", ".png"))

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)

    files.publish(table, write)
    files.publish(picture, lambda part: _draw(found, part, title))
    print_line(f"layers   {table}  {picture.name}")
    return [table, picture]


def _draw(found: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, max(2.5, 0.2 * len(found) + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = np.arange(len(found))
    top = max((row[key] for row in found for key in ("sqnr", "sqnr_alone") if _finite(row[key])), default=1.0)
    for key, shift, colour, words in (
        ("sqnr", -0.2, "#0072B2", "layer's output, all layers before it converted too"),
        ("sqnr_alone", 0.2, "#D55E00", "network's output, only this layer converted"),
    ):
        values = [row[key] if _finite(row[key]) else top if row[key] != "" else np.nan for row in found]
        if not np.isnan(values).all():
            axes.barh(places + shift, values, height=0.38, color=colour, label=words)
    axes.set_yticks(places, [str(row["layer"]) for row in found], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("signal-to-noise ratio against float32 (dB); short bars lose most")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.9 / figure.get_figheight()))
    figure.savefig(path, dpi=120, format="png")


def _finite(value: Any) -> bool:
    return value != "" and bool(np.isfinite(value))
