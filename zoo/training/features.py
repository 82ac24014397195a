"""What the frozen part of a model gives its head for each image: computed once and kept, where that changes no result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.console import print_line
from zoo.training.batches import Batches
from zoo.training.loop import autocast

MAX_BYTES = 2 << 30
"""Features up to this size are kept in memory."""


def stored(
    model: nn.Module, heads: Sequence[str], frozen: Sequence[str], batches: Batches, val: Batches | None,
    *, precision: str, obstacle: str = "",
) -> tuple[str, Batches, Batches | None]:  # fmt: skip
    """The head that can be trained on stored features, and the training and validation batches that hold them.

    Without such a head its name is empty and the batches hold images: the frozen part runs in every step. There autograd
    records and keeps nothing of it, as neither its inputs nor its parameters need a gradient; torch.no_grad around it made
    no step faster. ``obstacle`` is a reason known beforehand. Which way was taken is printed.
    """
    batches, val = replace(batches, features=None), replace(val, features=None) if val else None
    if not frozen:
        return "", batches, val
    head, images = "", len(batches.index) + (len(val.index) if val else 0)
    if not obstacle:
        head, obstacle = trainable_head(model, heads, set(frozen), batches, images=images, precision=precision)
    if not head:
        print_line(f"freeze   the frozen part runs in every step: {obstacle}")
        return "", batches, val
    began = time.monotonic()
    batches = replace(batches, features=compute(model, head, batches, precision))
    val = replace(val, features=compute(model, head, val, precision)) if val else None
    size = sum(part.features.nbytes for part in (batches, val) if part and part.features is not None) / 1e6
    print_line(
        f"freeze   the frozen part ran once: features of {images:,} images, {size:,.1f} MB, "
        f"{time.monotonic() - began:.1f} s, train {head}"
    )
    return head, batches, val


def trainable_head(
    model: nn.Module, heads: Sequence[str], frozen: Collection[str], batches: Batches, *, images: int, precision: str
) -> tuple[str, str]:
    """The module that can be trained on stored features, or an empty name and the reason why there is none.

    ``heads`` are the candidates, ``frozen`` the names of the frozen parameters and buffers, ``images`` how many images need
    features. One batch of ``batches`` is tried.
    """
    named = (*model.named_parameters(), *model.named_buffers())
    trained = [name for name, _ in named if name not in frozen]
    why = "more than one head module is trained"
    for head in dict.fromkeys(heads):
        if head and all(name.startswith(f"{head}.") for name in trained):
            why = _obstacle(model, head, next(_in_order(batches).epoch(0)).inputs, images, precision)
            if not why:
                return head, ""
    return "", why


@torch.no_grad()
def compute(model: nn.Module, head: str, batches: Batches, precision: str) -> Tensor:
    """What ``head`` receives for each image of ``batches.index``, in that order, on the device: (n, ...)."""
    model.eval()
    found = []
    with autocast(batches.device, precision):
        for batch in _in_order(batches).epoch(0):
            found.append(_before(model, head, batch.inputs))
    return torch.cat([part for part in found if part is not None])


@torch.no_grad()
def _obstacle(model: nn.Module, head: str, inputs: Tensor, images: int, precision: str) -> str:
    """Why ``head`` cannot be trained on stored features; empty if it can."""
    with torch.random.fork_rng(), autocast(inputs.device, precision):
        first, second = (_before(model.train(), head, inputs) for _ in range(2))
        last = _before(model.eval(), head, inputs)
        if first is None or second is None or last is None:
            return f"{head} is not called once with one tensor"
        if not (torch.equal(first, second) and torch.equal(first, last)):
            return "it draws at random (dropout)"
        if not torch.equal(model.get_submodule(head)(last.clone()), model(inputs)):
            return f"{head} is not the last layer"
    need = first.nbytes / len(first) * images
    return f"its features would take {need / 1e9:.1f} GB" if need > MAX_BYTES else ""


def _in_order(batches: Batches) -> Batches:
    return replace(batches, augment=None, sample=None)


class _Enough(Exception):
    """Ends a forward pass."""


def _before(model: nn.Module, head: str, inputs: Tensor) -> Tensor | None:
    """What the module ``head`` is given when the model is called; it and what follows do not run."""
    caught: list[Any] = []

    def take(module: nn.Module, given: tuple[Any, ...]) -> None:
        caught.extend(given)
        raise _Enough

    handle = model.get_submodule(head).register_forward_pre_hook(take)
    try:
        with contextlib.suppress(_Enough):
            model(inputs)
    finally:
        handle.remove()
    return caught[0] if len(caught) == 1 and isinstance(caught[0], Tensor) else None
