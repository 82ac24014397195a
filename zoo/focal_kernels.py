"""Which compiled libraries the focal loss has, and whether tensors of a call can be passed to them by address."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

PLAIN = (Tensor, torch.nn.Parameter)
SINGLE, DOUBLE = (torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64))
"""Patterns of a loss: ``torch.empty_like`` takes half the time of ``torch.empty`` with a shape and a type."""

# looked up once: a small call spends most of its time in Python
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_interpreter = torch._C._functorch.peek_interpreter_stack
_gathered: set[torch._ops.OpOverload] = set()


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside torch.func's wrappers, with all its batches."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def is_memory(tensor: Tensor) -> bool:
    """Whether it is a plain strided tensor: not a subclass, a lazy tensor or a wrapper."""
    return (
        type(tensor) in PLAIN
        and tensor.layout is torch.strided
        and not (tensor.is_neg() or tensor._is_zerotensor() or tensor.is_meta or torch._is_functional_tensor(tensor))
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def is_watched() -> bool:
    """Whether a mode, tracer or transform must see the op, or forward mode may need its derivative."""
    return (
        _dispatch_modes() != 0 or _tracing_state() is not None or _interpreter() is not None or forward_ad._current_level >= 0
    )


def transforms_active() -> bool:
    """Whether a transform of torch.func or forward mode is active while a graph is traced."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


# evaluated while tracing: torch.compiler.assume_constant_result without its import of torch._dynamo, which takes seconds
transforms_active._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _version(tensor: Tensor | None) -> int:
    """The number of changes in place; tensors of inference mode have none."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def versions(logits: Tensor, call: Any) -> tuple[int, ...]:
    """Of logits, target, weight, other labels and their share, the latter at places 1, 2, 8 and 9 of a call."""
    target, weight = call[1], call[2]
    if len(call) < 10:
        try:  # most calls: without a question per tensor
            return logits._version, target._version, 0 if weight is None else weight._version
        except RuntimeError:  # a tensor of inference mode
            return logits._version, _version(target), _version(weight)
    return logits._version, *(_version(each) for each in (target, weight, call[8], call[9]))


def _load(name: str) -> ModuleType | None:
    """A compiled library of zoo, or None if it was not built."""
    try:
        return importlib.import_module(f"zoo.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"zoo.{name}":
            raise
    return None


def load_all() -> tuple[ModuleType | None, ModuleType | None, str]:
    try:
        return _load("_C"), _load("_C_cuda") if torch.version.cuda else None, ""
    except ImportError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        return (
            None,
            None,
            f"zoo's compiled extension cannot be loaded ({first}); rebuild it: pip install -e . (or delete zoo/_C*)",
        )


def reason_missing() -> str:
    """Why there is no compiled library, as recorded by the build."""
    record = Path(__file__).with_name("_build.json")
    if not record.is_file():
        return "extension not built: pip install ."
    reasons = json.loads(record.read_text(encoding="utf-8")).get("reasons", {})
    return reasons.get("_C") or reasons.get("all") or "extension not built: pip install ."


def gather_dtensors(op: torch._ops.OpOverload, tensor: Tensor) -> None:
    """Let DTensors reach the op: each process computes all rows, gathered where they are sharded.

    The mean over rows that are not ignored differs from the mean of the shards' means; so does the mean modulating factor.
    """
    if type(tensor).__module__.startswith("torch.distributed.tensor") and op not in _gathered:
        from torch.distributed.tensor import Replicate
        from torch.distributed.tensor.experimental import register_sharding

        def placements(*args: object) -> list[tuple[list[Replicate], list[Replicate | None]]]:
            inputs = [None if each is None or isinstance(each, (int, float)) else Replicate() for each in args]
            return [([Replicate()] * len(op._schema.returns), inputs)]

        register_sharding(op)(placements)
        _gathered.add(op)
