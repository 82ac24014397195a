"""A nine-layer residual network that trains in few epochs, after Page's DAWNBench entry ("How to train your ResNet", 2018).

Eight 3x3 convolutions and one linear layer: widths 64, 128, 256, 512, a residual pair after the second and the fourth.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.spec import ModelSpec


class Residual(nn.Module):
    """x plus two conv-BN-ReLU of the same width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(width, width), *_conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same shape."""
        return x + self.body(x)


class CalmLinear(nn.Linear):
    """A linear layer scaled by 1/8, (N, inputs) to (N, classes): the small scale permits a high initial learning rate."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * 0.125


class ResNet9(nn.Module):
    """(N, 3, 32, 32) to logits (N, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 64))
        self.layer1 = nn.Sequential(*_conv(64, 128), nn.MaxPool2d(2), Residual(128))
        self.layer2 = nn.Sequential(*_conv(128, 256), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(*_conv(256, 512), nn.MaxPool2d(2), Residual(512), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.linear = CalmLinear(512, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self.linear(self.layer3(self.layer2(self.layer1(self.stem(images)))))


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def resnet9(classes: int = 10) -> ResNet9:
    """The only size."""
    return ResNet9(classes)


RECIPE = {
    "epochs": 20, "batch_size": 256, "optim.lr": 0.4, "optim.weight_decay": 5e-4, "schedule.name": "onecycle", "schedule.warmup": 4.0,
    "data.augment": ["crop", "flip", "cutout:8"], "loss.label_smoothing": 0.1,
}  # fmt: skip

SPECS = {
    "resnet9": ModelSpec(
        build=resnet9, input=(3, 32, 32), params=6_573_120, macs=379_261_952, paper="after Page 2018, 'How to train your ResNet' (myrtle.ai)", head="linear",
        stages=(("stem",), ("layer1",), ("layer2",), ("layer3",)), data=("cifar10", "cifar100", "synthetic"), recipe=RECIPE,
    ),
}  # fmt: skip
