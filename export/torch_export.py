"""torch.export's .pt2: the traced program with any batch size, for PyTorch without the model's code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from zoo.export import _tracing
from zoo.export._cases import Answer
from zoo.spec import TargetSpec

if TYPE_CHECKING:
    from zoo.export._job import Job

TARGET = TargetSpec(format="pt2", suffix=".pt2", tolerance=1e-4)


def make(job: Job) -> torch.export.ExportedProgram:
    """The traced program; FileError if the model cannot be traced."""
    example, free = job.exported.example()
    with torch.no_grad(), _tracing.tracing():
        return torch.export.export(job.exported, (example,), dynamic_shapes=free, strict=False)


def write(program: torch.export.ExportedProgram, path: Path, facts: Mapping[str, str]) -> None:
    """The file; ``facts`` are in it as ``zoo.json``."""
    torch.export.save(program, path, extra_files={"zoo.json": json.dumps(dict(facts))})


def answer(path: Path) -> Answer:
    """Outputs of the file for its inputs."""
    program = torch.export.load(path).module()

    def run(inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(program(torch.from_numpy(inputs)).numpy())

    return run
