"""The contenders of the focal loss benchmark, and their float64 reference."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import machine, ops
from zoo import run as runs

GAMMA = 2.0
BASE = "eager textbook"
COPY, EMPTY, OWN, OWN_KERNEL = "copy", "empty function", "zoo", "zoo kernel"
COPY_SHARES = "copy with shares"
SOFT = ("soft", "soft_cross_entropy")
"""Formulas whose targets are shares of the classes, as many bytes as the logits in float32: their copy moves these too."""
INSTRUCTION_SETS = ("default", "avx2", "avx512")

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """``call(logits (N, C), target (N,) or (N, C), weight (C,))`` gives the mean loss; ``formula`` says which loss it is."""

    name: str
    call: Loss
    formula: str = "focal"
    """``focal``, ``cross_entropy`` (gamma 0, divided by the sum of weights), ``sigmoid`` (C two-class losses), ``soft`` (focal
    of shares) or ``soft_cross_entropy`` (gamma 0, no weights)."""
    optional: bool = False
    """It may fail on this machine (no compiler, a broken install) and is then skipped with a message."""
    inplace: bool = False
    """It writes over its logits, which must not be a leaf."""


def textbook(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The common implementation: l = -w_y (1 - p_t)^gamma log p_t with p_t from the softmax (Lin et al. 2017, eq. 4 and 5)."""
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
    """torchvision's two-class form over C outputs; it needs one-hot targets, which are created outside the timing."""
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(logits, target, alpha=-1, gamma=GAMMA, reduction="mean")


