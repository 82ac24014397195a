"""Shell completion."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    eval "$(zoo completion bash)"
    zoo completion fish | source
    """
    from click.shell_completion import get_completion_class

    from zoo.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "zoo", "_ZOO_COMPLETE").source())
