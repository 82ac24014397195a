"""Features of the frozen layers of a model, computed once per image if that does not change the result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.console import counted, print_line
from zoo.training import feature_runtimes
from zoo.training.batches import Batches
from zoo.training.feature_cache import FeatureCache, digest, image_key
from zoo.training.loop import autocast

MAX_BYTES = 2 << 30
"""Largest size of features in memory."""
CHUNK_BATCHES = 16
"""Batches between two writes of features, so that an interrupted run keeps them."""
TRIED = 8
"""Stored features that are compared with the network's."""
CHANGING = "each epoch changes the images (data.augment, mixup, cutmix); data.views=4 stores four views of each image"
"""Why features are not stored."""


def stored(
    model: nn.Module, heads: Sequence[str], frozen: Sequence[str], batches: Batches, val: Batches | None,
    *, precision: str, name: str, obstacle: str = "", runtime: str = "torch",
) -> tuple[str, Batches, Batches | None]:  # fmt: skip
    """The head that can be trained on stored features, and the training and validation batches with these features.

    Without such a head its name is empty and the batches hold images: the frozen layers run in every step. Autograd records
    nothing for them, as neither their inputs nor their parameters need a gradient; torch.no_grad made no step faster.
    ``name`` is the model's. ``obstacle`` is a reason known beforehand. ``runtime`` computes the features. The decision is printed.

    Raises:
        UsageError: the runtime is not installed. DisagreeError: its features differ from PyTorch's.
    """
    batches, val = replace(batches, features=None), replace(val, features=None) if val else None
    if not frozen:
        return "", batches, val
    head, images = "", len(batches.index) + (len(val.index) if val else 0)
    views = max(batches.views, 1) if batches.augment else 1
    if not obstacle:
        needed = images + len(batches.index) * (views - 1)
        head, obstacle = trainable_head(model, heads, set(frozen), batches, images=needed, precision=precision)
    if not head:
        print_line(f"freeze   frozen layers run in every step: {obstacle}")
        return "", batches, val
    began = time.monotonic()
    print_line(
        f"freeze   frozen layers run once for {images:,} images"
        + (f", {views} augmented views of each training image" if views > 1 else "")
    )
    run = _runner(runtime, model, head, batches, precision)
    cache = FeatureCache.read(_part(model, name, head, batches, precision, runtime))
    batches = replace(batches, features=compute(run, batches, cache, views))
    val = replace(val, features=compute(run, val, cache)) if val else None
    size = sum(part.features.nbytes for part in (batches, val) if part and part.features is not None) / 1e6
    known = f" ({cache.computed:,} computed, the others stored)" if cache.computed < len(cache.rows) else ""
    print_line(
        f"freeze   frozen layers ran once: features of {images:,} images{known}, {size:,.1f} MB, "
        f"{time.monotonic() - began:.1f} s, train {head}"
    )
    return head, batches, val


def _runner(runtime: str, model: nn.Module, head: str, batches: Batches, precision: str) -> Callable[[Tensor], Tensor]:
    """A function from images (N, 3, H, W) to the input of ``head``."""

    def eager(inputs: Tensor) -> Tensor:
        with torch.no_grad(), autocast(batches.device, precision):
            found = _before(model.eval(), head, inputs)
        assert found is not None, "trainable_head tries one batch first"
        return found

    if runtime == "torch":
        return eager
    inputs = next(_in_order(batches).epoch(0)).inputs
    other = feature_runtimes.runner(runtime, model, head, inputs)
    print_line(f"freeze   {feature_runtimes.check(runtime, other(inputs), eager(inputs))}")
    return other


def _part(model: nn.Module, name: str, head: str, batches: Batches, precision: str, runtime: str) -> str:
    """The digest of what features depend on, except the images and the code of the model, which :func:`compute` tests."""
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{head}.")}
    settings = {
        "head": head, "model": name, "mean": batches.mean, "std": batches.std, "size": batches.size,
        "precision": precision, "device": batches.device.type, "torch": torch.__version__, "threads": torch.get_num_threads(), "runtime": runtime,
    }  # fmt: skip
    return digest(tensors, settings)


