"""The check of every exported file: agreement with PyTorch on real, saturated and constant images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.console import counted, print_line
from zoo.export import _external

MANY = 64
BATCHES = (1, 2, 7, MANY)
ROUNDS = 3
"""All images of a case are run :data:`MANY` at a time, then its first ones this many times at each smaller one of :data:`BATCHES`."""
CALIBRATED = 0.99
"""Share of the images that must be within the tolerance if ranges are calibrated: a rare image exceeds them and is clipped."""

Answer = Callable[[np.ndarray], np.ndarray]
"""Images (N, H, W, 3) uint8 to outputs (N, classes)."""


@dataclass(frozen=True)
class Case:
    """Images (N, H, W, 3) uint8 and their reference computation; only ``counted`` ones enter n/N."""

    images: np.ndarray
    truth: Answer
    counted: bool = True

    @cached_property
    def expected(self) -> np.ndarray:
        """(N, classes) of all images, computed once for all files that are compared."""
        parts = counted(_slices(len(self.images), MANY), len(self.images), "parity   PyTorch", MANY)
        return np.concatenate([self.truth(self.images[at]) for at in parts])


@dataclass(frozen=True)
class Parity:
    """Comparison of a file with PyTorch."""

    n: int
    """Images counted."""
    agree: int
    """Those of them with the same class."""
    ties: int
    """Images, of all, with another class, where PyTorch's two best outputs differ by less than the tolerance."""
    wrong: int
    """Images, of all, with another class and no tie."""
    max_abs: float
    """Largest |difference| of an output over all images, divided by ``scale``; infinite if one is not finite."""
    scale: float
    """Standard deviation of PyTorch's logits over all images and classes; 1 for probabilities."""
    worst: np.ndarray
    """The image or images (at most 2) with that difference."""
    outputs: np.ndarray
    """(n, classes): what the file returns for the counted images; fewer rows if one has another shape."""
    tolerance: float
    far: int
    """Images beyond the tolerance, each alone or in whole batches of 64."""
    holds: bool
    """Whether the outputs of enough images are within the tolerance. If all are, no class is wrong: two outputs that change order differed by less than twice the tolerance, which is a tie."""
    batches: tuple[int, ...]
    """Batch sizes of which the images fill at least one."""

    def as_dict(self) -> dict[str, object]:
        """The numbers."""
        return {key: value for key, value in vars(self).items() if key not in ("worst", "outputs")}


def check(
    cases: Sequence[Case], candidate: Answer, *, tolerance: float, probabilities: bool = False, share: float = 1.0
) -> Parity:
    """Run ``candidate`` on all images, at each of :data:`BATCHES`, against each case's reference.

    A ``share`` of the images must be within the tolerance, the same ones at every batch size, and every output finite.
    """
    own, made = (sum(len(case.images) for case in cases if case.counted is real) for real in (True, False))
    beside = f" and {made} edge cases" if made else ""
    print_line(f"parity   {own:,} images{beside}, at batch {', '.join(map(str, BATCHES[:-1]))} and {MANY}")
    truths = [case.expected for case in cases]
    unit = scale(np.concatenate(truths), probabilities=probabilities)
    agree, ties, wrong, largest, worst, far, broken = 0, 0, 0, 0.0, cases[0].images[:2], 0, False
    outputs: list[np.ndarray] = []
    for case, truth in zip(cases, truths):
        all_of_it = _slices(len(truth), MANY)
        turns = [*all_of_it, *(at for size in BATCHES[:-1] for at in _slices(min(len(truth), size * ROUNDS), size))]
        total = sum(at.stop - at.start for at in turns)
        beyond = np.zeros(len(truth), bool)
        for number, at in enumerate(counted(turns, total, "parity   exported file", lambda at: at.stop - at.start)):
            wanted, got = truth[at].astype(np.float64), candidate(case.images[at]).astype(np.float64)
            apart = np.full(len(wanted), np.inf) if got.shape != wanted.shape else np.abs(got - wanted).max(1) / unit
            apart = np.where(np.isfinite(apart), apart, np.inf)
            if number < len(all_of_it):
                beyond[at] = apart > tolerance
            broken |= bool(np.isinf(apart).any() or ((apart > tolerance) & ~beyond[at]).any())
            if apart.max() > largest:
                largest, worst = float(apart.max()), case.images[at][apart.argmax() :][:2]
            if number < len(all_of_it) and got.shape == wanted.shape:
                outputs += [got] if case.counted else []
                differ = got.argmax(1) != wanted.argmax(1)
                best = np.sort(wanted, 1)[:, -2:]
                undecided = differ & ((best[:, -1] - best[:, 0]) / unit <= 2 * tolerance)
                agree += int((~differ).sum()) if case.counted else 0
                ties, wrong = ties + int(undecided.sum()), wrong + int((differ & ~undecided).sum())
        far += int(beyond.sum())
    holds = not broken and far <= (1 - share) * (own + made)
    seen = np.concatenate(outputs or [np.zeros((0, 0))])
    longest = max(len(truth) for truth in truths)
    batches = tuple(size for size in BATCHES if size <= longest)
    return Parity(own, agree, ties, wrong, largest, unit, worst, seen, tolerance, far, holds, batches)


