"""Train a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo.cli._settings import RecipeCommand
from zoo.cli._shared import Name, UserPath, echo_line, headline, recipe_names, registered, start, threads


class _Train(RecipeCommand):
    settings = {  # noqa: RUF012
        "Data": ("data.name", "data.dir", "data.skip_bad", "data.val", "data.imbalance", "allow_empty_class"),
        "Model": ("weights", "freeze", "allow_random_frozen"),
        "Loss and sampling": (*("loss.name", "loss.class_weights", "loss.beta", "loss.drw_epoch", "sampler.name", "loss.*"),),
        "Optimisation": (
            *("epochs", "batch_size", "optim.name", "optim.lr", "optim.lr_head", "optim.layer_decay", "optim.weight_decay"),
            *("schedule.name", "schedule.warmup", "schedule.lr_gamma", "select_on", "qat", "seed"),
        ),
        "Hardware": ("device", "precision", "threads", "compile", "deterministic"),
        "Saving": ("save_every", "on_full"),
    }
    types = {"data.name": Name(registered("data")), "loss.name": Name(registered("losses"))}  # noqa: RUF012


@click.command("train", cls=_Train)
@click.argument("what", required=False, type=Name(registered("models"), recipe_names))
@click.argument("settings", nargs=-1)
@click.option("--out", type=UserPath(), help="Run folder (default: a new folder in runs, named after the settings).")
@threads
@click.option("--resume", is_flag=True, help="Resume RUN, the run in --out, or the latest run.")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
@click.option("--profile", is_flag=True, help="Profile the run: time per part of a step, time per operator, and a trace.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and its warnings; do not train.")
def command(
    what: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    resume: bool,
    force: bool,
    profile: bool,
    dry_run: bool,
    **flags: Any,
) -> None:
    """Train a model and evaluate it on the test images.

    WHAT is a model (zoo models), a recipe (zoo recipes), a recipe file (TOML, YAML, JSON), FILE.py:NAME (your own model),
    hf:OWNER/NAME (the model and weights of a repository on the Hugging Face Hub), or a run (its recipe, starting from its
    weights). The default is the recipe demo. SETTINGS are key=value pairs that override the recipe, as the options do. The
    defaults below apply if
    neither the recipe nor the model sets the key (resnet32 sets cifar10 and 60 epochs); --dry-run prints the resolved values.
    List all settings with: zoo recipes --keys

    \b
    zoo train resnet32 --data cifar10 --epochs 20
    zoo train cifar10lt_resnet32_focal optim.lr=0.05 seed=1
    zoo train --resume RUN
    zoo train RUN --qat
    torchrun --nproc-per-node 2 -m zoo train resnet32
    """
    from zoo import recipe as recipes
    from zoo import run_folders, tables
    from zoo.console import leading
    from zoo.files import exists

    what = run_folders.named(what)
    if what and "=" in what and not exists(what):  # runs of a sweep have = in their names
        settings, what = (what, *settings), None
    overrides = _overrides(settings, flags)
    if resume and out is None:
        out, what = run_folders.find(what, untrained=True), None
    if resume and what is None and out is not None:
        what = str(run_folders.stored_recipe(out))
    recipe = recipes.resolve(what, overrides)
    run_folders.check_objects(what, recipe, resume=resume)
    if dry_run:
        _check(recipe)
        click.echo(recipes.dump(recipe), nl=False)
        return
    headline()
    folder = start(recipe, out, resume, force, profile)
    if not leading():
        return
    tables.result(folder)
    if recipe.reported.source:
        echo_line(f"reported {tables.percent(recipe.reported.accuracy)} % ({recipe.reported.source})")
    if profile:
        tables.profile(folder)
    more = "  profile.png" * profile
    echo_line(f"pictures  {folder}/curves.png  confusion.png  per_class.png{more}   report  {folder}/report.html")
    echo_line("next      zoo export --onnx     zoo bench")


def _check(recipe: Any) -> None:
    """Check everything that is known before training; print the images per class, if known, and the warnings."""
    from zoo.console import first_ten, print_line, print_lines
    from zoo.training import checks, lint

    checks.check_settings(recipe)
    frozen = checks.check_names(recipe)
    counts = lint.expected_counts(recipe)
    if counts is not None:
        print_line(f"data     {recipe.data.label} · {counts.sum():,} train ({first_ten(counts.tolist())})")
        checks.check_counts(recipe, counts, [recipe.data.label])
        frozen = checks.freeze_lines(recipe, len(counts)) if frozen else frozen
    for finding in lint.check(recipe, counts):
        print_line(f"warning  {finding}")
    print_lines(frozen)


def _overrides(settings: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    from zoo import recipe as recipes
    from zoo.errors import UsageError

    found = dict(recipes.parse_override(text) for text in settings)  # a later one replaces those of a script's $OPTIONS
    for name, value in flags.items():
        key = recipes.full_key(name.replace("__", "."))
        if value is None:
            continue
        if (first := found.setdefault(key, value)) is not value and first != value:
            raise UsageError(f"{key} is {value} as an option and {first} as a setting; give it once")
    return found
