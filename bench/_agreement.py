"""Agreement of contenders, checked before timing, and their accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.bench import _memory
from zoo.bench._contenders import Call, Contender, Ready
from zoo.console import print_line
from zoo.errors import DisagreeError


@dataclass(frozen=True)
class Found:
    """A contender whose outputs for a batch agree, with time and memory of its first run."""

    contender: Contender
    ready: Ready
    first_ms: float
    peak_mb: float
    difference: float


def agreeing(
    contenders: Sequence[Contender], inputs: Tensor, truth: Tensor | None, kept: dict[str, float], device: torch.device
) -> dict[str, Found]:
    """Each contender that can run, with its outputs checked against ``truth`` (None: those of the first, eager float32) before timing.

    ``kept`` is the memory of each contender, and is updated.
    """
    found: dict[str, Found] = {}
    for each in contenders:
        start = time.perf_counter()
        try:
            (ready, answer), peak, stays = _memory.used(lambda each=each: _first(each, inputs), device)  # type: ignore[misc]
        except Exception as error:
            if not each.may_fail:
                raise
            why = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
            print_line(f"skipped  {each.name}: {why}")
            continue
        spent = (time.perf_counter() - start) * 1e3
        if ready.tune:
            ready = ready.tune()
            answer = _answer(ready)
        truth = answer if truth is None else truth
        worst = _difference(answer, truth)
        if not worst <= each.tolerance:  # also when it is nan
            raise DisagreeError(
                f"{each.name} and {contenders[0].name if each is not contenders[0] else 'the unoptimised graph'} disagree (batch "
                f"{len(inputs)}, largest difference {worst:.2g}, allowed {each.tolerance:.2g}); no results written. If the model "
                "changed, export again: zoo export --onnx --force"
            )
        found[each.name] = Found(each, ready, spent, kept.get(each.name, 0.0) + peak, worst)
        kept[each.name] = kept.get(each.name, 0.0) + stays
    return found


def _first(contender: Contender, inputs: Tensor) -> tuple[Ready, Tensor]:
    ready = contender.prepare(inputs)
    answer = _answer(ready)
    if ready.resident and not _difference(torch.as_tensor(ready.resident()).float().cpu(), answer) <= 1e-5:
        raise DisagreeError(
            f"{contender.name} disagrees when its data stay on the GPU (batch {len(inputs)}); no results written"
        )
    return ready, answer


def _answer(ready: Ready) -> Tensor:
    return torch.as_tensor(ready.call()).float().cpu().clone()


def _difference(answer: Tensor, truth: Tensor) -> float:
    """Largest difference of logits, relative to the largest logit (at least 1)."""
    if answer.shape != truth.shape:
        return math.inf
    return float((answer - truth).abs().max()) / max(1.0, float(truth.abs().max()))


def correct(call: Call, inputs: Tensor, images: Tensor, targets: Tensor) -> tuple[int, int]:
    """Numbers of correctly classified ``images`` by the call, which reads ``inputs``, and of all."""
    right = 0
    for start in range(0, len(images), len(inputs)):
        part = images[start : start + len(inputs)]
        inputs[: len(part)] = part
        answer = np.asarray(torch.as_tensor(call()).float().cpu())[: len(part)].reshape(len(part), -1).argmax(1)
        right += int((answer == targets[start : start + len(part)].numpy()).sum())
    return right, len(images)
