"""The fused focal loss as an operator: its formula in PyTorch, and the compiled kernels where they are.

Placeholder until the kernels land: the formula alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kernel() -> str:
    """What computes the loss, in one line."""
    return "PyTorch formula"


def focal_loss(
    logits: Tensor, target: Tensor, gamma: float = 2.0, weight: Tensor | None = None, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Class-balanced softmax focal loss of logits (N, C) and target (N,): -w_y (1 - p_y)^gamma log p_y (Lin et al. 2017, eq. 4)."""
    log_p = F.log_softmax(logits, 1)
    log_t = log_p.gather(1, target[:, None])[:, 0]
    others = torch.logsumexp(log_p.scatter(1, target[:, None], -torch.inf), 1)
    rows = -torch.exp(gamma * others) * log_t if gamma else -log_t
    rows = rows if weight is None else rows * weight[target]
    return rows.mean() if reduction == "mean" else rows.sum() if reduction == "sum" else rows
