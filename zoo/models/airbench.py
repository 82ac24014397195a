"""The convolutional net of "94 % on CIFAR-10 in 3.29 seconds on a single GPU" (Jordan 2024, arXiv:2404.00498, section 3 and appendix A).

A fixed 2x2 convolution that whitens patches, three blocks of two 3x3 convolutions, a linear head whose logits are divided by nine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.spec import ModelSpec

CHUNK = 500
"""Images whose patches are in memory at a time."""
EPS = 5e-4
"""Added to the variances of the whitened directions, in units of the normalised inputs."""


class WhiteningConv(nn.Conv2d):
    """A 2x2 convolution onto the principal directions of patches, scaled to unit variance, and their negatives; only its bias is trained.

    (N, inputs, H, W) to (N, 8 inputs, H - 1, W - 1).
    """

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 8 * inputs, 2)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]
        filters = self.weight.detach()
        del self.weight
        self.register_buffer("weight", filters)

    @torch.no_grad()
    def whiten(self, inputs: Tensor) -> None:
        """Set the filters from images (N, inputs, H, W); the sign of each is fixed, so that the result does not depend on the library."""
        moments, count = torch.zeros((), dtype=torch.float64), 0
        for x in inputs.double().split(CHUNK):
            corners = torch.stack((x[:, :, :-1, :-1], x[:, :, :-1, 1:], x[:, :, 1:, :-1], x[:, :, 1:, 1:]), 2)
            patches = corners.permute(0, 3, 4, 1, 2).reshape(-1, 4 * x.shape[1])
            moments, count = moments.to(x.device) + patches.T @ patches, count + len(patches)
        variances, directions = torch.linalg.eigh(moments / count)
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        filters = (directions * largest.sign() / (variances + EPS).sqrt()).T.flip(0).reshape(-1, self.in_channels, 2, 2)
        self.weight.copy_(torch.cat([filters, -filters]))


class AirNet(nn.Module):
    """(N, 3, 32, 32) to logits (N, classes)."""

    def __init__(self, classes: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.whiten = WhiteningConv(3)
        self.layer1 = _block(self.whiten.out_channels, widths[0])
        self.layer2 = _block(widths[0], widths[1])
        self.layer3 = nn.Sequential(*_block(widths[1], widths[2]), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.linear = nn.Linear(widths[2], classes, bias=False)

    def initialise_from_images(self, inputs: Tensor) -> None:
        """Set the whitening filters from normalised training images (N, 3, H, W)."""
        self.whiten.whiten(inputs)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        out = nn.functional.gelu(self.whiten(images))
        return self.linear(self.layer3(self.layer2(self.layer1(out)))) / 9


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(inputs, outputs), nn.MaxPool2d(2), _norm(outputs), nn.GELU(),
        _conv(outputs, outputs), _norm(outputs), nn.GELU(),
    )  # fmt: skip


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with a trained shift; its scale is a buffer that stays 1. The type is torch's own, which several processes synchronise."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    del norm.weight
    norm.register_buffer("weight", torch.ones(channels))
    return norm


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution whose first channels copy its inputs at the start."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv


def airbench94(classes: int = 10) -> AirNet:
    """The smallest net of the paper."""
    return AirNet(classes, (64, 256, 256))


RECIPE: dict[str, Any] = {
    "epochs": 10, "batch_size": 1024, "lookahead": 0.95, "optim.lr": 1.5, "optim.momentum": 0.85, "optim.weight_decay": 1.33e-3,
    "optim.norm_bias_lr": 64.0, "schedule.name": "onecycle", "schedule.warmup": 2.3, "schedule.start_factor": 0.2, "schedule.end_factor": 0.07,
    "data.augment": ["altflip", "crop:2"],
    "loss.label_smoothing": 0.2,
}  # fmt: skip

SPECS = {
    "airbench94": ModelSpec(
        build=airbench94, input=(3, 32, 32), params=1_971_352, macs=118_147_360, paper="Jordan 2024, arXiv:2404.00498", head="linear",
        stages=(("whiten",), ("layer1",), ("layer2",), ("layer3",)), data=("cifar10", "cifar100", "synthetic"), recipe=RECIPE,
    ),
}  # fmt: skip
