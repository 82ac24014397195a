"""Several processes that train one model (started by torchrun): ranks, shares of a batch, communication.

The result is that of one process up to rounding, dropout aside: the recipe's batch size counts the images of all processes,
the order of the images is that of the counter-based generator, split by rank, the loss is taken over the logits of the whole
batch, and BatchNorm's statistics are those of the whole batch. Exception: of a batch with fewer images than processes, every process
takes all images, and BatchNorm's running variance is corrected for the number with repetitions. Only rank 0 writes files and prints.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo.errors import UsageError, ZooError
from zoo.training.signals import Interrupted

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Team:
    """The processes of one run; with one process, every method does nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the ``local_size`` processes on this machine."""
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """This process's own GPU, if GPUs are used."""
        return torch.device("cuda", self.local_rank) if self.size > 1 and wanted.type == "cuda" else wanted

    def share(self, n: int) -> slice:
        """The rows of a batch of n that this process computes: all rows if there are fewer than processes."""
        if n < self.size:
            return slice(0, n)
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def whole(self, logits: Tensor, n: int) -> Tensor:
        """Logits (n, C) of the whole batch from this process's rows of it; only these carry a gradient."""
        rows = self.share(n)
        if self.size == 1 or n < self.size:
            return logits
        full = logits.new_zeros(n, *logits.shape[1:])
        full[rows] = logits.detach()
        dist.all_reduce(full)
        return torch.cat([full[: rows.start], logits, full[rows.stop :]])

    def scaled(self, value: Tensor, n: int) -> Tensor:
        """The loss to differentiate: each process has the gradient of its rows, and DDP averages where a sum is needed."""
        return value * self.size if 1 < self.size <= n else value

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model whose backward averages gradients over the processes; BatchNorm layers become synchronous."""
        if self.size == 1:
            return model
        for module in model.modules():
            if type(module) in NORMS and module.training:
                # a bound method keeps the module's names, copies and files unchanged
                module.forward = MethodType(_batch_norm, module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch 2.15 renamed the argument
            return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)

    def agreed(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def broadcast(self, work: Callable[[], Any]) -> Any:
        """The result or error of ``work``, which runs in rank 0, in every process."""
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]
        if self.leads:
            try:
                box[0] = work()
            except (Exception, Interrupted) as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def gathered(self, part: Any) -> list[Any]:
        """The parts of all processes, in order of rank."""
        if self.size == 1:
            return [part]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part)
        return parts

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Rank 0 runs the block first, so that the others find the caches filled."""
        if not self.leads:
            self.wait()
        try:
            yield
        finally:
            if self.leads:
                self.wait()


@contextmanager
def joined() -> Iterator[Team]:
    """The team that torchrun's environment describes, or a team of one.

    Raises:
        UsageError: an environment that does not describe a team. ZooError: another process ended or cannot be reached any more.
    """
    given = os.environ.get("WORLD_SIZE", "1")
    if given == "1" or dist.is_initialized():
        yield Team()
        return
    try:
        size, local = int(given), int(os.environ.get("LOCAL_RANK", "0"))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"cannot join the other processes (WORLD_SIZE={given}, {str(error).splitlines()[0][:80]}); start them by torchrun, "
            "or unset WORLD_SIZE for a single process"
        ) from error
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), local, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ZooError(
            f"lost another of the {size} processes; its message or signal is in their log (killed: likely out of memory); "
            "start them again with --resume"
        ) from error
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum over processes; the loss of each process depends on it, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def _batch_norm(module: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """BatchNorm over the batch of all processes (Ioffe and Szegedy 2015, algorithm 1); unlike torch's, it supports CPUs."""
    if not module.training:
        return type(module).forward(module, inputs)
    dims = [0, *range(2, inputs.dim())]
    shape = [1, -1, *[1] * (inputs.dim() - 2)]
    values = inputs.float()
    count = values.new_tensor([values.numel() / values.shape[1]])
    total = _Sum.apply(torch.cat([values.sum(dims), count]))
    n = total[-1].detach()
    mean = total[:-1] / n
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(dims)) / n
    _track(module, mean.detach(), variance.detach() * n / (n - 1))
    scaled = centred * (variance + module.eps).rsqrt().view(shape)
    if module.affine:
        scaled = scaled * module.weight.view(shape) + module.bias.view(shape)
    return scaled.to(inputs.dtype)


@torch.no_grad()
def _track(module: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    if module.running_mean is None or module.running_var is None or module.num_batches_tracked is None:
        return
    module.num_batches_tracked.add_(1)
    rate = 1 / int(module.num_batches_tracked) if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean, rate)
    module.running_var.lerp_(variance, rate)
