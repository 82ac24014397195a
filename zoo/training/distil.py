"""Knowledge distillation: a run learns the outputs of finished runs in addition to the labels.

The distance to the teachers is T^2 KL(q || p), where p is the softmax of the logits divided by the temperature T and q the mean over the
teachers of theirs (Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2; T^2 keeps the gradients
independent of T). The loss of a step is (1 - weight) loss + weight distance. Teachers see the same augmented and mixed images as the model
(Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo import recipe as recipes
from zoo import run_folders, tensor_files
from zoo.console import print_line
from zoo.errors import UsageError
from zoo.files import as_utf8
from zoo.spec import DataSet
from zoo.training import checks


@dataclass(frozen=True)
class Teacher:
    """A finished run in eval mode that takes images normalised for the model that learns from it."""

    model: nn.Module
    factor: Tensor
    """(1, 3, 1, 1), with ``shift``: from this run's normalisation to the teacher's."""
    shift: Tensor
    digest: str

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        return self.model(inputs * self.factor.to(inputs.dtype) + self.shift.to(inputs.dtype)).float()


@dataclass(frozen=True)
class Distillation:
    """Blends a loss with the distance to the mean of the teachers."""

    teachers: Sequence[Teacher]
    weight: float
    temperature: float

    @torch.no_grad()
    def targets(self, inputs: Tensor) -> Tensor:
        """Mean probabilities (N, C) of the teachers at the temperature, of images (N, 3, H, W)."""
        found = [(teacher(inputs) / self.temperature).softmax(1) for teacher in self.teachers]
        return torch.stack(found).mean(0)

    def blend(self, value: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """(1 - weight) ``value`` + weight T^2 KL(``targets`` || softmax(``logits`` / T)), the mean over rows; both (N, C)."""
        log_p = (logits / self.temperature).log_softmax(1)
        distance = nn.functional.kl_div(log_p, targets, reduction="batchmean")
        return (1 - self.weight) * value + self.weight * self.temperature**2 * distance


def read(
    names: Sequence[str], data: DataSet, size: int, device: torch.device,
    *, held: tuple[float, int], make: Callable[[str, Path, int], nn.Module],
) -> list[Teacher]:  # fmt: skip
    """The teachers of a run on ``data`` with images of ``size`` pixels.

    ``held`` is the share of validation images and the seed that selects them; ``make(model, folder, classes)`` builds an untrained network.

    Raises:
        UsageError: no such run, other classes, or images of another size. FileError: damaged weights.
    """
    found = []
    for name in names:
        folder = checks.teacher(name)
        path = folder / "weights.safetensors"
        tensors, header = tensor_files.load_weights(path)
        theirs, ours = (tuple(map(as_utf8, names)) for names in (header.classes, data.classes))
        if theirs != ours:
            first = next((f", number {i} is {a!r}, there {b!r}" for i, (a, b) in enumerate(zip(theirs, ours)) if a != b), "")
            raise UsageError(
                f"teacher has other classes (distil.teacher, {folder}, {len(theirs)} classes, the data {len(ours)}{first}); "
                "choose a run on the same classes in the same order"
            )
        if header.input[1] != size:
            raise UsageError(
                f"teacher takes images of {header.input[1]} pixels, the model of {size} (distil.teacher, {folder}); "
                f"set data.size={header.input[1]}, or choose another run"
            )
        model = make(header.model, folder, len(header.classes))
        tensor_files.load_into(model, tensors, path)
        there, here = _statistics(header.mean, header.std), _statistics(data.mean, data.std)
        factor, shift = here[1] / there[1], (here[0] - there[0]) / there[1]
        digest = hashlib.sha256("\n".join(sorted(header.digests.values())).encode()).hexdigest()[:16]
        _warn_of_other_splits(folder, held)
        model = model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        found.append(Teacher(model, factor.to(device), shift.to(device), digest))
        print_line(f"teacher  {header.model} · {folder}")
        if not run_folders.is_finished(folder):
            print_line(
                f"warning  teacher {folder.name} is not finished: its weights are the best so far, of epoch {header.epoch}"
            )
    return found


def _statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)


def _warn_of_other_splits(folder: Path, held: tuple[float, int]) -> None:
    """Print a warning if the teacher may have learned the validation images."""
    theirs = recipes.read(folder / "recipe.toml")
    if held[0] and (theirs.data.val, theirs.seed) != held:
        print_line(
            f"warning  teacher {folder.name} held out other images (data.val={theirs.data.val:g}, seed={theirs.seed}): it learned some "
            "of those that select the epoch here, so the validation accuracy is optimistic; the test accuracy is not"
        )
