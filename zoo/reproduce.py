"""Repeat reported experiments: shipped recipes with reported results are trained unless a finished run exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from zoo import recipe as recipes
from zoo import registry, run_folders
from zoo.console import print_line
from zoo.errors import BusyError, DivergedError, UsageError, did_you_mean
from zoo.recipe import Recipe
from zoo.recipe_tables import Reported
from zoo.training.signals import Interrupted


def experiments() -> dict[str, Recipe]:
    """Shipped recipes with reported results, by name."""
    found = {name: recipes.resolve(name, {}) for name in recipes.shipped()}
    return {name: recipe for name, recipe in found.items() if recipe.reported != Reported()}


def chosen(patterns: Sequence[str]) -> list[str]:
    """Names of the experiments that match the patterns, e.g. ``s0_*``; UsageError for a pattern without a match."""
    known, wanted = list(experiments()), []
    for pattern in patterns:
        fits = [name for name in known if fnmatchcase(name, pattern.lower())]
        if not fits:
            raise UsageError(f"no experiment {pattern!r}{did_you_mean(pattern, known)}; list them with: zoo reproduce")
        wanted += fits
    return list(dict.fromkeys(wanted))


def finished(name: str, *, any_weights: bool = False) -> list[Path]:
    """Finished runs of an experiment, one per seed; ``any_weights``: whatever they start from."""
    runs = run_folders.like(recipes.resolve(name, {}), any_weights=any_weights)
    found = {seed: path for seed, path in reversed(runs) if run_folders.is_finished(path)}
    return [found[seed] for seed in sorted(found)]


def accuracies(name: str, *, any_weights: bool = False) -> list[float]:
    """Test accuracies of the finished runs of an experiment."""
    return [run_folders.result(path, "accuracy")["accuracy"] for path in finished(name, any_weights=any_weights)]


def download(recipe: Recipe) -> str:
    """The published weights that a recipe starts from, e.g. ``alexnet imagenet1k_v1``; an empty string if it needs none."""
    published = () if "/" in recipe.model else registry.entry("models", recipe.model).get("weights", ())
    return f"{recipe.model} {recipe.weights}" if recipe.weights in ("default", *published) else ""


def repeat(names: Sequence[str], *, seeds: int, fixed: Mapping[str, Any], command: str) -> list[str]:
    """Train each experiment with seeds 0 to ``seeds`` - 1, seed 0 of all experiments first; finished runs are not repeated.

    ``fixed`` are settings that may differ between the parts of a run: ``data.dir``, ``device`` and ``compile``. An
    interrupted run is resumed; a run of another process is skipped.

    Returns:
        A line for each run that diverged.

    Raises:
        Interrupted: after a signal, with the command that resumes.
    """
    from zoo import training

    diverged = []
    todo = [(name, seed) for seed in range(seeds) for name in names]
    for number, (name, seed) in enumerate(todo, 1):
        recipe = recipes.resolve(name, {**fixed, "seed": seed})
        here = [path for its_seed, path in run_folders.like(recipe) if its_seed == seed]
        if here and run_folders.is_finished(here[0]):
            continue
        folder = here[0] if here else run_folders.root() / run_folders.free(f"{name}-s{seed}")
        begun = any((folder / "last").glob("state-*"))
        print_line(f"repeat   {name} seed {seed} ({number} of {len(todo)}){' resumes' if begun else ''}")
        if begun:  # it may have been started with other settings of this kind
            recipe = recipes.resolve(str(folder / "recipe.toml"), fixed)
        try:
            training.train(recipe, out=folder, resume=begun, force=not begun, command=command)
        except BusyError as error:
            print_line(f"repeat   {name} seed {seed} skipped, another process trains it: {error}")
        except DivergedError as error:
            diverged.append(f"{name} seed {seed} diverged: {error}")
            print_line(f"repeat   {diverged[-1]}")
        except Interrupted as error:
            error.resume = command  # type: ignore[attr-defined]
            raise
    return diverged