def words(agree: int, n: int, max_abs: float, *, probabilities: bool) -> str:
    """The result of a comparison; "sd" are standard deviations of PyTorch's logits."""
    unit = "" if probabilities else " sd"
    return f"{agree:,}/{n:,} classes, max |difference| {max_abs:.1e}{unit}"


def scale(exact: np.ndarray, *, probabilities: bool) -> float:
    """Unit of differences: the standard deviation of PyTorch's logits (N, classes); 1 for probabilities."""
    return 1.0 if probabilities else max(float(exact.std(dtype=np.float64)), 1e-12)


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def first_difference(graph: ModelProto, fed: np.ndarray, model: nn.Module, inputs: Tensor, tolerance: float) -> str:
    """The first node whose output, like that of all later nodes, matches no operation of ``model``.

    All nodes are made outputs and run without onnxruntime's optimisations; each is compared with every operation's output
    of its shape. Nodes that the exporter fused or added have no counterpart, but a later node has one if they are right.

    Args:
        fed: inputs of the graph. inputs: the same images as inputs of ``model``.
    """
    probe = ModelProto()
    probe.CopyFrom(graph)
    names = [name for node in graph.graph.node for name in node.output if name]
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = _external.session(probe, optimise=False)
    values = dict(zip(names, session.run(names, {session.get_inputs()[0].name: fed})))
    with torch.no_grad(), _Keep() as kept:
        model(inputs)
    known = [inputs.numpy(), *kept.found]
    right: set[str] = set()
    for node in reversed(graph.graph.node):
        if any(name in right or _is_one_of(values[name], known, tolerance) for name in node.output if name):
            right.update([*node.input, *node.output])
    for node in graph.graph.node:
        value = values[node.output[0]]
        if node.output[0] not in right and value.dtype.kind == "f" and value.ndim > 1:
            return f"{node.name} ({node.op_type}){_module(model, node.name)}"
    return "none: the difference depends on the batch size or on onnxruntime's optimisations"


def _module(model: nn.Module, node: str) -> str:
    """The PyTorch module of a node, ``, in module layer1.0.conv1: Conv2d``; empty if its name has none."""
    path = node.rpartition("/")[0]
    owner = dict(model.named_modules()).get(path) if path else None
    return f", in module {path}: {type(owner).__name__}" if owner is not None else ""


class _Keep(TorchDispatchMode):
    """Keeps a copy of each operation's output, which a later in-place ReLU would change."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[np.ndarray] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.found.append(output.numpy().copy())
        return output


def _is_one_of(value: np.ndarray, known: Sequence[np.ndarray], tolerance: float) -> bool:
    return value.dtype.kind == "f" and any(
        value.shape == other.shape and np.abs(value - other).max() <= tolerance * np.abs(other).max() for other in known
    )
