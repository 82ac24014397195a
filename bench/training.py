"""Training speed: images/s of ResNet-32 steps, a common training loop against zoo's settings on the same images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from zoo import machine, tables
from zoo import run as runs
from zoo.bench import _timing
from zoo.spec import Split
from zoo.training.batches import Batches
from zoo.training.loop import Step, train_epoch

BASE = "usual trainer"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class PerImage(Dataset[tuple[Tensor, int]]):
    """Images one by one through torchvision's transforms, as in most CIFAR scripts."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.transform = v2.Compose([
            v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip(), v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[number])), int(self.split.targets[number])


def main(
    quick: bool = False, *, out: Path | None = None, model: str = "resnet32", batch: int = 128, steps: int = 0, rounds: int = 0
) -> Path:
    """Time ``steps`` training steps per turn; returns the CSV.

    glibc keeps freed memory in every contender here, since the setting applies to the whole process; it favours the common
    loop, which does not set it.
    """
    out = out or _timing.default_out("training", quick=quick)
    device = machine.device("auto")
    steps = steps or (5 if quick else 20)
    before, allocator = torch.get_num_threads(), machine.keep_memory()
    torch.set_num_threads(machine.cores())
    try:
        split = noise(batch * steps)
        best = machine.precision("auto", device)
        calls = {BASE: _usual(model, split, batch, device), "zoo fp32": _zoo(model, split, batch, device, "fp32")}
        if best != "fp32":
            calls[f"zoo {best}"] = _zoo(model, split, batch, device, best)
        if not quick:
            calls[f"zoo {best} compiled"] = _zoo(model, split, batch, device, best, compiled=True)
        sync = torch.cuda.synchronize if device.type == "cuda" else None
        samples = _timing.interleave(calls, rounds=rounds or (2 if quick else 10), warmup=1, sync=sync)
        rows = [
            {"model": model} | row(name, samples, BASE, batch, steps) | {"allocator": allocator} | _timing.environment(device)
            for name in samples
        ]
    finally:
        torch.set_num_threads(before)
    return _timing.write_csv(out, rows)


def noise(count: int, side: int = 32) -> Split:
    """Images (``count``, ``side``, ``side``, 3) of noise in ten classes."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Split(images, draw.integers(0, 10, count), [f"noise[{number}]" for number in range(count)])


def _fresh(model: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return runs.create_model(model, 10)


def _usual(model: str, split: Split, batch: int, device: torch.device) -> Callable[[], object]:
    """float32, NCHW, a DataLoader with one worker per core, restarted each epoch (so that it is idle in the turns of others)."""
    net = _fresh(model).to(device).train()
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loader = DataLoader(PerImage(split), batch, shuffle=True, num_workers=machine.cores(), pin_memory=device.type == "cuda")

    def epoch() -> None:
        for images, targets in loader:
            optimizer.zero_grad()
            value = loss(net(images.to(device, non_blocking=True)), targets.to(device, non_blocking=True))
            value.backward()
            optimizer.step()
            value.item()

    return epoch


def _zoo(
    model: str, split: Split, batch: int, device: torch.device, precision: str, *, compiled: bool = False
) -> Callable[[], object]:
    """The loop of ``zoo train``: batched augmentation on uint8 images in memory, channels_last, ``precision``."""
    net = _fresh(model).to(device).to(memory_format=torch.channels_last)
    called: Any = machine.compiled(net) if compiled else net
    return zoo_loop(called, split, batch, device, precision)


def zoo_loop(net: nn.Module, split: Split, batch: int, device: torch.device, precision: str) -> Callable[[], object]:
    """An epoch of ``net`` over ``split`` by the loop of ``zoo train``."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = Batches(split, np.arange(len(split)), batch, device, MEAN, STD, split.images.shape[1], augment=["crop", "flip"])
    step = Step(optimizer, lambda _: 0.01, device, precision)
    loss, epochs = nn.CrossEntropyLoss(), itertools.count()
    return lambda: train_epoch(net, loss, batches, step, epoch=next(epochs))


def row(name: str, samples: Mapping[str, _timing.Sample], base: str, batch: int, steps: int = 1) -> dict[str, Any]:
    """The speed of the contender ``name``, which makes ``steps`` training steps per turn, and its ratio to ``base``."""
    sample = samples[name]
    count = batch * steps * 1e9
    slow, fast = (count / time for time in reversed(sample.interval))
    found = {
        "contender": name, "batch": batch, "steps": steps, "threads": torch.get_num_threads(), "step_ms": sample.median / 1e6 / steps,
        "images_per_s": count / sample.median, "low": slow, "high": fast, "ratio": _timing.ratio(samples[base], sample),
        "noisy": "yes" if sample.noisy else "no", "rounds": sample.rounds,
    }  # fmt: skip
    return {key: _timing.rounded(value) for key, value in found.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    return tables.make(("contender", ">img/s", ">95 % interval", ">ratio", ">step ms"), map(cells, rows))


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Contender, images/s, interval, ratio and step time of a row."""
    speed, low, high, ratio, step = (float(row[key]) for key in ("images_per_s", "low", "high", "ratio", "step_ms"))
    mark = " (noisy)" if row["noisy"] == "yes" else ""
    return f"{row['contender']}{mark}", f"{speed:,.0f}", f"{low:,.0f}-{high:,.0f}", f"{ratio:.2f}", f"{step:,.0f}"
