"""Class-balanced softmax focal loss: a module that calls :func:`zoo.ops.focal_loss`, and its plain formula."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo import ops
from zoo.losses._inputs import divisor
from zoo.spec import LossSpec, Option


class FocalLoss(nn.Module):
    """l = -w_y (1 - p_t)^gamma log p_t over logits (N, C) or (N, C, d1, ...); see :func:`zoo.ops.focal_loss`.

    ``weight`` (C,) is a tensor, an array or a list of numbers, for example :func:`zoo.effective_weights` of the class counts.

    For soft labels (class probabilities q), as in mixup and cutmix, l = -sum_c w_c q_c (1 - p_c)^gamma log p_c (Mukhoti et al.
    2020). This loss is linear in q: for a mixture of two labels, it is the mixture of the two losses (Zhang et al. 2018, mixup).

    Example:
        >>> loss = FocalLoss(gamma=2.0)
        >>> round(loss(torch.zeros(1, 2), torch.tensor([0])).item(), 4)  # 0.5^2 log 2
        0.1733
    """

    weight: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        weight: ops.Weight | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if weight is not None and not isinstance(weight, Tensor):
            weight = torch.as_tensor(weight, dtype=torch.get_default_dtype())
        self.register_buffer("weight", weight)
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.scale = scale

    def forward(self, logits: Tensor, target: ops.Target) -> Tensor:
        return ops.focal_loss(logits, target, **self._options())

    def with_stats(self, logits: Tensor, target: ops.Target) -> ops.WithStats:
        """The loss, p_t of each row and the mean modulating factor."""
        return ops.focal_loss_with_stats(logits, target, **self._options())

    def divisor(self, target: Tensor) -> float:
        """By what the sum over the rows of ``target`` is divided, unless ``reduction`` is ``sum`` or ``none``."""
        weight = self.weight if self.reduction == "weighted_mean" else None
        return divisor(target, weight, shares=False, ignored=self.ignore_index)

    def _options(self) -> dict:
        names = ("gamma", "weight", "ignore_index", "label_smoothing", "reduction", "scale")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"


def build(weight: Tensor | None = None, focal_gamma: float = 2.0, label_smoothing: float = 0.0) -> FocalLoss:
    """The module from a recipe's options; ``weight`` (C,)."""
    return FocalLoss(focal_gamma, weight, label_smoothing=label_smoothing)


def reference(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, focal_gamma: float = 2.0, label_smoothing: float = 0.0
) -> Tensor:
    """The mean over rows in plain PyTorch, for moderate logits (N, C) (Lin et al. 2017; Mukhoti et al. 2020)."""
    classes = logits.shape[1]
    log_p = logits.log_softmax(1)
    smoothed = (1 - label_smoothing) * nn.functional.one_hot(target, classes) + label_smoothing / classes  # (N, C)
    w = torch.ones(classes, dtype=logits.dtype) if weight is None else weight.to(logits.dtype)
    return -(w * smoothed * (-torch.expm1(log_p)) ** focal_gamma * log_p).sum(1).mean()


SPECS = {
    "focal": LossSpec(
        build=build,
        reference=reference,
        paper="Lin et al. 2017, arXiv:1708.02002; class-balanced: Cui et al. 2019, arXiv:1901.05555",
        options={
            "focal_gamma": Option("float", 2.0, "exponent of the modulating factor (1 - p_t)", ge=0, le=100),
            "label_smoothing": Option("float", 0.0, "share of the target distribution spread over all classes", ge=0, lt=1),
        },
        soft=True,
        fused=True,
    ),
}
