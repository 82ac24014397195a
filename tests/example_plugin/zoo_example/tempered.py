"""Cross entropy of logits that are divided by a temperature: the smallest file that adds a loss with its own option."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.spec import LossSpec, Option


class Tempered(nn.Module):
    """CE(z / T, y) of logits (N, C) and target (N,)."""

    def __init__(self, weight: Tensor | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.temperature = temperature

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits / self.temperature, target, self.weight)


def reference(logits: Tensor, target: Tensor, weight: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """-sum_n w_y log softmax(z / T)_y / sum_n w_y."""
    w = logits.new_ones(logits.shape[1]) if weight is None else weight
    log_p = (logits / temperature).log_softmax(1).gather(1, target[:, None]).squeeze(1)
    return -(w[target] * log_p).sum() / w[target].sum()


SPECS = {
    "tempered": LossSpec(
        build=Tempered,
        reference=reference,
        paper="an example",
        options={"temperature": Option("float", 1.0, "divisor of the logits", gt=0, le=100)},
        weighted_mean=True,
    ),
}
