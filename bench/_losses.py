"""The contenders of the focal loss benchmark, and the float64 truth each of them is held to."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import ops

GAMMA = 2.0
BASE = "eager textbook"
COPY, OWN, OWN_KERNEL = "copy", "zoo", "zoo kernel"

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """``call(logits (N, C), target (N,) or (N, C), weight (C,))`` gives the mean loss; ``formula`` says which loss it is."""

    name: str
    call: Loss
    formula: str = "focal"
    """``focal``, ``cross_entropy`` (gamma 0, divided by the sum of weights) or ``sigmoid`` (C two-class losses)."""
    optional: bool = False
    """It may fail on this machine (no compiler, a broken install) and is then left out, saying so."""


def textbook(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """As most people write it: l = -w_y (1 - p_t)^gamma log p_t with p_t from the softmax (Lin et al. 2017, eq. 4 and 5)."""
    p = logits.softmax(1).gather(1, target[:, None]).squeeze(1)
    return (-weight[target] * (1 - p) ** GAMMA * p.log()).mean()


def stable(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The same in log space: log p_t by log_softmax, 1 - p_t by expm1."""
    log_p = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)
    return (-weight[target] * (-torch.expm1(log_p)) ** GAMMA * log_p).mean()


def weighted_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's own; half types need a weight of their type."""
    return F.cross_entropy(logits, target, weight.to(logits.dtype))


def torchvision_sigmoid(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """torchvision's two-class form over C outputs; it takes one-hot targets, which are made outside the time."""
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(logits, target, alpha=-1, gamma=GAMMA, reduction="mean")


def mmcv_softmax(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """mmcv's CUDA extension; its alpha 0.25 factor is left out by -1."""
    from mmcv.ops import softmax_focal_loss

    return softmax_focal_loss(logits, target, GAMMA, -1, weight, "mean")


def own(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The op as a user calls it: autograd, a fresh gradient."""
    return ops.focal_loss(logits, target, gamma=GAMMA, weight=weight)


def all_of(where: torch.device, *, compiled: bool) -> list[Contender]:
    """Those that can run on ``where``; compiling takes half a minute a size, so it can be left out."""
    found = [Contender(BASE, textbook), Contender("eager stable", stable)]
    if compiled:
        torch._dynamo.reset()
        found.append(Contender("torch.compile", torch.compile(stable, dynamic=False), optional=True))
        if where.type == "cuda":  # on the CPU it only tunes matrix products, of which there are none
            tuned = torch.compile(stable, dynamic=False, mode="max-autotune-no-cudagraphs")
            found.append(Contender("torch.compile max-autotune", tuned, optional=True))
    found.append(Contender("F.cross_entropy", weighted_cross_entropy, "cross_entropy"))
    found.append(Contender("torchvision sigmoid", torchvision_sigmoid, "sigmoid", optional=True))
    if where.type == "cuda" and importlib.util.find_spec("mmcv"):
        found.append(Contender("mmcv softmax", mmcv_softmax, optional=True))
    return [*found, Contender(OWN, own)]


def truth(formula: str, logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Loss () and gradient (N, C) in float64 of the values that ``logits`` (any type) has; target (N,)."""
    z = logits.detach().double().requires_grad_()
    w = weight.double()
    if formula == "sigmoid":
        signed = torch.where(F.one_hot(target, z.shape[1]) == 1, z, -z)
        loss = -((GAMMA * F.logsigmoid(-signed)).exp() * F.logsigmoid(signed)).mean()
    elif formula == "cross_entropy":
        loss = F.cross_entropy(z, target, w)
    else:
        log_p = z.log_softmax(1)
        mine = F.one_hot(target, z.shape[1]) == 1
        log_q = log_p.masked_fill(mine, -torch.inf).logsumexp(1)  # log(1 - p_t) from the other classes: no cancellation
        loss = -(w[target] * (GAMMA * log_q).exp() * log_p.gather(1, target[:, None]).squeeze(1)).mean()
    loss.backward()
    assert z.grad is not None
    return loss.detach(), z.grad


def copy_of(logits: Tensor, target: Tensor, *, backward: bool) -> Callable[[], object]:
    """A copy that moves as many bytes as the loss must: logits and labels read, and with ``backward`` a gradient written."""
    moved = logits.nbytes * (2 if backward else 1) + target.nbytes
    source = torch.zeros(max(1, moved // 8), dtype=torch.float32, device=logits.device)  # a copy reads 4 and writes 4 bytes
    goal = torch.empty_like(source)
    goal.copy_(source)
    return lambda: goal.copy_(source)


def kernel_of(logits: Tensor, target: Tensor, weight: Tensor, *, backward: bool) -> Callable[[], object] | None:
    """The compiled kernel alone, on buffers that are used again; None where the extension has no such entry."""
    if ops._C is None or not logits.is_cpu:
        return None
    loss, grad = torch.empty(()), torch.empty_like(logits) if backward else None
    return lambda: ops._C.run(logits, target, weight, grad, loss, GAMMA, -100, 0.0, "mean", 1.0)  # type: ignore[union-attr]
