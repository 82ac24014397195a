"""ONNX in 8 bits: static QDQ, activations unsigned, weights signed and per channel, calibrated on training images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnx import ModelProto

from zoo.export import _choose, _repair, onnx_fp32
from zoo.spec import TargetSpec

if TYPE_CHECKING:
    from zoo.export._job import Job

TARGET = TargetSpec(
    format="onnx",
    precision="int8",
    suffix=".int8.onnx",
    tolerance=2.0,
    needs=("onnx", "onnxscript", "onnxruntime"),
    calibrated=True,
)
"""The tolerance is loose, in standard deviations of the logits: it detects a broken graph. Accuracy decides whether 8 bits are enough."""

write, answer, publish = onnx_fp32.write, onnx_fp32.answer, onnx_fp32.publish


def make(job: Job) -> ModelProto:
    """The best 8 bit graph over methods of calibration, with its worst layers in float32 if needed."""
    job.chosen = chosen = _choose.choose(job)
    graph, restored = _repair.repaired(job, chosen, TARGET.tolerance)
    job.calibration = chosen.facts | ({"restored": restored} if restored else {})
    return graph


def others(job: Job) -> Iterator[tuple[ModelProto, str]]:
    """The graph with more and more layers in float32, for a model that loses too much on the test images only."""
    return _repair.further(job, job.chosen)
