"""A linear classifier: the smallest file that adds a model to zoo."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.spec import ModelSpec


class Tiny(nn.Module):
    """Images (N, 3, 32, 32), averaged over 4 x 4 pixels, to logits (N, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.head = nn.Linear(3 * 8 * 8, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(images).flatten(1))


SPECS = {
    "tiny": ModelSpec(
        build=Tiny,
        input=(3, 32, 32),
        params=1930,
        macs=1920,
        paper="an example",
        head="head",
        stages=(("pool",),),
        data=("synthetic",),
    ),
}
