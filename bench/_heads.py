"""A classifier's last layer and its cross entropy together, as ``F.linear_cross_entropy`` computes them: time and peak memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import ops

SIZES = ((8192, 1000), (512, 50257))
FEATURES = 128
PASS = "layer and loss, forward+backward"
BASE = "F.linear, F.cross_entropy"
OWN = ("F.linear, zoo gamma 0", "F.linear, zoo gamma 0 in place")
PEERS = ("F.linear_cross_entropy", "F.linear_cross_entropy chunked", "Liger linear_cross_entropy")
"""Contenders that may fail on this machine and are then skipped."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Head:
    """Features (N, D), the layer's weight (C, D) and labels (N,), of a fixed seed."""

    features: Tensor
    weight: Tensor
    target: Tensor

    @staticmethod
    def draw(n: int, c: int, device: torch.device) -> Head:
        draw = torch.Generator().manual_seed(0)
        made = (torch.randn(n, FEATURES, generator=draw), torch.randn(c, FEATURES, generator=draw) / FEATURES**0.5)
        features, weight = (each.to(device).requires_grad_() for each in made)
        return Head(features, weight, torch.randint(c, (n,), generator=draw).to(device))

    def call(self, loss: Loss) -> Callable[[], None]:
        """Loss and both gradients, which are dropped."""

        def both() -> None:
            loss(self.features, self.weight, self.target).backward()
            self.features.grad = self.weight.grad = None

        return both

    def error(self, loss: Loss) -> tuple[float, float]:
        """Of the loss, and of both gradients relative to the largest value of each, against float64."""
        exact = [each.detach().double().requires_grad_() for each in (self.features, self.weight)]
        true = F.cross_entropy(F.linear(*exact), self.target)
        found = loss(self.features, self.weight, self.target)
        pairs = zip(torch.autograd.grad(found, (self.features, self.weight)), torch.autograd.grad(true, exact), strict=True)
        of_loss = (found.detach().double() - true.detach()).abs() / true.detach().abs()
        return float(of_loss), max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)


def contenders(device: torch.device) -> dict[str, Loss]:
    """By name; ``F.linear_cross_entropy`` (and ``nn.LinearCrossEntropyLoss``, which calls it) is in torch from 2.15 on.

    Without options it is a linear layer and a cross entropy; with them it never holds the logits of the whole batch.
    """
    found: dict[str, Loss] = {
        BASE: lambda x, w, y: F.cross_entropy(F.linear(x, w), y),
        OWN[0]: lambda x, w, y: ops.focal_loss(F.linear(x, w), y, 0.0),
        OWN[1]: lambda x, w, y: ops.focal_loss(F.linear(x, w), y, 0.0, inplace=True),
    }
    if fused := getattr(F, "linear_cross_entropy", None):
        options = torch.nn.LinearCrossEntropyOptions()
        found[PEERS[0]] = lambda x, w, y: fused(x, w, y)
        found[PEERS[1]] = lambda x, w, y: fused(x, w, y, options=options)
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        found[PEERS[2]] = liger
    return found


def liger(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Liger's, in Triton: parts of the batch, their gradients computed in the forward pass."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(features, weight, target)
