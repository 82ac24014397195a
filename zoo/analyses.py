"""The analysis tools on the images of a run, or on the built-in ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from zoo.analysis import dead_relu as relu
from zoo.analysis import shape_bias as stimuli
from zoo.console import counted, print_line
from zoo.data import _augment, synthetic
from zoo.errors import UsageError
from zoo.run import Run, evaluate
from zoo.spec import Split


def dead_relu(run: Run, *, images: int = 1_000) -> list[relu.Layer]:
    """The ReLUs of a run's model and which of their units none of ``images`` test images, evenly spread, switches on.

    Raises:
        UsageError: a model without ReLU.
    """
    data = run.dataset()
    chosen = np.linspace(0, len(data.test) - 1, min(images, len(data.test))).astype(int)
    parts = np.array_split(data.test.images[chosen], max(1, len(chosen) // 250))
    size = run.input[1]
    try:
        return relu.census(run.model, (_augment.normalise(torch.tensor(part), run.mean, run.std, size=size) for part in parts))
    except ValueError as error:
        raise UsageError(f"{error} ({run.recipe.model}); name a run whose model has ReLUs") from error


def dead_relu_causes(*, images: int = 1_000, epochs: int = 5) -> list[relu.Epoch]:
    """What makes dead units, on small nets and the built-in images (:func:`zoo.analysis.dead_relu.ablate`)."""
    spec, (pixels, targets) = synthetic.SPECS["synthetic"], synthetic.make(images, 0)
    inputs = _augment.normalise(torch.tensor(pixels), spec.mean, spec.std).contiguous()
    rows = []
    for setting in relu.SETTINGS:
        print_line(f"train    {setting.name}, {epochs} epochs")
        rows += relu.ablate(inputs, torch.tensor(targets), len(synthetic.CLASSES), settings=[setting], epochs=epochs)
    return rows


def shape_bias(
    run: Run, *, images: int = 2_000, seed: int = 0
) -> tuple[list[stimuli.Score], stimuli.Conflict, dict[str, np.ndarray]]:
    """How a run answers on changed test images and on cue conflicts, and eight of the images of each kind, the second mildest.

    Raises:
        UsageError: test images of a single class.
    """
    data = run.dataset()
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data.test))[:images])
    pixels, targets = data.test.images[chosen], data.test.targets[chosen]
    names = [data.test.files[i] for i in chosen]
    try:
        mixed, shape, texture = stimuli.conflicts(pixels, targets, seed)
    except ValueError as error:
        raise UsageError(f"{error} ({len(pixels)} test images of {data.name}); take more, with --images") from error

    def answers(changed: np.ndarray) -> np.ndarray:
        _, logits, _ = evaluate(run, "test", replace(data, test=Split(changed, targets, names)))
        return logits.argmax(1).numpy()

    scores: list[stimuli.Score] = []
    samples: dict[str, np.ndarray] = {}
    eight = np.linspace(0, len(pixels) - 1, 8).astype(int)
    total = 1 + sum(len(strengths) for _, strengths in stimuli.STIMULI.values())
    for kind, strength, changed in counted(stimuli.changed(pixels, seed), total, "images   answered kind"):
        if sum(each.kind == kind for each in scores) < 2:
            samples[kind] = changed[eight]
        scores.append(stimuli.score(kind, strength, answers(changed) == targets))
    samples["cue conflict"] = mixed[eight]
    return scores, stimuli.judge(answers(mixed), shape, texture), samples
