"""Small convolutional networks for 32x32 images; each follows the layer list of its experiment exactly.

The CNNs of the experiments (two_layer_net to s3_cnn) have no batch normalisation unless it is named.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.spec import ModelSpec


class Cnn(nn.Module):
    """``features``, then ``classifier`` on the flattened maps: (N, 3, 32, 32) to (N, classes)."""

    def __init__(self, features: nn.Sequential, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, 32, 32)."""
        return self.classifier(torch.flatten(self.features(images), 1))


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def cnn_small(classes: int = 10) -> nn.Module:
    """Four conv-BN-ReLU layers with 32 to 128 channels and a global mean: the net of ``zoo demo``."""
    pool = nn.MaxPool2d(2)
    layers = [*_block(3, 32), pool, *_block(32, 64), pool, *_block(64, 96), pool, *_block(96, 128), nn.AdaptiveAvgPool2d(1)]
    return Cnn(nn.Sequential(*layers), nn.Linear(128, classes))


def two_layer_net(classes: int = 10) -> nn.Module:
    """Fully connected 3072 -> 128 -> classes with a sigmoid between them."""
    return Cnn(nn.Sequential(nn.Flatten()), nn.Sequential(nn.Linear(3072, 128), nn.Sigmoid(), nn.Linear(128, classes)))


def vanilla_cnn(classes: int = 10) -> nn.Module:
    """conv 7x7x32 without padding, ReLU, pool 2, linear 5408 -> classes."""
    return Cnn(nn.Sequential(nn.Conv2d(3, 32, 7), nn.ReLU(inplace=True), nn.MaxPool2d(2)), nn.Linear(5408, classes))


def s1_cnn(classes: int = 10) -> nn.Module:
    """Three of [conv 3x3 without padding, ReLU, pool 2] with 32, 64, 128 filters, then 512-256-128-64-classes."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head: list[nn.Module] = []
    for inputs, outputs in ((512, 256), (256, 128), (128, 64)):
        head += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return Cnn(nn.Sequential(*layers), nn.Sequential(*head, nn.Linear(64, classes)))


def s2_cnn(classes: int = 10) -> nn.Module:
    """Five convolutions of 96, 96, 128, 164, 196 filters with dropout 0.25, then 3136-500-80-classes."""
    relu, pool = nn.ReLU(), nn.MaxPool2d(2)
    layers = [
        nn.Conv2d(3, 96, 7, padding=2), relu, pool, nn.Conv2d(96, 96, 5, padding=1), relu, nn.Conv2d(96, 128, 5, padding=2), relu, pool,
        nn.Conv2d(128, 164, 5, padding=2), relu, nn.Conv2d(164, 196, 3), relu, nn.Dropout(0.25),
    ]  # fmt: skip
    head = [nn.Linear(3136, 500), relu, nn.Dropout(0.25), nn.Linear(500, 80), relu, nn.Linear(80, classes)]
    return Cnn(nn.Sequential(*layers), nn.Sequential(*head))


def s3_cnn(classes: int = 10) -> nn.Module:
    """Three of [conv 3x3, ReLU, pool 2] with 64, 128, 256 filters, then 4096-1024-classes with dropout 0.5."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return Cnn(
        nn.Sequential(*layers),
        nn.Sequential(nn.Linear(4096, 1024), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(1024, classes)),
    )


SUITS = ("synthetic", "cifar10", "cifar100")
REAL = ("cifar10", "cifar100", "synthetic")
INPUT = (3, 32, 32)
SOURCE = "reported experiment, no paper"
FAST = {"epochs": 10, "optim.lr": 0.1, "schedule.name": "onecycle", "schedule.warmup": 2.0}
PLAIN = {"epochs": 30, "optim.lr": 0.01, "optim.nesterov": False, "data.augment": []}
CROPPED = {
    "epochs": 50,
    "optim.lr": 0.01,
    "schedule.name": "multistep",
    "schedule.steps": [25, 40],
    "data.augment": ["crop", "flip"],
}
SMALL_STAGES = (
    ("features.0", "features.1"), ("features.4", "features.5"), ("features.8", "features.9"), ("features.12", "features.13"),
)  # fmt: skip
THREE_STAGES = (("features.0",), ("features.3",), ("features.6",))

SPECS = {
    "cnn_small": ModelSpec(
        build=cnn_small, input=INPUT, params=187_114, macs=10_913_024, paper="this project", head="classifier", stages=SMALL_STAGES,
        data=SUITS, recipe=FAST,
    ),
    "two_layer_net": ModelSpec(
        build=two_layer_net, input=INPUT, params=394_634, macs=394_496, paper=SOURCE, head="classifier", new_head="classifier.2",
        data=REAL, recipe=PLAIN,
    ),
    "vanilla_cnn": ModelSpec(
        build=vanilla_cnn, input=INPUT, params=58_826, macs=3_233_984, paper=SOURCE, head="classifier", stages=(("features.0",),),
        data=REAL, recipe=PLAIN,
    ),
    "s1_cnn": ModelSpec(
        build=s1_cnn, input=INPUT, params=266_378, macs=5_244_928, paper=SOURCE, head="classifier", new_head="classifier.6",
        stages=THREE_STAGES, data=REAL, recipe=PLAIN,
    ),
    "s2_cnn": ModelSpec(
        build=s2_cnn, input=INPUT, params=2_975_878, macs=128_685_536, paper=SOURCE, head="classifier", new_head="classifier.5",
        stages=(("features.0",), ("features.3", "features.5"), ("features.8", "features.10")), data=REAL, recipe=PLAIN,
    ),
    "s3_cnn": ModelSpec(
        build=s3_cnn, input=INPUT, params=4_576_394, macs=43_722_752, paper=SOURCE, head="classifier", new_head="classifier.3",
        stages=THREE_STAGES, data=REAL, recipe=CROPPED,
    ),
}  # fmt: skip
