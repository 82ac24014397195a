"""One convolution and a linear classifier: the smallest file that adds a model to zoo."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.spec import ModelSpec


class Tiny(nn.Module):
    """Images (N, 3, 32, 32) to logits (N, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.head = nn.Linear(8 * 8 * 8, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).relu().flatten(1))


SPECS = {
    "tiny": ModelSpec(
        build=Tiny,
        input=(3, 32, 32),
        params=5522,
        macs=29_696,
        paper="an example",
        head="head",
        stages=(("conv",),),
        data=("synthetic",),
    ),
}
