"""Wide residual networks for 32x32 images: Zagoruyko and Komodakis 2016, "Wide residual networks", section 2 and table 1.

Depth 6n + 4, widths 16, 16k, 32k, 64k; BN and ReLU come before each convolution (pre-activation). The block is the B(3, 3) one.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.spec import ModelSpec


class Block(nn.Module):
    """BN-ReLU-conv twice plus a shortcut, a 1x1 convolution of the activated input if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """(N, 3, 32, 32) to logits (N, classes)."""

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * width, blocks, 1)
        self.layer2 = _stage(16 * width, 32 * width, blocks, 2)
        self.layer3 = _stage(32 * width, 64 * width, blocks, 2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.linear = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # He et al. 2015, "Delving deep into rectifiers"

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        out = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.linear(F.relu(self.bn(out)).mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def wide_resnet(depth: int, width: int, classes: int = 10) -> WideResNet:
    """The net of ``depth`` = 6n + 4 layers, ``width`` times as wide as the basic one."""
    return WideResNet(depth, width, classes)


RECIPE = {
    "epochs": 60, "batch_size": 128, "optim.lr": 0.1, "optim.weight_decay": 5e-4, "schedule.name": "cosine", "schedule.warmup": 1.0,
    "data.augment": ["crop", "flip"],
}  # fmt: skip

SPECS = {
    "wide_resnet16_4": ModelSpec(
        build=partial(wide_resnet, 16, 4), input=(3, 32, 32), params=2_748_890, macs=392_612_352,
        paper="Zagoruyko and Komodakis 2016, arXiv:1605.07146", head="linear",
        stages=(("conv1",), ("layer1",), ("layer2",), ("layer3", "bn")), data=("cifar10", "cifar100", "synthetic"), recipe=RECIPE,
    ),
}  # fmt: skip
