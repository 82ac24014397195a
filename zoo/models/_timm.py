"""Weights of timm, for timm's networks and for others of the same parameter names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from zoo.spec import Download


def download(full: str) -> Download:
    """Source of timm's weights ``architecture.tag``: the Hugging Face hub if available, else their own address."""
    config: Any = timm.get_pretrained_cfg(full)
    if config.hf_hub_id:
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        file = config.hf_hub_filename or "model.safetensors"
        return Download(f"{hub}/{config.hf_hub_id}/resolve/main/{file}", f"{full}{Path(file).suffix}", _reader(full))
    return Download(config.url, config.url.rsplit("/", 1)[-1], _reader(full))


def _reader(full: str) -> Callable[[Path], dict[str, Tensor]]:
    """timm reads the file, since some of its files need their names converted."""

    def read(path: Path) -> dict[str, Tensor]:
        model = timm.create_model(full, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
        return dict(model.state_dict())

    return read
