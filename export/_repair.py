"""Repair of an 8 bit graph that loses too much accuracy or differs too much: restore its most sensitive layers to float32, as few as possible.

A layer's sensitivity is the SQNR of the network's output when only that layer is in 8 bits (Nagel et al. 2021, "A White Paper
on Neural Network Quantization", section 3.6). Layers are restored in order of sensitivity; bisection finds the smallest number that satisfies the bound on validation images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto

from zoo.console import counted, print_line
from zoo.errors import DisagreeError
from zoo.export import _cases, _graph, _quantise
from zoo.export._choose import Chosen, difference
from zoo.export._job import Job, Layer

RANKING = 64
"""Calibration images that layers are ranked on."""
LARGE = 64
"""Side in pixels from which an eighth of them is used."""
MARGIN = 0.5
"""Share of the allowed drop on validation images, so that the test set satisfies the bound as well."""
NEAR = 0.75
"""Share of the tolerance of outputs on validation images, for the same reason."""
ROUNDING = 1e-9
"""Points by which a difference of two accuracies may exceed the bound: 1 of 2,000 images is 0.05 points and a little."""
MOST = 0.5
"""Largest share of restored layers; beyond it float32 or fp16 is the better choice."""


def layers(graph: ModelProto) -> list[Layer]:
    """The layers of a graph in order; the name is that of the PyTorch module. Nodes that share a weight are one layer: it is rounded for all of them or for none."""
    inside, weights = set(_graph.model_nodes(graph)), {each.name for each in graph.graph.initializer}
    found: list[Layer] = []
    owner: dict[str, int] = {}
    at = 0
    for node in graph.graph.node:
        if node.name not in inside:
            continue
        used = [name for name in node.input[:2] if name in weights] if node.op_type in ("Conv", "Gemm", "MatMul") else []
        if not found or used:
            at = next((owner[name] for name in used if name in owner), len(found))
        if at == len(found):
            found.append(Layer(node.name.rpartition("/")[0] or node.name, node.op_type, ()))
        owner |= dict.fromkeys(used, at)
        found[at] = replace(found[at], nodes=(*found[at].nodes, node.name))
    return found


@dataclass(frozen=True)
class Bound:
    """What an 8 bit graph must satisfy on validation images."""

    drop: float
    """Largest loss of accuracy in points."""
    apart: float
    """Largest difference of outputs (:func:`zoo.export._choose.difference`)."""

    def holds(self, drop: float, apart: float) -> bool:
        """Whether both are within the bound."""
        return drop <= self.drop + ROUNDING and apart <= self.apart


def repaired(job: Job, chosen: Chosen, tolerance: float) -> tuple[ModelProto, list[dict[str, Any]]]:
    """The graph of ``chosen``, with layers restored to float32 until the loss of accuracy on validation images is at most half of the allowed one.

    The outputs then differ by at most three quarters of ``tolerance``, which the check of the file allows.

    Returns:
        The graph, and for each restored layer its name, its individual SQNR and that of the network's output after restoring
        it as well.

    Raises:
        DisagreeError: the bound fails with half of the layers restored.
    """
    bound = Bound(MARGIN * job.max_drop, NEAR * tolerance)
    drop = _drop(chosen.accuracy, chosen)
    holds = bound.holds(drop, chosen.apart)
    if job.explain or not holds:
        job.ranked = ranked(job, chosen)
    if holds:
        return chosen.graph, []
    print_line(
        f"repair   int8 loses {drop:.2f} points on {chosen.facts['chosen_on']} (allowed {bound.drop:g}), outputs differ by "
        f"{chosen.apart:.2g} standard deviations (allowed {bound.apart:g})"
    )
    order = sorted(job.ranked, key=lambda layer: layer.sqnr)
    count, graph = _fewest(job, chosen, order, bound)
    print_line(f"repair   {count} of {len(order)} layers in float32: {', '.join(layer.name for layer in order[:count])}")
    return graph, _story(job, chosen, order[:count])


def further(job: Job, chosen: Chosen) -> Iterator[tuple[ModelProto, str]]:
    """Graphs with one more layer restored, then twice as many each time, up to :data:`MOST` of them, and what was restored.

    Used if the selecting images hide the loss, as memorised training images do. The number is then chosen on the test images, which the
    calibration records.
    """
    job.ranked = job.ranked or ranked(job, chosen)
    order = sorted(job.ranked, key=lambda layer: layer.sqnr)
    assert job.calibration is not None
    count, most = len(job.calibration.get("restored", [])), max(1, int(MOST * len(order)))
    while count < most:
        count = min(max(1, 2 * count), most)
        job.calibration |= {"restored": _story(job, chosen, order[:count]), "restored_on": "test images"}
        yield without(job, chosen, order[:count]), f"{count} of {len(order)} layers in float32"


def ranked(job: Job, chosen: Chosen) -> list[Layer]:
    """All layers in order, each with its individual SQNR."""
    images = chosen.images[: RANKING if job.subject.shape[-1] <= LARGE else RANKING // 8]
    exact = _quantise.outputs(job.exact, images)
    found = layers(job.exact)
    return [
        Layer(layer.name, layer.kind, layer.nodes, sqnr(exact, _quantise.outputs(_quantise.quantise(job.exact, chosen.ranges, layer.nodes), images)))
        for layer in counted(found, len(found), "repair   layers ranked")
    ]  # fmt: skip


def sqnr(exact: np.ndarray, got: np.ndarray) -> float:
    """Signal to quantisation noise ratio in dB: power of ``exact`` over that of the difference."""
    noise = float(np.square(exact.astype(np.float64) - got).sum())
    power = float(np.square(exact.astype(np.float64)).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(max(power, 1e-30) / noise))


def without(job: Job, chosen: Chosen, restored: Sequence[Layer]) -> ModelProto:
    """The 8 bit graph with these layers in float32."""
    kept = {name for layer in restored for name in layer.nodes}
    return _quantise.quantise(job.exact, chosen.ranges, [name for name in _graph.model_nodes(job.exact) if name not in kept])


def _fewest(job: Job, chosen: Chosen, order: Sequence[Layer], bound: Bound) -> tuple[int, ModelProto]:
    """The smallest number of first layers of ``order`` that satisfies the bound when restored, and the graph."""
    found: dict[int, ModelProto] = {}

    def holds(count: int) -> bool:
        graph = without(job, chosen, order[:count])
        answer = _quantise.outputs(graph, _cases.fed(np.asarray(chosen.val.images), job.exported))
        drop = _drop(float((answer.argmax(1) == chosen.val.targets).mean()), chosen)
        apart = difference(answer, chosen.exact, job.exported)
        print_line(
            f"repair   {count} of {len(order)} layers in float32: drop {drop:+.2f} points, outputs differ by {apart:.2g}"
        )
        found.update({count: graph} if bound.holds(drop, apart) else {})
        return count in found

    low, high, most = 0, 1, max(1, int(MOST * len(order)))
    while not holds(high):
        if high == most:
            raise DisagreeError(
                f"accuracy drops by {_drop(chosen.accuracy, chosen):.2f} points in int8, and outputs differ by {chosen.apart:.2g}, more "
                f"than {bound.drop:g} and {bound.apart:g} on {chosen.facts['chosen_on']} with {most} of {len(order)} layers in float32; raise "
                "--max-drop or use fp16; nothing published"
            )
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high, found[high]


def _story(job: Job, chosen: Chosen, restored: Sequence[Layer]) -> list[dict[str, Any]]:
    """The effect of each restored layer, cumulatively."""
    images = chosen.images[: RANKING if job.subject.shape[-1] <= LARGE else RANKING // 8]
    exact = _quantise.outputs(job.exact, images)
    rows = []
    for count, layer in enumerate(restored, 1):
        after = sqnr(exact, _quantise.outputs(without(job, chosen, restored[:count]), images))
        rows.append(
            {"layer": layer.name, "kind": layer.kind, "sqnr_alone": round(layer.sqnr, 2), "sqnr_after": round(after, 2)}
        )
    return rows


def _drop(accuracy: float, chosen: Chosen) -> float:
    """Loss against float32 on the validation images, in points."""
    return 100 * (chosen.reference - accuracy)
