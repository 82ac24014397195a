"""Depthwise convolutions in training on the CPU: images/s in float32, in bf16, and in bf16 with the slow ones in float32 (as ``zoo train``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from zoo import machine, tables
from zoo.bench import _timing, training
from zoo.training import depthwise, model_specs

BASE = "bf16"
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
            calls, changed = {}, 0
            for contender, precision in ((BASE, "bf16"), ("fp32", "fp32"), ("bf16, slow ones fp32", "bf16")):
                torch.manual_seed(0)
                net = model_specs.sized_spec(name, size).build(10).to(memory_format=torch.channels_last)
                changed = depthwise.use_float32(net) if contender.startswith("bf16,") else 0
                calls[contender] = training.zoo_loop(net, split, batch, device, precision)
            samples = _timing.interleave(calls, rounds=rounds or (2 if quick else 10), warmup=1)
            for contender, sample in samples.items():
                row = {
                    "model": name.removeprefix("timm/"), "pixels": size, "contender": contender, "batch": batch, "threads": 1,
                    "layers": changed, "images_per_s": batch * 1e9 / sample.median, "ratio": _timing.ratio(samples[BASE], sample),
                    "noisy": "yes" if sample.noisy else "no", "rounds": sample.rounds, "allocator": allocator,
                }  # fmt: skip
                rows.append({key: _timing.rounded(value) for key, value in row.items()} | _timing.environment(device))
    finally:
        torch.set_num_threads(before)
    return _timing.write_csv(out, rows)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    shown = (
        (row["model"], str(row["pixels"]), row["contender"], f"{float(row['images_per_s']):,.0f}", f"{float(row['ratio']):.2f}")
        for row in rows
    )
    return tables.make(("model", ">pixels", "precision", ">img/s", ">ratio"), shown)
