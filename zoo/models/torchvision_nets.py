"""Networks for 224x224 images, built by torchvision: AlexNet (Krizhevsky 2014, "One weird trick") and ResNet-50 (He et al. 2015)."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.spec import Download, ModelSpec


def alexnet(classes: int = 101) -> nn.Module:
    """torchvision's AlexNet, freshly initialised: (N, 3, 224, 224) to (N, classes)."""
    from torchvision import models  # takes seconds to import; a missing weights file is reported first

    return models.alexnet(weights=None, num_classes=classes)


def resnet50(classes: int = 101) -> nn.Module:
    """torchvision's ResNet-50 (v1.5: stride in the 3x3 convolution), freshly initialised."""
    from torchvision import models

    return models.resnet50(weights=None, num_classes=classes)


def alexnet_download(name: str) -> Download:
    """ImageNet weights ``imagenet1k_v1``."""
    from torchvision import models

    return _torchvision(models.AlexNet_Weights, name)


def resnet50_download(name: str) -> Download:
    """torchvision's ImageNet weights, or timm's, whose ResNet-50 has the same parameter names."""
    if name.startswith("timm:"):
        from zoo.models import _timm

        return _timm.download(f"resnet50.{name.removeprefix('timm:')}")
    from torchvision import models

    return _torchvision(models.ResNet50_Weights, name)


def _torchvision(known: Any, name: str) -> Download:
    url = known[name.upper()].url
    return Download(url, url.rsplit("/", 1)[-1])


INPUT = (3, 224, 224)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUITS = ("caltech101", "folder")
ALEXNET_STAGES = (("features.0",), ("features.3",), ("features.6", "features.8", "features.10"))
RESNET_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
SCRATCH = {
    "epochs": 30, "batch_size": 64, "optim.lr": 0.01, "optim.weight_decay": 5e-5, "optim.nesterov": False,
    "schedule.name": "step", "schedule.step_size": 15, "data.augment": ["rcrop", "flip"],
}  # fmt: skip
TRANSFER = {
    "epochs": 30, "batch_size": 64, "optim.lr": 0.01, "optim.weight_decay": 5e-5, "optim.nesterov": False, "weights": "default",
    "schedule.name": "step", "schedule.step_size": 15, "data.augment": ["rcrop", "flip"],
}  # fmt: skip

SPECS = {
    "alexnet": ModelSpec(
        build=alexnet, input=INPUT, classes=101, params=57_417_637, macs=710_506_176, paper="Krizhevsky 2014, arXiv:1404.5997",
        head="classifier", new_head="classifier.6", stages=ALEXNET_STAGES, data=SUITS, weights=("imagenet1k_v1",),
        download=alexnet_download, mean=MEAN, std=STD, recipe=SCRATCH,
    ),
    "resnet50": ModelSpec(
        build=resnet50, input=INPUT, classes=101, params=23_714_981, macs=4_087_343_104, paper="He et al. 2015, arXiv:1512.03385",
        head="fc", stages=RESNET_STAGES, data=SUITS, weights=("imagenet1k_v2", "imagenet1k_v1", "timm:a1_in1k"),
        download=resnet50_download, mean=MEAN, std=STD, recipe=TRANSFER,
    ),
}  # fmt: skip
