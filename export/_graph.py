"""Parts of an exported graph besides the model: preprocessing, softmax, metadata."""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from onnx import ModelProto

    from zoo.run import Run

PREPROCESS = {
    "none": "float32 (N, 3, H, W) RGB, resized, cut and normalised",
    "normalize": "float32 (N, 3, H, W) RGB in 0..1, resized and cut",
    "full": "uint8 (N, any height, any width, 3) RGB",
}
"""Input of the exported file, by ``--preprocess``."""


class Exported(nn.Module):
    """A float32 copy of a model, always in eval mode, with preprocessing before and optionally softmax after it.

    Args:
        mean, std: channel statistics of images in 0..1.
        size: side of the model's input in pixels. stored: length of the shorter side of an image before the centre crop of
            ``size``.
        shape: of one input of the model (default: (3, size, size)).
        probabilities: whether the model returns probabilities itself.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], *, size: int, stored: int, preprocess: str,
        softmax: bool = False, shape: tuple[int, ...] = (), probabilities: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = copy.deepcopy(model).float().cpu()
        self.mean, self.std, self.shape = mean, std, shape or (3, size, size)
        self.size, self.stored, self.preprocess = size, stored, preprocess
        self.softmax, self.probabilities = softmax or probabilities, probabilities
        unit = 255 if preprocess == "full" else 1
        channels = (1, len(mean), 1, 1)
        self.register_buffer("scale", torch.tensor([1 / (unit * s) for s in std]).view(channels))
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std)]).view(channels))
        self.train()

    def train(self, mode: bool = True) -> Exported:
        """No effect: dropout stays off and BatchNorm keeps its running statistics."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images in the form of :data:`PREPROCESS` to logits or probabilities (N, classes)."""
        return self.finish(self.model(self.prepare(images)))

    def finish(self, outputs: Tensor) -> Tensor:
        """The model's outputs (N, classes) as those of the file."""
        return outputs.softmax(1) if self.softmax and not self.probabilities else outputs

    def prepare(self, images: Tensor) -> Tensor:
        """Images in the form of :data:`PREPROCESS` to the model's input, (N, 3, size, size) normalised."""
        inputs = fit(images, self.stored, self.size) if self.preprocess == "full" else images
        return inputs if self.preprocess == "none" else inputs * self.scale + self.shift

    def example(self) -> tuple[Tensor, tuple[dict[int, Any], ...]]:
        """Inputs for tracing, and their dynamic axes: the batch, and height and width if they are free.

        The batch is 2, since 1 could become a constant; the sides differ, since equal ones could be unified.
        """
        full = self.preprocess == "full"
        inputs = torch.zeros(2, self.size + 3, self.size + 5, 3, dtype=torch.uint8) if full else torch.zeros(2, *self.shape)
        names = ("batch", "height", "width")[: 3 if full else 1]
        return inputs, ({axis: torch.export.Dim(name, min=1) for axis, name in enumerate(names)},)


def of_run(run: Run, *, stored: int, preprocess: str, softmax: bool) -> Exported:
    """A run's model with its own statistics and size of input."""
    return Exported(run.model, run.mean, run.std, size=run.input[1], stored=stored, preprocess=preprocess, softmax=softmax)


def fit(images: Tensor, stored: int, size: int) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, size, size) in 0..255: shorter side to ``stored``, centre crop, as in Pillow.

    Two matrix products instead of ONNX's Resize: every runtime supports them, they compute only the pixels that are kept, and
    differ from Pillow's antialiased bilinear only by its rounding to whole numbers.
    """
    count, height, width, _ = images.shape
    rows = _taps(height, width, stored, size)  # (size, H)
    columns = _taps(width, height, stored, size)  # (size, W)
    lines = rows @ images.float().reshape(count, height, width * 3)  # (N, size, W * 3)
    return lines.reshape(count, size, width, 3).permute(0, 3, 1, 2) @ columns.T


def _taps(length: int, other: int, stored: int, size: int) -> Tensor:
    """(size, length) weights of the pixels of one axis in each pixel kept; ``other`` is the other axis' length.

    The triangle filter of Pillow's BILINEAR: as wide as the reduction, at least one pixel, cut off at the border.
    """
    given = torch.full((), length, dtype=torch.float64)
    shorter = torch.minimum(given, torch.full((), other, dtype=torch.float64))
    resized = (given * (torch.full((), stored, dtype=torch.float64) / shorter)).round().clamp(min=stored)
    step = given / resized
    kept = torch.arange(size, dtype=torch.float64) + (resized - stored) / 2 + (stored - size) // 2
    centres = (kept + 0.5) * step
    pixels = torch.arange(length, dtype=torch.float64) + 0.5
    weights = (1 - (pixels - centres[:, None]).abs() / step.clamp(min=1)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


def weights_sha256(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers, by name."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def model_nodes(graph: ModelProto) -> list[str]:
    """Names of the nodes of the model and after it, without the preprocessing before it.

    These are the nodes that use a tensor of the model, and all nodes after them.
    """
    behind: set[str] = {each.name for each in graph.graph.initializer if each.name.startswith("model.")}
    found = []
    for node in graph.graph.node:
        if not behind.isdisjoint(node.input):
            behind.update(node.output)
            found.append(node.name)
    return found
