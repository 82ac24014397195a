"""Depthwise convolutions in training on the CPU: images/s in float32, in bf16, and in bf16 with the slow ones in float32 (as ``zoo train``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from zoo import machine, tables
from zoo.bench import _timing, training
from zoo.training import depthwise, model_specs

BASE, MIXED = "bf16", "bf16, slow ones fp32"
MODELS = (("timm/tf_efficientnet_lite0", 224), ("timm/mobilenetv3_small_100", 224), ("timm/mobilenetv3_small_100", 64))


def main(
    quick: bool = False,
    *,
    out: Path | None = None,
    models: Sequence[tuple[str, int]] = MODELS,
    batch: int = 32,
    rounds: int = 0,
) -> Path:
    """Time one training step per turn; returns the CSV. All layers are trained, on one thread."""
    out, rows = out or _timing.default_out("depthwise", quick=quick), []
    before, allocator = torch.get_num_threads(), machine.keep_memory()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    try:
        for name, size in models[:1] if quick else models:
            split = training.noise(batch, size)
            nets = {contender: _fresh(name, size) for contender in (BASE, "fp32", MIXED)}
            facts = {"model": name.removeprefix("timm/"), "pixels": size, "layers": depthwise.use_float32(nets[MIXED])}
            calls = {
                contender: training.zoo_loop(net, split, batch, device, contender.partition(",")[0])
                for contender, net in nets.items()
            }
            samples = _timing.interleave(calls, rounds=rounds or (2 if quick else 10), warmup=1)
            rows += [
                facts | training.row(contender, samples, BASE, batch) | {"allocator": allocator} | _timing.environment(device)
                for contender in samples
            ]
    finally:
        torch.set_num_threads(before)
    return _timing.write_csv(out, rows)


def _fresh(name: str, size: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_specs.sized_spec(name, size).build(10).to(memory_format=torch.channels_last)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    shown = ((row["model"], row["pixels"], *training.cells(row)) for row in rows)
    return tables.make(("model", ">pixels", "precision", ">img/s", ">95 % interval", ">ratio", ">step ms"), shown)
