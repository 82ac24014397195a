"""Batches of a run: samples, order and augmentation are a function of (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo import sampling
from zoo.data import _augment
from zoo.spec import Split

RESIDENT_BYTES = 8 << 30
"""Image sets up to this size are copied to the GPU as a whole."""
COPIED = 1024
"""Images that are copied at a time."""


class Batch(NamedTuple):
    """Input of one step."""

    inputs: Tensor
    """(N, 3, H, W), or features of frozen layers; fewer rows if several processes share a batch."""
    targets: Tensor
    """(N,)"""
    chosen: np.ndarray
    """(N,) positions in the split."""
    draws: np.ndarray
    """(N, K) uniform random numbers in [0, 1)."""
    partners: tuple[Tensor, Tensor] | None = None
    """Inputs (N, 3, H, W) and targets (N,) that mixup and cutmix blend in; None: the batch's own."""


@dataclass(frozen=True)
class Batches:
    """Augmented batches of one split, on the device.

    ``index`` are the positions in ``split`` that are used, e.g. a long-tailed subset. With ``augment=None`` the samples
    come in order and are only normalised.
    """

    split: Split
    index: np.ndarray
    batch_size: int
    device: torch.device
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    """Height and width of the network's input, in pixels."""
    dtype: torch.dtype = torch.float32
    seed: int = 0
    augment: Sequence[str] | None = None
    sample: Callable[[int], np.ndarray] | None = None
    """Positions in the split in the order of an epoch; without it, each of ``index`` once, shuffled."""
    share: Callable[[int], slice] | None = None
    """The rows of a batch of n whose inputs this process computes, if several processes train together."""
    accumulate: int = 1
    """Batches per step, whose gradients are added."""
    partner_odds: np.ndarray | None = None
    """(len(index),) odds with which each of ``index`` is drawn as the partner of a sample in mixup and cutmix; None: no partners."""
    views: int = 0
    """Augmented views of each image whose ``features`` may be stored; 0: none, each epoch augments anew."""
    features: Tensor | None = None
    """(views or 1, len(index), ...): features of frozen layers for each of ``index``, instead of the images.

    Epoch e has the features of view e modulo the number of views, which are those of the images of that epoch.
    """
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Batches per epoch. A single image that is left over joins the last batch: BatchNorm cannot train on one."""
        count, rest = divmod(len(self.index), self.batch_size)
        return count + (rest > (1 if count else 0))

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return -(-len(self) // self.accumulate)

    def per_step(self, epoch: int, skip: int = 0) -> Iterator[list[Batch]]:
        """The batches of each step of an epoch, from step ``skip`` on."""
        batches = self.epoch(epoch, skip * self.accumulate)
        return iter(lambda: list(islice(batches, self.accumulate)), [])

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch ``skip`` on."""
        order, draws = self.index, np.zeros((len(self.index), 0), np.float32)
        if self.augment is not None:
            order = self.sample(epoch) if self.sample else order[sampling.order(self.seed, epoch, len(order))]
            draws = _augment.draws(self.seed, epoch, order, len(self.split), self.augment)
        for number in range(skip, len(self)):
            start, end = number * self.batch_size, (number + 1) * self.batch_size if number + 1 < len(self) else len(order)
            chosen, drawn = order[start:end], draws[start:end]
            mine = self.share(len(chosen)) if self.share else slice(None)
            where = torch.from_numpy(chosen).to(self._targets.device)
            targets = self._targets[where].to(self.device, non_blocking=True)
            if self.features is not None:
                rows = self._rows[torch.from_numpy(chosen[mine])].to(self.features.device)
                inputs = self.features[epoch % len(self.features)][rows]
            else:
                inputs = self.inputs(chosen[mine], drawn[mine])
            yield Batch(inputs, targets, chosen, drawn, self._partners(drawn))

    def view_draws(self, view: int) -> np.ndarray:
        """The random draws (len(index), K) of the images of an epoch, in the order of ``index``."""
        return _augment.draws(self.seed, view, self.index, len(self.split), self.augment or ())

    def inputs(self, chosen: np.ndarray, draws: np.ndarray) -> Tensor:
        """Images (N, 3, H, W) at these positions of the split, normalised, and augmented with ``draws`` (N, K) if the batches are augmented."""
        images = self._resident
        if images is None:
            images = torch.from_numpy(self.split.images[chosen]).to(self.device, non_blocking=True)
        else:
            images = images[torch.from_numpy(chosen).to(self.device)]
        if self.augment is None:
            return _augment.normalise(images, self.mean, self.std, self.dtype, size=self.size)
        uniform = torch.from_numpy(draws).to(self.device)
        return _augment.augment(images, uniform, self.augment, self.mean, self.std, self.dtype, self.size)

    def _partners(self, draws: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """Inputs and targets of one partner per row of ``draws`` (N, K), which the low half of its 24 bits augments."""
        if self.partner_odds is None:
            return None
        others = self.index[_augment.partner(draws, self.partner_odds)]
        where = torch.from_numpy(others).to(self._targets.device)
        return self.inputs(others, draws * 4096 % 1), self._targets[where].to(self.device, non_blocking=True)

    @property
    def _rows(self) -> Tensor:
        """Index into ``index`` of each position in the split."""
        if "rows" not in self._cache:
            rows = torch.zeros(len(self.split), dtype=torch.int64)
            rows[torch.from_numpy(self.index)] = torch.arange(len(self.index))
            self._cache["rows"] = rows
        return self._cache["rows"]

    @property
    def _resident(self) -> Tensor | None:
        """All images on the GPU, or None if they do not fit: they are then read per batch."""
        images = self.split.images
        if self.device.type != "cuda" or images.nbytes > RESIDENT_BYTES:
            return None
        if "images" not in self._cache:
            held = torch.empty(images.shape, dtype=torch.uint8, device=self.device)
            for start in range(0, len(images), COPIED):
                rows = slice(start, start + COPIED)
                held[rows] = torch.from_numpy(np.ascontiguousarray(images[rows]))
            self._cache["images"] = held
        return self._cache["images"]

    @property
    def _targets(self) -> Tensor:
        if "targets" not in self._cache:
            self._cache["targets"] = torch.from_numpy(np.array(self.split.targets, np.int64)).to(self.device)
        return self._cache["targets"]
