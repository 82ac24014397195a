"""What several commands share: completion of names, the ``--json`` flag, the first line, starting a run."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import zoo
from zoo.files import expanded

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Name(click.ParamType):
    """An argument that completes from lists, which are read only when the shell completes."""

    name = "name"

    def __init__(self, *listings: Callable[[], Any]) -> None:
        self.listings = listings

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin with the typed text."""
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(str(name)) for listing in self.listings for name in listing() if str(name).startswith(incomplete)
        ]


class Listed(click.Choice[str]):
    """A choice whose values are read on first use, not when the command's file is imported."""

    def __init__(self, listing: Callable[[], Iterable[str]]) -> None:
        self.listing = listing
        self.case_sensitive = True

    @cached_property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """The sorted values."""
        return tuple(sorted(set(self.listing())))


def registered(kind: str) -> Callable[[], Any]:
    """The listing of a registry folder: ``models``, ``losses`` or ``data``."""

    def listing() -> list[str]:
        from zoo import registry

        return registry.names(kind)

    return listing


def recipe_names() -> Any:
    """The recipes included in zoo."""
    from zoo import recipe

    return recipe.shipped()


def run_names() -> list[str]:
    """The runs in the runs folder."""
    from zoo import run_folders

    return [path.name for path in run_folders.all_runs()]


RUN = Name(run_names)


class UserPath(click.Path):
    """A path, with ``~`` expanded."""

    def __init__(self, **options: bool) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a click error (exit 2) as click's own type."""
        return super().convert(expanded(value), param, ctx)


class Finite(click.FloatRange):
    """A finite number in a range; click's own type accepts ``nan`` in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a click error (exit 2) if it is not a number or out of range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Numbers(click.ParamType):
    """Finite numbers separated by commas, as a tuple."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers; a click error (exit 2) for anything else."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(",") if part.strip())
        except ValueError:
            numbers = (math.nan,)
        if not all(map(math.isfinite, numbers)):
            self.fail(f"{value!r} is not a list of numbers such as 0.5,0.5,0.5.", param, ctx)
        return numbers


def limited(until: str) -> Callable[[Any], Any]:
    """The options ``--max-memory`` and ``--timeout`` of a command that runs a model file in a child process."""

    def add(command: Any) -> Any:
        memory = click.option("--max-memory", default=0, metavar="MB", type=click.IntRange(0),
                              help="Memory limit for running a model file, in MB (0: based on its size).")  # fmt: skip
        seconds = click.option("--timeout", default=60.0, show_default=True, metavar="S", type=Finite(0, min_open=True),
                               help=f"Time limit for {until}, in seconds.")  # fmt: skip
        return memory(seconds(command))

    return add


def described(command: Any) -> Any:
    """The options ``--classes``, ``--mean`` and ``--std`` of a command that takes model files without zoo's metadata."""
    classes = click.option("--classes", type=UserPath(exists=True, dir_okay=False), metavar="FILE",
                           help="Text file with the class of each output, one per line, for a model file without class names.")  # fmt: skip
    mean = click.option("--mean", type=Numbers(), default="", metavar="R,G,B",
                        help="Channel means to subtract from images scaled to 0..1, for a model file without metadata.")  # fmt: skip
    std = click.option("--std", type=Numbers(), default="", metavar="R,G,B", help="Channel standard deviations to divide by.")
    return classes(mean(std(command)))


input_size = click.option("--size", default=0, type=click.IntRange(0), metavar="N",
                          help="Pixels of the input of a model file that leaves them open (default: 224).")  # fmt: skip


def _keep_threads(_: click.Context, __: click.Parameter, value: int | None) -> None:
    if value is not None:
        os.environ["ZOO_THREADS"] = str(value)  # child processes inherit it


threads = click.option("--threads", type=click.IntRange(1, 4096), expose_value=False, callback=_keep_threads,
                       help="CPU threads (default: OMP_NUM_THREADS, MKL_NUM_THREADS, SLURM_CPUS_PER_TASK or the "
                       "available cores).")  # fmt: skip

data_dir = click.option("--data-dir", type=UserPath(), help="Folder of the data set (default: the run's).")


def moved(run: Any, data_dir: Path | None) -> Any:
    """The run with its data in another folder, if one is given."""
    if data_dir is None:
        return run
    from dataclasses import replace

    from msgspec import structs

    data = structs.replace(run.recipe.data, dir=str(data_dir))
    return replace(run, recipe=structs.replace(run.recipe, data=data))


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def echo_line(line: str) -> None:
    """Print a line of the result, with control characters in file and class names escaped."""
    from zoo.console import plain

    click.echo(plain(line))


def echo_receipt(receipt: Any) -> None:
    """Print the receipt of an export, a line per topic."""
    for topic, text in receipt.lines().items():
        echo_line(f"{topic:10}{text}")


def echo_json(value: Any) -> None:
    """Print JSON, with null for numbers that are not finite."""
    click.echo(json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None)))


def headline() -> None:
    """Print the versions, before torch is imported."""
    import importlib.metadata
    import platform

    from zoo.console import print_line

    print_line(f"zoo {zoo.__version__} · python {platform.python_version()} · torch {importlib.metadata.version('torch')}")


def start(recipe: Any, out: Path | None, resume: bool, force: bool, profile: bool = False) -> Path:
    """Train a recipe into ``out`` or a new run folder; an error that ends it early carries the command that resumes it."""
    from zoo import training

    try:
        command = shlex.join(["zoo", *sys.argv[1:]])
        return training.train(recipe, out=out, resume=resume, force=force, command=command, profile=profile)
    except BaseException as error:  # also a signal's
        if folder := getattr(error, "run", None):
            error.resume = f"zoo train --resume --out {shlex.quote(str(folder))}"  # type: ignore[attr-defined]
        raise
