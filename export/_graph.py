"""What goes into an exported graph besides the model: preprocessing, and what a reader of the file must know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PREPROCESS = {
    "none": "float32 NCHW, already normalised with the mean and std given here",
    "normalize": "float32 NCHW RGB in 0..1 at the input size; normalisation is in the graph",
    "full": "uint8 NHWC RGB of any size; scaling, antialiased resize, centre crop and normalisation are in the graph",
}


class Exported(nn.Module):
    """A model with its preprocessing in front and, if wanted, softmax behind; always in eval mode."""

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], size: int, preprocess: str, softmax: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.size, self.preprocess, self.softmax = size, preprocess, softmax
        self.mean = nn.Buffer(torch.tensor(mean).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(std).view(1, 3, 1, 1))
        self.eval()

    def train(self, mode: bool = True) -> Exported:
        """An exported model never trains: dropout off, BatchNorm on its running statistics."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, size, size) float32, or (N, H, W, 3) uint8 for ``full``, to (N, classes)."""
        x = images
        if self.preprocess == "full":
            x = images.permute(0, 3, 1, 2).to(torch.float32) / 255
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        if self.preprocess != "none":
            x = (x - self.mean) / self.std
        logits = self.model(x)
        return logits.softmax(1) if self.softmax else logits
