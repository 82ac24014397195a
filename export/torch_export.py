"""torch.export's .pt2: the traced program with any batch size, for PyTorch without the model's code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from zoo.export._cases import Answer
from zoo.export._graph import Exported
from zoo.spec import TargetSpec

TARGET = TargetSpec(suffix=".pt2", tolerance=1e-4, format="pt2")


def write(model: Exported, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Trace and save; the metadata lies in the file as ``zoo.json``."""
    full, size = model.preprocess == "full", model.size
    example = torch.zeros(2, size + 3, size + 5, 3, dtype=torch.uint8) if full else torch.zeros(2, 3, size, size)
    free = {axis: torch.export.Dim(name, min=1) for axis, name in enumerate(("batch", "height", "width")[: 3 if full else 1])}
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=(free,), strict=False)
    torch.export.save(program, path, extra_files={"zoo.json": json.dumps(dict(metadata or {}))})


def answer(path: Path) -> Answer:
    """What the file gives for inputs as it takes them."""
    program = torch.export.load(path).module()

    def run(inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(program(torch.from_numpy(inputs)).numpy())

    return run
