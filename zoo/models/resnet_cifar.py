"""ResNets for 32x32 images: He et al. 2015, "Deep residual learning for image recognition", section 4.2.

Three stages of n blocks with 16, 32, 64 channels (depth 6n + 2), or a multiple of them; shortcuts of option A have no parameters: every second pixel,
missing channels filled with zeros. Parameter names follow the common public implementations (conv1, bn1,
layer1.0.conv1, ..., linear), so their state dicts load.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.spec import ModelSpec


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN plus the shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.missing:
            half = self.missing // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.missing - half))
        return F.relu(out + x)


class CosineLinear(nn.Linear):
    """``scale`` times the cosine of features and class vectors, (N, inputs) to (N, classes) (Cao et al. 2019, with LDAM)."""

    def __init__(self, inputs: int, classes: int, scale: float = 30.0) -> None:
        super().__init__(inputs, classes, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


class ResNet(nn.Module):
    """(N, 3, 32, 32) to logits (N, classes)."""

    def __init__(self, blocks: int, classes: int, head: Callable[[int, int], nn.Linear] = nn.Linear, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1)
        self.layer2 = _stage(width, 2 * width, blocks, 2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2)
        self.linear = head(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # He et al. 2015, "Delving deep into rectifiers"

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet(depth: int, classes: int = 10, width: int = 16) -> ResNet:
    """The net of ``depth`` = 6n + 2 layers with ``width`` channels in the first stage."""
    return ResNet((depth - 2) // 6, classes, width=width)


def resnet_cosine(depth: int, classes: int = 10) -> ResNet:
    """The same with a head that returns scaled cosines."""
    return ResNet((depth - 2) // 6, classes, CosineLinear)


PAPER = "He et al. 2015, arXiv:1512.03385"
SUITS = ("cifar10", "cifar100", "synthetic")
RECIPE = {
    "epochs": 60, "batch_size": 128, "optim.lr": 0.1, "optim.weight_decay": 5e-4, "schedule.name": "cosine", "schedule.warmup": 1.0,
    "data.augment": ["crop", "flip"],
}  # fmt: skip
INPUT = (3, 32, 32)
STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",))

SPECS = {
    "resnet20": ModelSpec(
        build=partial(resnet, 20), input=INPUT, params=269_722, macs=40_551_040, paper=PAPER, head="linear", stages=STAGES, data=SUITS,
        recipe=RECIPE,
    ),
    "resnet32": ModelSpec(
        build=partial(resnet, 32), input=INPUT, params=464_154, macs=68_862_592, paper=PAPER, head="linear", stages=STAGES, data=SUITS,
        recipe=RECIPE,
    ),
    "resnet32_cosine": ModelSpec(
        build=partial(resnet_cosine, 32), input=INPUT, params=464_144, macs=68_862_592, paper=PAPER, head="linear", stages=STAGES,
        data=SUITS, recipe=RECIPE, cosine=True,
    ),
    # four times the channels: the net behind several long-tail results that are reported as ResNet-32 (Du et al. 2023, GLMC, arXiv:2305.08661)
    "resnet32_w64": ModelSpec(
        build=partial(resnet, 32, width=64), input=INPUT, params=7_386_186, macs=1_096_485_376, paper=PAPER, head="linear", stages=STAGES,
        data=SUITS, recipe=RECIPE,
    ),
    "resnet44": ModelSpec(
        build=partial(resnet, 44), input=INPUT, params=658_586, macs=97_174_144, paper=PAPER, head="linear", stages=STAGES, data=SUITS,
        recipe=RECIPE,
    ),
    "resnet56": ModelSpec(
        build=partial(resnet, 56), input=INPUT, params=853_018, macs=125_485_696, paper=PAPER, head="linear", stages=STAGES, data=SUITS,
        recipe=RECIPE,
    ),
    "resnet110": ModelSpec(
        build=partial(resnet, 110), input=INPUT, params=1_727_962, macs=252_887_680, paper=PAPER, head="linear", stages=STAGES, data=SUITS,
        recipe=RECIPE,
    ),
}  # fmt: skip
