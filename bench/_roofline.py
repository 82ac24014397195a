"""Share of the machine's limits that a model reaches: its multiply-accumulates against a matrix product and a copy measured here.

The roofline of Williams, Waterman and Patterson (2009, CACM 52:4): no program is faster than min(peak, intensity * bandwidth).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from zoo.console import print_line
from zoo.export import _shortcut
from zoo.export._session import reason

SECONDS = 0.15
"""Seconds for measuring one limit at one size."""
LONGEST = 1.0
"""Seconds that one matrix product may take."""
SIZES = {"cpu": (256, 768, 2048), "cuda": (4096, 8192)}
"""Sides of the square matrices; the best of them is the peak."""
LARGE = 1024
"""Numbers in a tensor that is a weight, not a shape."""
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Work:
    """Of one sample: multiply-accumulates, and the least memory traffic: bytes in and out, and the weights once."""

    macs: int
    sample_bytes: int
    weights: int
    """Their number; a program in another precision reads each in that precision's width."""

    def moved(self, batch: int, precision: str) -> int:
        """Least number of bytes for a batch."""
        return self.weights * _BYTES[precision] + batch * self.sample_bytes


def known(path: Path) -> Work | None:
    """:func:`work`, or None, with a message, for a graph whose shapes onnx cannot infer."""
    try:
        return work(path)
    except Exception as error:  # onnx raises many types
        print_line(f"roofline skipped ({path.name}, {reason(error)})")
        return None


def work(path: Path) -> Work:
    """Counted from the graph of an ONNX file: Conv, Gemm and MatMul, by the shapes that onnx infers.

    Raises:
        ValueError: a shape that cannot be inferred.
    """
    model = onnx.load(path)
    weights = sum(prod(tensor.dims) for tensor in model.graph.initializer)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) > LARGE:
            tensor.ClearField("raw_data")  # only shapes are needed, and inference copies all bytes several times
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in [*graph.value_info, *graph.input, *graph.output]}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    total = sum(_macs(node, shapes) for node in graph.node)
    ends = [graph.input[0], graph.output[0]]
    sample = sum(prod(_shape(end)[1:]) * _width(end.type.tensor_type.elem_type) for end in ends)
    return Work(total, sample, weights)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Free dimensions, that of the batch above all, count 1."""
    return tuple(max(1, axis.dim_value) for axis in value.type.tensor_type.shape.dim)


def _width(kind: int) -> int:
    return helper.tensor_dtype_to_np_dtype(kind).itemsize


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.name.startswith(_shortcut.NAME):
        return 0
    first, second, out = (shapes.get(name, ()) for name in (node.input[0], node.input[1], node.output[0]))
    if not (first and second and out):
        raise ValueError(f"no shape for {node.op_type} {node.name}")
    if node.op_type == "Conv":
        return prod(out) * prod(second[1:])  # (out, in / groups, kernel...)
    across = any(entry.name == "transA" and entry.i for entry in node.attribute)
    return prod(out) * first[0 if across else -1]


def flops(precision: str, device: torch.device, threads: int) -> float:
    """Operations (two per multiply-accumulate) per second of the best matrix product of this precision."""
    if precision == "int8":
        return max((_best(call, device) for call in _int8_products(device, threads)), default=float("nan"))
    found = 0.0
    for side in SIZES[device.type]:
        if found and 2 * side**3 / found > LONGEST:  # a type without matrix instructions, where a small product shows the limit
            break
        a = torch.ones(side, side, dtype=_DTYPES[precision], device=device)
        b, out = torch.ones_like(a), torch.empty_like(a)
        found = max(found, _best((2 * side**3, partial(torch.mm, a, b, out=out)), device))
    return found


def _int8_products(device: torch.device, threads: int) -> list[tuple[int, Callable[[], Any]]]:
    """onnxruntime's product of unsigned and signed bytes; PyTorch has none for the CPU that uses its instructions."""
    if device.type != "cpu":
        return []
    from zoo.export import _session

    side = SIZES["cpu"][-1]
    ends = [helper.make_tensor_value_info("a", TensorProto.UINT8, [side, side])]
    out = [helper.make_tensor_value_info("y", TensorProto.INT32, [side, side])]
    weight = onnx.numpy_helper.from_array(np.ones((side, side), np.int8), "b")
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["y"])], "product", ends, out, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = _session.open_session(model.SerializeToString(), threads=threads)
    feed = {"a": np.ones((side, side), np.uint8)}
    return [(2 * side**3, lambda: session.run(None, feed))]


def bandwidth(size: int, device: torch.device) -> float:
    """Bytes per second of a copy that reads and writes ``size`` bytes in total, as many as a model moves."""
    half = min(max(size // 2, 1 << 20), 1 << 29)
    a = torch.ones(half, dtype=torch.uint8, device=device)
    out = torch.empty_like(a)
    return _best((2 * half, lambda: out.copy_(a)), device)


def _best(job: tuple[int, Callable[[], Any]], device: torch.device) -> float:
    """Units per second in the fastest call within :data:`SECONDS`: a limit is the best measured value."""
    units, call = job
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    call()
    wait()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        call()
        wait()
        best = min(best, time.perf_counter() - start)
    return units / best


@dataclass(frozen=True)
class Limits:
    """Limits for one batch: operations per second by precision, and bytes per second."""

    flops: dict[str, float]
    bandwidth: float

    def merged(self, other: Limits) -> Limits:
        """The higher of each."""
        return Limits(
            {key: max(value, other.flops[key]) for key, value in self.flops.items()}, max(self.bandwidth, other.bandwidth)
        )

    def place(self, model: Work, precision: str, batch: int, seconds: float) -> tuple[float, float, str]:
        """GFLOP/s of a call that took ``seconds``, its share of the roofline, and the binding limit."""
        done = 2 * model.macs * batch
        by_compute, by_copy = done / self.flops[precision], model.moved(batch, precision) / self.bandwidth
        bound = "copy" if by_copy > by_compute else "compute"
        return done / seconds / 1e9, max(by_compute, by_copy) / seconds, bound


def limits(model: Work, precisions: set[str], device: torch.device, threads: int, batch: int) -> Limits:
    """Measure; call it before and after the contenders and use the higher values (:meth:`Limits.merged`)."""
    return Limits(
        {each: flops(each, device, threads) for each in sorted(precisions)}, bandwidth(model.moved(batch, "fp32"), device)
    )