def mmcv_softmax(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """mmcv's CUDA extension; -1 disables its alpha factor of 0.25."""
    from mmcv.ops import softmax_focal_loss

    return softmax_focal_loss(logits, target, GAMMA, -1, weight, "mean")


def liger_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Liger's Triton kernel, which writes its gradient over the logits."""
    from liger_kernel.transformers.functional import liger_cross_entropy as computed

    return computed(logits, target, weight)


def own(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The op as a user calls it: autograd, a fresh gradient."""
    return ops.focal_loss(logits, target, gamma=GAMMA, weight=weight)


def own_in_place(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The same, with the gradient written over the logits."""
    return ops.focal_loss(logits, target, gamma=GAMMA, weight=weight, inplace=True)


def own_shares(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return ops.focal_loss(logits, target, gamma=GAMMA)


def own_shares_gamma_0(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return ops.focal_loss(logits, target, gamma=0.0)


def own_shares_in_place(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return ops.focal_loss(logits, target, gamma=GAMMA, inplace=True)


def cross_entropy_of_shares(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return F.cross_entropy(logits, target)


def for_shares() -> list[Contender]:
    """Contenders with class shares as targets."""
    return [
        Contender("F.cross_entropy, shares", cross_entropy_of_shares, "soft_cross_entropy"),
        Contender("zoo, shares, gamma 0", own_shares_gamma_0, "soft_cross_entropy"),
        Contender("zoo, shares", own_shares, "soft"),
        Contender("zoo, shares, in place", own_shares_in_place, "soft", inplace=True),
    ]


class Handed(torch.autograd.Function):
    """Returns the memory of ``buffer`` as a layer's new output, neither a leaf nor a view, at no cost."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, buffer: Tensor) -> Tensor:
        return torch.empty(0, dtype=buffer.dtype, device=buffer.device).set_(
            buffer.untyped_storage(), 0, buffer.shape, buffer.stride()
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


def absent(device: str) -> list[str]:
    """Reasons why well-known implementations have no rows on ``device``, one line each."""
    peers = {
        "Liger": ("liger_kernel", "its kernels are in Triton, which needs a GPU"),
        "mmcv": ("mmcv", "its softmax_focal_loss has no CPU kernel"),
    }
    found = []
    for name, (module, why) in peers.items():
        if device == "cpu":
            found.append(f"no row of {name}: {why}")
        elif importlib.util.find_spec(module) is None:
            found.append(f"no row of {name}: not installed")
    if not hasattr(F, "linear_cross_entropy"):
        found.append(f"no row of F.linear_cross_entropy: it is in torch from 2.15 on, this is {torch.__version__}")
    return found


def all_of(device: torch.device, *, compiled: bool) -> list[Contender]:
    """Those that can run on ``device``; compiling takes half a minute per size and is optional."""
    found = [Contender(BASE, textbook), Contender("eager stable", stable)]
    if compiled:
        torch._dynamo.reset()
        found.append(Contender("torch.compile", machine.compiled(stable), optional=True))
        if device.type == "cuda":  # on the CPU it tunes only matrix products, which do not occur
            tuned = machine.compiled(stable, mode="max-autotune-no-cudagraphs")
            found.append(Contender("torch.compile max-autotune", tuned, optional=True))
    found.append(Contender("F.cross_entropy", weighted_cross_entropy, "cross_entropy"))
    found.append(Contender("torchvision sigmoid", torchvision_sigmoid, "sigmoid", optional=True))
    if device.type == "cuda" and importlib.util.find_spec("mmcv"):
        found.append(Contender("mmcv softmax", mmcv_softmax, optional=True))
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        found.append(Contender("Liger", liger_cross_entropy, "cross_entropy", optional=True, inplace=True))
    return [*found, Contender(OWN, own), Contender("zoo in place", own_in_place, inplace=True), *for_shares()]


def truth(formula: str, logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Loss () and gradient (N, C) in float64 of the values that ``logits`` (any type) has; target (N,) or shares (N, C)."""
    z = logits.detach().double().requires_grad_()
    if formula in SOFT:
        log_p = z.log_softmax(1)
        factor = (-torch.expm1(log_p)) ** GAMMA if formula == "soft" else 1
        loss = -(target.double() * factor * log_p).sum(1).mean()
        loss.backward()
        assert z.grad is not None
        return loss.detach(), z.grad
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
    """A copy of as many bytes as the loss must move: logits and labels read, and with ``backward`` a gradient written."""
    moved = logits.nbytes * (2 if backward else 1) + target.nbytes
    source = torch.zeros(max(1, moved // 8), dtype=torch.float32, device=logits.device)  # a copy reads 4 and writes 4 bytes
    goal = torch.empty_like(source)
    goal.copy_(source)
    return lambda: goal.copy_(source)


def kernel_of(logits: Tensor, target: Tensor, weight: Tensor, *, backward: bool) -> Callable[[], object] | None:
    """The compiled kernel alone, on reused buffers; None if the extension lacks the entry point."""
    if ops._C is None or not logits.is_cpu:
        return None
    loss, grad = torch.empty(()), torch.empty_like(logits) if backward else None
    return lambda: ops._C.run(logits, target, weight, grad, loss, GAMMA, -100, 0.0, "mean", 1.0)  # type: ignore[union-attr]


def kernels_of(
    logits: Tensor, target: Tensor, weight: Tensor, *, backward: bool, sets: bool
) -> dict[str, Callable[[], object]]:
    """:func:`kernel_of` by name; with ``sets`` also under each other supported instruction set."""
    call = kernel_of(logits, target, weight, backward=backward)
    if call is None or ops._C is None:
        return {}
    found, chosen = {OWN_KERNEL: call}, ops._C.capability(None)
    for name in INSTRUCTION_SETS if sets else ():
        try:
            if ops._C.capability(name) != chosen:
                found[f"{OWN_KERNEL} {name}"] = _switched(call, name, chosen)
        except ValueError:
            continue
    ops._C.capability(chosen)
    return found


def _switched(call: Callable[[], object], name: str, back: str) -> Callable[[], object]:
    """The call under another instruction set; switching twice takes 0.1 us."""
    switch = ops._C.capability  # type: ignore[union-attr]

    def switched() -> None:
        switch(name)
        try:
            call()
        finally:
            switch(back)

    return switched


def empty_of(logits: Tensor, *, backward: bool) -> Callable[[], object]:
    """An autograd function that only fills a scalar and returns a new buffer: the overhead of any loss.

    A buffer with another reference would be copied into ``leaf.grad``.
    """
    leaf = logits.detach().requires_grad_(backward)

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.new_zeros((), dtype=torch.float32)

        @staticmethod
        def backward(ctx: Any, _: Tensor) -> Tensor:
            return torch.empty_like(logits)

    def call() -> None:
        loss = Empty.apply(leaf)
        if backward:
            loss.backward()
            leaf.grad = None

    return call


class Step:
    """A whole float32 training step of ``model`` on one batch, which also records the time of its loss.

    That is the loss's forward call, and its backward up to the gradient of the logits. With ``sync`` the device is
    synchronised at each of these points.
    """

    BATCH, CLASSES = 128, 10

    def __init__(self, model: str, contender: Contender, device: torch.device, sync: Callable[[], object] | None) -> None:
        draw = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = runs.create_model(model, self.CLASSES).to(device).to(memory_format=torch.channels_last).train()
        self.inputs = torch.randn(self.BATCH, 3, 32, 32, generator=draw).to(device, memory_format=torch.channels_last)
        self.target = torch.randint(self.CLASSES, (self.BATCH,), generator=draw).to(device)
        self.weight = torch.ones(self.CLASSES, device=device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.loss, self.sync = contender.call, sync or (lambda: None)
        self.shares: list[float] = []

    @property
    def share(self) -> float:
        """Median over the steps so far of the loss's part in [0, 1]."""
        return statistics.median(self.shares)

    def _now(self) -> int:
        self.sync()
        return time.perf_counter_ns()

    def __call__(self) -> None:
        begin = self._now()
        logits = self.net(self.inputs)
        marks = [self._now()]
        logits.register_hook(lambda _: marks.append(self._now()))
        loss = self.loss(logits, self.target, self.weight)
        marks.append(self._now())
        self.optimizer.zero_grad()
        marks.append(self._now())
        loss.backward()
        self.optimizer.step()
        end = self._now()
        before, called, turned, arrived = marks
        self.shares.append((called - before + arrived - turned) / (end - begin))
