"""Several views of each test image, whose predictions are averaged (Krizhevsky et al. 2012, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KINDS = {"none": 1, "flip": 2, "crops": 10}
"""The number of views: the image and its mirror image; four corners and the centre, and their mirror images."""


class AveragedViews(nn.Module):
    """Logarithm of the mean probabilities (N, C) over the views of images (N, 3, S, S), S >= ``size`` pixels."""

    def __init__(self, model: nn.Module, size: int, kind: str) -> None:
        super().__init__()
        self.model, self.size, self.kind = model, size, kind

    def forward(self, images: Tensor) -> Tensor:
        centre = (images.shape[2] - self.size) // 2
        far = images.shape[2] - self.size
        corners = [(0, 0), (0, far), (far, 0), (far, far)] if self.kind == "crops" else []
        total = torch.zeros(())
        for top, left in ((centre, centre), *corners):
            part = images[:, :, top : top + self.size, left : left + self.size]
            for view in (part, part.flip(3)):
                total = total.to(images.device) + self.model(view).float().softmax(1)
        return (total / KINDS[self.kind]).clamp(min=torch.finfo(torch.float32).tiny).log()
