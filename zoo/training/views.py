"""Several views of each test image, whose predictions are averaged (Krizhevsky et al. 2012, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KINDS = {"none": 1, "flip": 2, "shift": 6, "crops": 10}
"""The number of views: the image and its mirror image; the image and its shifts by one pixel up left and down right, and their mirror
images (Jordan 2024, section 3.5), half of the weight on the unshifted ones; four corners and the centre, and their mirror images."""


class AveragedViews(nn.Module):
    """Logarithm of the weighted mean probabilities (N, C) over the views of images (N, 3, S, S), S >= ``size`` pixels."""

    def __init__(self, model: nn.Module, size: int, kind: str) -> None:
        super().__init__()
        self.model, self.size, self.kind = model, size, kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "shift":
            images = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
        far = images.shape[2] - self.size
        centre = far // 2
        corners = {"crops": [(0, 0), (0, far), (far, 0), (far, far)], "shift": [(0, 0), (far, far)]}.get(self.kind, [])
        total, weights = torch.zeros(()), 0.0
        for top, left in ((centre, centre), *corners):
            weight = 2.0 if self.kind == "shift" and top == centre else 1.0
            part = images[:, :, top : top + self.size, left : left + self.size]
            for view in (part, part.flip(3)):
                total = total.to(images.device) + weight * self.model(view).float().softmax(1)
                weights += weight
        return (total / weights).clamp(min=torch.finfo(torch.float32).tiny).log()
