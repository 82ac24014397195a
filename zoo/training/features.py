"""What is frozen while a run trains: said, proven unchanged, released at its epochs, and not computed more often than needed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from zoo.console import print_line
from zoo.errors import DisagreeError, UsageError
from zoo.recipe import Recipe
from zoo.spec import ModelSpec
from zoo.training import freezing, optim
from zoo.training.batches import Batches
from zoo.training.loop import autocast

if TYPE_CHECKING:
    from zoo.training.session import Trainer

FEATURE_BYTES = 2 << 30
"""Features up to this size are kept in memory."""


def optimizer(recipe: Recipe, model: nn.Module, spec: ModelSpec) -> torch.optim.Optimizer:
    """The optimizer over what is trained now."""
    o = recipe.optim
    return optim.make(
        model,
        name=o.name,
        lr=o.lr,
        momentum=o.momentum,
        nesterov=o.nesterov and o.momentum > 0,
        weight_decay=o.weight_decay,
        scales=optim.lr_scales(model, spec, head=o.lr_head, layer_decay=o.layer_decay),
    )


def tell(parts: Trainer) -> None:
    """Say what is frozen, part by part, if anything is."""
    table = parts.frozen
    first = next((epoch for epoch, selector in parts.plan if selector == table.selector), 0)
    if not table.names and not first:
        return
    since = f" from epoch {first + 1} on" if first else ""
    print_line(
        f"freeze   {table.selector}{since}: {table.frozen:,} parameters frozen, {table.trained:,} trained, "
        f"{table.held} BatchNorms held"
    )
    for name, frozen, trained, held, moving in table.rows:
        norms = f" · BatchNorms {held} held, {moving} moving" if held or moving else ""
        print_line(f"freeze     {name:16} {frozen:>12,} frozen {trained:>12,} trained{norms}")


def check(parts: Trainer, before: dict[str, str]) -> None:
    """DisagreeError naming the first frozen tensor whose values differ from those ``before`` training."""
    after = freezing.frozen_digest(parts.model, before)
    if moved := [name for name, digest in before.items() if after[name] != digest]:
        raise DisagreeError(f"frozen tensors changed in training ({len(moved)}, {moved[0]} first); report this as a bug of zoo")


def proven(parts: Trainer, before: dict[str, str]) -> dict[str, Any]:
    """:func:`check`, and what is said of it at the end: in one line, and for ``result.json``."""
    check(parts, before)
    size = sum(parameter.numel() for name, parameter in parts.model.named_parameters() if name in before)
    if before:
        print_line(f"frozen   {len(before)} tensors ({size:,} parameters) have the sha256 they had before training")
    return {"tensors": len(before), "parameters": size, "unchanged": True, "sha256": before}


def due(parts: Trainer, epoch: int) -> str | None:
    """What is to be frozen once ``epoch`` epochs are done, if it is less than now."""
    now = [selector for first, selector in parts.plan if first <= epoch]
    return now[-1] if now and now[-1] != parts.frozen.selector else None


def release(parts: Trainer, selector: str) -> None:
    """Freeze no more than ``selector`` from now on; what stays trained keeps its momentum.

    Raises:
        DisagreeError: what was frozen until now has changed.
    """
    check(parts, parts.proof)
    parts.frozen = freezing.unfreeze(parts.model, parts.frozen, selector, parts.spec)
    parts.proof = {name: parts.proof[name] for name in parts.frozen.names if name in parts.proof}
    made = optimizer(parts.recipe, parts.model, parts.spec)
    made.state.update(parts.step.optimizer.state)
    if isinstance(made, torch.optim.SGD) and parts.recipe.optim.momentum:
        for parameter in (p for group in made.param_groups for p in group["params"] if p not in made.state):
            # what torch begins with, written out: its fused step takes no group in which only some have a momentum
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    parts.step = replace(parts.step, optimizer=made)
    wrap(parts)


def wrap(parts: Trainer) -> None:
    """Set how the model is called in training, which goes by what is frozen now.

    Each shape is compiled for itself, so that a step has the same bits whatever shapes came before it.

    Raises:
        UsageError: ``compile`` with several processes, whose joint BatchNorm it would break up.
    """
    parts.wrapped = None  # the old wrapper's hooks go with it
    if parts.team.size > 1:
        if parts.recipe.compile:
            raise UsageError(f"compile = true is for one process (here {parts.team.size}); leave --compile out")
        parts.wrapped = parts.team.wrapped(parts.model.train())
    elif parts.recipe.compile:
        torch.compiler.reset()  # what earlier models left counts against the limit of recompilations, then all runs uncompiled
        parts.wrapped = cast(nn.Module, torch.compile(parts.model, dynamic=False))


def shorten(parts: Trainer) -> None:
    """Train on stored features where all before the head is frozen and gives the same in every epoch; say which way it goes.

    Otherwise the frozen part runs in every step. There autograd records and keeps nothing of it, as neither its inputs nor
    its parameters need a gradient; torch.no_grad around it made no step faster.
    """
    parts.tail, parts.batches = "", replace(parts.batches, features=None)
    if parts.val:
        parts.val = replace(parts.val, features=None)
    if not parts.frozen.names:
        return
    tail, why = _tail(parts)
    if not tail:
        print_line(f"freeze   the frozen part runs in every step: {why}")
        return
    began = time.monotonic()
    features = _features(parts, tail, parts.batches)
    parts.tail, parts.batches = tail, replace(parts.batches, features=features)
    images, size = len(features), _size(features)
    if parts.val:
        kept = _features(parts, tail, parts.val)
        parts.val = replace(parts.val, features=kept)
        images, size = images + len(kept), size + _size(kept)
    took = time.monotonic() - began
    print_line(
        f"freeze   the frozen part ran once: features of {images:,} images, {size / 1e6:,.1f} MB, {took:.1f} s, train {tail}"
    )


def _tail(parts: Trainer) -> tuple[str, str]:
    """The module to train on what the frozen part gives it, or an empty name and the reason why there is none."""
    recipe, frozen = parts.recipe, set(parts.frozen.names)
    if parts.team.size > 1:
        return "", "several processes train"
    if recipe.data.augment or recipe.mixup or recipe.cutmix:
        return "", "each epoch changes the images (data.augment, mixup, cutmix)"
    trained = [name for name, _ in (*parts.model.named_parameters(), *parts.model.named_buffers()) if name not in frozen]
    heads = [
        module
        for module in dict.fromkeys((parts.spec.new_head, parts.spec.head))
        if module and all(name.startswith(f"{module}.") for name in trained)
    ]
    why = "more than one head module is trained"
    for head in heads:
        if not (why := _fault(parts, head)):
            return head, ""
    return "", why


@torch.no_grad()
def _fault(parts: Trainer, head: str) -> str:
    """Why ``head`` cannot be trained on stored features; empty if it can. One batch is tried."""
    model, inputs = parts.model, next(_in_order(parts.batches).epoch(0))[0]
    with torch.random.fork_rng(), autocast(parts.device, parts.precision):
        first, second = (_before(model.train(), head, inputs) for _ in range(2))
        last = _before(model.eval(), head, inputs)
        if first is None or second is None or last is None:
            return f"{head} is not called once with one tensor"
        if not (torch.equal(first, second) and torch.equal(first, last)):
            return "it draws at random (dropout)"
        if not torch.equal(model.get_submodule(head)(last.clone()), model(inputs)):
            return f"{head} is not the last layer"
    need = _size(first) / len(first) * (len(parts.batches.index) + (len(parts.val.index) if parts.val else 0))
    return f"its features would take {need / 1e9:.1f} GB" if need > FEATURE_BYTES else ""


@torch.no_grad()
def _features(parts: Trainer, head: str, batches: Batches) -> Tensor:
    """What ``head`` is given for each image of ``batches.index``, in that order, on the device."""
    model = parts.model.eval()
    found = []
    with autocast(parts.device, parts.precision):
        for inputs, *_ in _in_order(batches).epoch(0):
            found.append(_before(model, head, inputs))
    return torch.cat([part for part in found if part is not None])


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


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
