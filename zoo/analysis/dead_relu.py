"""ReLU units that are 0 for every input: how many a net has, and what makes them while it trains.

A unit that is 0 on all inputs has no gradient of its own. It is not lost for good, as is often said: it stays 0 only while the
layers before it and its inputs stay as they are, and their updates may bring it back. So revivals are counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.analysis._watch import Watch

WIDTHS, HIDDEN = (16, 32, 32), 64
"""Channels of the three convolutions and units of the hidden layer of the net that is trained."""


@dataclass(frozen=True)
class Layer:
    """One ReLU of a model, in the order in which they run."""

    name: str
    shape: tuple[int, ...]
    """Of its units: channels, height and width, or features."""
    dead: Tensor
    """(*shape) bool: not above 0 for any input."""

    @property
    def units(self) -> int:
        """Number of units."""
        return self.dead.numel()

    @property
    def channels(self) -> int:
        """Channels of which every unit is dead."""
        return int(self.dead.flatten(1).all(1).sum()) if self.dead.dim() > 1 else int(self.dead.sum())


@dataclass(frozen=True)
class Setting:
    """How the small net is made and trained; ``bias`` is where all biases start."""

    name: str
    init: Callable[[Tensor], object] = nn.init.kaiming_normal_
    bias: float = 0.0
    lr: float = 0.02
    batch: int = 64
    norm: bool = False


SETTINGS = (
    Setting("He init, lr 0.02"),
    Setting("Xavier init", init=nn.init.xavier_normal_),
    Setting("biases start at -2", bias=-2.0),
    Setting("lr 0.1", lr=0.1),
    Setting("lr 0.1, batches of 512", lr=0.1, batch=512),
    Setting("lr 0.1, BatchNorm", lr=0.1, norm=True),
)
"""Causes and cures that are usually named: initialisation, negative biases, large rates, more points a step, normalisation."""


@dataclass(frozen=True)
class Epoch:
    """What one layer was after an epoch (0: before training)."""

    setting: str
    epoch: int
    layer: str
    units: int
    dead: int
    revived: int
    """Units that were dead an epoch before and are not now."""
    loss: float
    """Mean training loss of the epoch; nan before training."""


def census(model: nn.Module, batches: Iterable[Tensor]) -> list[Layer]:
    """The ReLUs of a model, modules or functions, and which of their units no input (N, C, H, W) of all batches switches on.

    Raises:
        ValueError: no batch, or a model without ReLU.
    """
    alive: list[Tensor] = []
    model.eval()
    with torch.no_grad():
        for batch in batches:
            with Watch() as seen:
                model(batch)
            on = [(unit > 0).any(0) for unit in seen.units]
            alive = [before | now for before, now in zip(alive, on, strict=True)] if alive else on
    if not alive:
        raise ValueError("nothing to count: the model has no ReLU, or there is no batch")
    return [Layer(f"relu {at}", tuple(each.shape), ~each) for at, each in enumerate(alive, 1)]


def small_net(setting: Setting, side: int, classes: int) -> nn.Module:
    """Three convolutions with pooling, one hidden layer; initialised as the setting says."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *WIDTHS), WIDTHS):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    flat = WIDTHS[-1] * (side // 8) ** 2
    layers += [nn.Flatten(), nn.Linear(flat, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)]
    if not setting.norm:
        layers = [layer for layer in layers if not isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            setting.init(layer.weight)
            nn.init.constant_(layer.bias, setting.bias)
    return nn.Sequential(*layers)


def ablate(
    images: Tensor, targets: Tensor, classes: int, *, settings: Sequence[Setting] = SETTINGS, epochs: int = 5, seed: int = 0
) -> list[Epoch]:
    """Train the small net once a setting with plain SGD on ``images`` (N, 3, H, W), and count after each epoch over all of them.

    Returns:
        A row for each setting, epoch and layer. A loss that is no number any more ends a setting.
    """
    rows = []
    for setting in settings:
        torch.manual_seed(seed)
        net = small_net(setting, images.shape[-1], classes)
        step = torch.optim.SGD(net.parameters(), lr=setting.lr)
        before: list[Layer] = []
        loss = float("nan")
        for epoch in range(epochs + 1):
            if epoch:
                loss = _epoch(net, step, images, targets, setting.batch)
            now = census(net, images.split(500))
            for at, layer in enumerate(now):
                revived = int((before[at].dead & ~layer.dead).sum()) if before else 0
                rows.append(Epoch(setting.name, epoch, layer.name, layer.units, int(layer.dead.sum()), revived, loss))
            before = now
            if epoch and not torch.isfinite(torch.tensor(loss)):
                break
    return rows


def _epoch(net: nn.Module, step: torch.optim.Optimizer, images: Tensor, targets: Tensor, batch: int) -> float:
    net.train()
    losses = []
    for part in torch.randperm(len(images)).split(batch):
        loss = F.cross_entropy(net(images[part]), targets[part])
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)
