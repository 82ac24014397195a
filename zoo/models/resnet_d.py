"""A small residual network with a deep stem for photographs of medium size: He et al. 2019, "Bag of tricks", section 4.2 (ResNet-D).

The stem's 7x7 convolution is three 3x3 ones, and a shortcut that halves the map averages before its 1x1 convolution instead of
skipping pixels. Basic blocks (He et al. 2015), one per stage with 64, 128, 256, 512 channels: 10 layers deep. The second
convolution of the stem has the stride of the usual max pooling, to save time on large maps.
"""

from __future__ import annotations

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
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False))
        if inputs != outputs:
            self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNetD(nn.Module):
    """(N, 3, H, W) to logits (N, classes); the maps are a quarter of the input's side after the stem, a 32nd at the end."""

    def __init__(self, blocks: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 32, 2), *_conv(32, 64, 2), *_conv(64, 64, 1))
        self.layer1 = _stage(64, 64, blocks[0], 1)
        self.layer2 = _stage(64, 128, blocks[1], 2)
        self.layer3 = _stage(128, 256, blocks[2], 2)
        self.layer4 = _stage(256, 512, blocks[3], 2)
        self.fc = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")  # He et al. 2015, "Delving deep into rectifiers"

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))
        return self.fc(out.mean((2, 3)))


def _conv(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet10d(classes: int = 101) -> ResNetD:
    """One block per stage."""
    return ResNetD((1, 1, 1, 1), classes)


RECIPE = {
    "epochs": 50, "batch_size": 64, "optim.lr": 0.1, "optim.weight_decay": 1e-3, "schedule.name": "cosine", "schedule.warmup": 2.0,
    "data.augment": ["rcrop:112", "flip", "colour:40"], "loss.label_smoothing": 0.1,
}  # fmt: skip

SPECS = {
    "resnet10d": ModelSpec(
        build=resnet10d, input=(3, 112, 112), classes=101, params=5_004_549, macs=252_551_680, paper="He et al. 2019, arXiv:1812.01187",
        head="fc", stages=(("stem",), ("layer1",), ("layer2",), ("layer3",), ("layer4",)), data=("caltech101", "folder"),
        recipe=RECIPE,
    ),
}  # fmt: skip
