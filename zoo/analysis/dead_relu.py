"""ReLU units that are constant for every input: their number in a net, and their causes during training.

A unit that is 0 on all inputs (or, where it is clipped as by ReLU6, at one of its two bounds) has a zero gradient. It is not lost for good, as is often claimed: it stays 0 only while the earlier
layers are unchanged, and their updates can revive it. Revivals are counted as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli._shared import RUN, UserPath, as_json, echo_json, headline

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from zoo.run import Run

WIDTHS, HIDDEN = (16, 32, 32), 64
"""Channels of the three convolutions and units of the hidden layer of the net that is trained."""


@dataclass(frozen=True)
class Layer:
    """One ReLU of a model, in the order in which they run."""

    name: str
    shape: tuple[int, ...]
    """Of its units: channels, height and width, or features."""
    dead: Tensor
    """(*shape) bool: not above 0 (or at a bound, where the activation is clipped) for any input."""

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
    """Initialisation and training of the small net; ``bias`` is where all biases start."""

    name: str
    init: str = "kaiming_normal_"
    """A function of ``torch.nn.init`` for the weights."""
    bias: float = 0.0
    lr: float = 0.02
    batch: int = 64
    norm: bool = False


SETTINGS = (
    Setting("He init, lr 0.02"),
    Setting("Xavier init", init="xavier_normal_"),
    Setting("biases start at -2", bias=-2.0),
    Setting("lr 0.1", lr=0.1),
    Setting("lr 0.1, batches of 512", lr=0.1, batch=512),
    Setting("lr 0.1, BatchNorm", lr=0.1, norm=True),
)
"""Commonly named causes and cures: initialisation, negative biases, large learning rates, larger batches, normalisation."""


@dataclass(frozen=True)
class Epoch:
    """State of one layer after an epoch (0: before training)."""

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
    """The ReLUs of a model, modules or functions, and their units that no input (N, C, H, W) of any batch activates.

    Raises:
        ValueError: no batch, or a model without ReLU.
    """
    import torch

    from zoo import machine
    from zoo.analysis._watch import Watch

    alive: list[Tensor] = []
    with torch.no_grad(), machine.eval_mode(model):
        for batch in batches:
            with Watch() as seen:
                model(batch)
            on = [unit.active.any(0) for unit in seen.units]
            alive = [before | now for before, now in zip(alive, on, strict=True)] if alive else on
    if not alive:
        raise ValueError("no units to count: the model has no ReLU, or there is no batch")
    return [Layer(f"relu {at}", tuple(each.shape), ~each) for at, each in enumerate(alive, 1)]


def small_net(setting: Setting, side: int, classes: int) -> nn.Module:
    """Three convolutions with pooling, one hidden layer; initialised as the setting says."""
    from torch import nn

    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *WIDTHS), WIDTHS):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    flat = WIDTHS[-1] * (side // 8) ** 2
    layers += [nn.Flatten(), nn.Linear(flat, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)]
    if not setting.norm:
        layers = [layer for layer in layers if not isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            getattr(nn.init, setting.init)(layer.weight)
            nn.init.constant_(layer.bias, setting.bias)
    return nn.Sequential(*layers)


def ablate(
    images: Tensor, targets: Tensor, classes: int, *, settings: Sequence[Setting] = SETTINGS, epochs: int = 5, seed: int = 0
) -> list[Epoch]:
    """Train the small net once per setting with plain SGD on ``images`` (N, 3, H, W), and count after each epoch over all of them.

    Returns:
        A row for each setting, epoch and layer. A setting ends if its loss is not finite.
    """
    import torch

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
    import torch
    import torch.nn.functional as F

    net.train()
    losses = []
    for part in torch.randperm(len(images)).split(batch):
        loss = F.cross_entropy(net(images[part]), targets[part])
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def of_run(run: Run, *, images: int = 1_000) -> list[Layer]:
    """The ReLUs of a run's model and their units that none of ``images`` evenly spread test images activates.

    Raises:
        UsageError: a model without ReLU.
    """
    import numpy as np
    import torch

    from zoo.data import _augment
    from zoo.errors import UsageError

    data = run.dataset()
    chosen = np.linspace(0, len(data.test) - 1, min(images, len(data.test))).astype(int)
    parts = np.array_split(data.test.images[chosen], max(1, len(chosen) // 250))
    size = run.input[1]
    try:
        return census(run.model, (_augment.normalise(torch.tensor(part), run.mean, run.std, size=size) for part in parts))
    except ValueError as error:
        raise UsageError(f"{error} ({run.recipe.model}); name a run whose model has ReLUs") from error


def causes(*, images: int = 1_000, epochs: int = 5) -> list[Epoch]:
    """What makes dead units, on small nets and the built-in images (:func:`ablate`)."""
    import torch

    from zoo.console import print_line
    from zoo.data import _augment, synthetic

    spec, (pixels, targets) = synthetic.SPECS["synthetic"], synthetic.make(images, 0)
    inputs = _augment.normalise(torch.tensor(pixels), spec.mean, spec.std).contiguous()
    rows = []
    for setting in SETTINGS:
        print_line(f"train    {setting.name}, {epochs} epochs")
        rows += ablate(inputs, torch.tensor(targets), len(synthetic.CLASSES), settings=[setting], epochs=epochs)
    return rows


@click.command("dead-relu")
@click.argument("run", required=False, type=RUN)
@click.option(
    "--images", type=click.IntRange(2), default=1_000, show_default=True, help="Number of images to test the units on."
)
@click.option(
    "--epochs", type=click.IntRange(1), default=5, show_default=True, help="Epochs of the small networks (without RUN)."
)
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    default="dead_relu.csv",
    show_default=True,
    help="CSV file; a picture is written next to it.",
)
@as_json
def command(run: str | None, images: int, epochs: int, out: Path, as_json: bool) -> None:
    """Count the dead ReLU units of a run.

    A unit is dead if its output is 0 on every image or, with ReLU6, at one of the bounds on every image. Without RUN, the command
    trains small networks that show the causes.

    \b
    zoo analyze dead-relu
    zoo analyze dead-relu cifar10-resnet32 --images 2000
    """
    headline()
    from zoo import run as engine
    from zoo import run_folders, tables
    from zoo.bench import _timing
    from zoo.report import _analysis

    columns: list[str]
    if run is not None:
        layers = of_run(engine.load(run_folders.find(run)), images=images)
        rows = [_layer(each) for each in layers]
        columns = [">layer", "shape", ">units", ">dead", ">%", ">dead channels"]
        cells = [[*[*row.values()][:4], tables.percent(row["dead"] / row["units"]), row["dead_channels"]] for row in rows]
    else:
        found = causes(images=images, epochs=epochs)
        rows = [asdict(each) for each in found]
        columns, cells = _analysis.causes(found)
        _analysis.dead_units(found, images, out.with_suffix(".png"))
    _timing.write_csv(out, rows)
    if as_json:
        echo_json(rows)
        return
    tables.out().print(tables.make(columns, cells))
    if run is None:
        click.echo(
            "revived   0 for every image after one epoch, but not after the next: units can recover while earlier layers learn"
        )
    click.echo(f"table     {out}" + ("" if run else f"   picture  {out.with_suffix('.png')}"))


def _layer(layer: Layer) -> dict[str, Any]:
    dead = int(layer.dead.sum())
    shape = "x".join(map(str, layer.shape))
    return {"layer": layer.name, "shape": shape, "units": layer.units, "dead": dead, "dead_channels": layer.channels}
