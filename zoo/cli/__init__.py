"""The command line: one file per command, each with a ``command`` that parses, calls one function and prints.

A command imports torch when it runs, never when its file is imported.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

import zoo
from zoo.errors import did_you_mean

SECTIONS = {
    "Start": ("demo", "doctor"),
    "Train": ("train", "sweep", "reproduce"),
    "Inspect": ("eval", "predict", "report", "analyze"),
    "Deploy": ("export", "verify", "bench"),
    "List": ("models", "data", "losses", "recipes"),
}
"""Commands in the order of a user's work; commands of no section come last."""


class Commands(click.Group):
    """The files of this folder; a command's file is imported when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            if cmd_name.startswith("-") or ctx.resilient_parsing:
                return None
            known = self.list_commands(ctx)
            raise click.UsageError(f"no command {cmd_name!r}{did_you_mean(cmd_name, known)}; list them with: zoo --help", ctx)
        return import_module(f"zoo.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by :data:`SECTIONS`."""
        left = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))}
        sections = {title: [name for name in names if name in left] for title, names in SECTIONS.items()}
        sections["Other"] = [name for name in left if not any(name in names for names in SECTIONS.values())]
        for title, names in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, left[name].get_short_help_str(formatter.width - 18)) for name in names])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(zoo.__version__, "--version", prog_name="zoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--trust", is_flag=True, help="Run model code stored in another user's run folder.")
def cli(debug: bool, trust: bool) -> None:
    """Train image classifiers on imbalanced data, export them to verified ONNX files, and benchmark them.

    \b
    zoo demo                            all steps on built-in images, no download
    zoo train resnet32 --data cifar10   train a model
    zoo export --onnx                   export the latest run
    zoo bench                           benchmark the latest run
    """


def commands() -> dict[str, click.Command]:
    """Every command by name."""
    with click.Context(cli) as context:
        return {name: cli.get_command(context, name) or cli for name in cli.list_commands(context)}
