"""``python -m zoo`` and the ``zoo`` command: run it, turn every fault into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from zoo.spec import ZooError


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 internal bug, 2 usage, 3 data, 4 model file, 5 diverged, 6 disk, 7 busy, 8 disagreement."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """The exit code of a command line."""
    import click

    from zoo.cli import cli

    try:
        cli.main(argv, prog_name="zoo", standalone_mode=False)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 0
    except click.ClickException as error:
        return _tell(argv, error.format_message().replace("\n", " "), 2)
    except (click.Abort, KeyboardInterrupt):
        return _tell(argv, "interrupted; nothing written is torn", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while closing stdout
        return 141
    except ZooError as error:
        if "--debug" in argv:
            traceback.print_exc()
        return _tell(argv, str(error), error.code)
    except Exception as error:
        return _interrupted(argv, error) or _crashed(argv, error)


def _tell(argv: list[str], message: str, code: int) -> int:
    command = next((word for word in argv if not word.startswith("-")), "")
    print(f"zoo {command}: {message}" if command else f"zoo: {message}", file=sys.stderr)
    return code


def _interrupted(argv: list[str], error: Exception) -> int:
    if type(error).__name__ != "Interrupted":
        return 0
    return _tell(
        argv,
        f"stopped by {error}; resume with: {getattr(error, 'resume', 'zoo train --resume')}",
        int(getattr(error, "code", 1)),
    )


def _crashed(argv: list[str], error: Exception) -> int:
    if "--debug" in argv:
        traceback.print_exc()
    log = Path(os.environ.get("ZOO_RUNS", "runs")) / "crash.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"zoo {' '.join(argv)}\n{traceback.format_exc()}", encoding="utf-8")
        where = f"the traceback is in {log}"
    except OSError:
        where = "show the traceback with --debug"
    return _tell(
        argv, f"internal error: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; {where}", 1
    )


if __name__ == "__main__":
    main()