def trainable_head(
    model: nn.Module, heads: Sequence[str], frozen: Collection[str], batches: Batches, *, images: int, precision: str
) -> tuple[str, str]:
    """The module that can be trained on stored features, or an empty name and the reason why there is none.

    ``heads`` are the candidates, ``frozen`` the names of the frozen parameters and buffers, ``images`` the number of images
    that need features. One batch of ``batches`` is tried.
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


def compute(run: Callable[[Tensor], Tensor], batches: Batches, cache: FeatureCache, views: int = 1) -> Tensor:
    """Output of ``run`` for each view of each image of ``batches.index``, in that order, on the device: (views, n, ...).

    Stored features are read from ``cache``; the others are added to it. If some stored ones differ from those computed now (the code
    of the network has changed, but not its weights), all are computed again. Progress is printed.
    """
    ops = tuple(batches.augment or ())
    per_view = []
    for view in range(views):
        draws = batches.view_draws(view) if ops else np.zeros((len(batches.index), 0), np.float32)
        keys = _keys(batches, draws, ops)
        if view == 0 and not _reproduced(run, batches, cache, keys, draws):
            print_line("freeze   the stored features are of another version of the network: they are computed again")
            cache.clear()
        rows = cache.missing(keys)
        chunks = [rows[start : start + batches.batch_size] for start in range(0, len(rows), batches.batch_size)]
        words = "freeze   features of" + (f" view {view + 1} of {views}," if views > 1 else "")
        for number, chunk in enumerate(counted(chunks, len(rows), words, batches.batch_size), 1):
            cache.add([keys[row] for row in chunk], run(batches.inputs(batches.index[chunk], draws[chunk])))
            if number % CHUNK_BATCHES == 0:
                cache.write()
        cache.write()
        per_view.append(cache.get(keys))
    return torch.stack(per_view).to(batches.device)


def _reproduced(
    run: Callable[[Tensor], Tensor], batches: Batches, cache: FeatureCache, keys: Sequence[int], draws: np.ndarray
) -> bool:
    """Whether the first stored features of images with these ``keys`` are those of ``run``, up to rounding."""
    rows = [row for row, key in enumerate(keys) if key in cache.rows][:TRIED]
    if not rows:
        return True
    found, known = run(batches.inputs(batches.index[rows], draws[rows])).cpu(), cache.get([keys[row] for row in rows])
    allowed = feature_runtimes.TOLERANCE * (1 if batches.dtype == torch.float32 else 10)
    return found.shape == known.shape and bool((found - known).abs().max() <= allowed * known.abs().max())


def _keys(batches: Batches, draws: np.ndarray, ops: Sequence[str]) -> list[int]:
    """The key of each image of ``batches.index`` with its draws (n, K); pixels are read batch by batch."""
    found = []
    for start in range(0, len(draws), batches.batch_size):
        rows = slice(start, start + batches.batch_size)
        pixels = batches.split.images[batches.index[rows]]
        found += [image_key(image, drawn, ops) for image, drawn in zip(pixels, draws[rows], strict=True)]
    return found


@torch.no_grad()
def _obstacle(model: nn.Module, head: str, inputs: Tensor, images: int, precision: str) -> str:
    """Why ``head`` cannot be trained on stored features; empty if it can."""
    with torch.random.fork_rng(), autocast(inputs.device, precision):
        first, second = (_before(model.train(), head, inputs) for _ in range(2))
        last = _before(model.eval(), head, inputs)
        if first is None or second is None or last is None:
            return f"{head} is not called once with one tensor"
        if not (torch.equal(first, second) and torch.equal(first, last)):
            return "the frozen layers compute differently in training (dropout, qat)"
        if not torch.equal(model.get_submodule(head)(last.clone()), model(inputs)):
            return f"{head} is not the last layer"
    need = first.nbytes / len(first) * images
    return f"its features would take {need / 1e9:.1f} GB" if need > MAX_BYTES else ""


def _in_order(batches: Batches) -> Batches:
    return replace(batches, augment=None, sample=None, features=None)


class _Enough(Exception):
    """Ends a forward pass."""


def _before(model: nn.Module, head: str, inputs: Tensor) -> Tensor | None:
    """Input of the module ``head`` when the model is called; neither it nor later layers run."""
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
