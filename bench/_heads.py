"""A classifier's last layer and its cross entropy together, as ``F.linear_cross_entropy`` computes them: time and peak memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        """Of the loss, and of the features' gradient relative to its largest value, against float64."""
        exact = [each.detach().double().requires_grad_() for each in (self.features, self.weight)]
        true = F.cross_entropy(F.linear(*exact), self.target)
        (true_grad,) = torch.autograd.grad(true, exact[0])
        true = true.detach()
        found = loss(self.features, self.weight, self.target)
        (grad,) = torch.autograd.grad(found, self.features)
        return (
            float((found.detach().double() - true).abs() / true.abs()),
            float((grad.double() - true_grad).abs().max() / true_grad.abs().max()),
        )


def contenders() -> Mapping[str, Loss]:
    """By name; ``F.linear_cross_entropy`` is in torch from 2.15 on, and can work in parts of the batch."""
    found: dict[str, Loss] = {
        BASE: lambda x, w, y: F.cross_entropy(F.linear(x, w), y),
        OWN[0]: lambda x, w, y: ops.focal_loss(F.linear(x, w), y, 0.0),
        OWN[1]: lambda x, w, y: ops.focal_loss(F.linear(x, w), y, 0.0, inplace=True),
    }
    if fused := getattr(F, "linear_cross_entropy", None):
        found["F.linear_cross_entropy"] = lambda x, w, y: fused(x, w, y)
    return found
