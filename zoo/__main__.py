"""``python -m zoo`` and the ``zoo`` command: run a command, and report every error as one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import time
from pathlib import Path

from zoo.console import leading, plain
from zoo.errors import DiskError, UsageError, ZooError, interruption

DISK_FAULTS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EFBIG,
    errno.EBUSY,
    errno.ESTALE,
}

PRINTING = {"click", "rich", "json", "tables.py", "__main__.py"}
"""Files and packages that write to stdout; writing to other files is handled where it happens."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 internal error, 2 usage, 3 data, 4 model file, 5 diverged, 6 disk, 7 in use, 8 numbers disagree."""
    code = run(sys.argv[1:] if argv is None else argv)
    _close_streams()  # else the interpreter's final flush prints a traceback
    sys.exit(code)


def run(argv: list[str]) -> int:
    """The exit code of a command line. ``--debug``, at any position, adds the traceback of an error."""
    import click

    from zoo import runtimes
    from zoo.cli import cli
    from zoo.training import signals

    _open_streams()
    runtimes.disable_telemetry()  # also for what packages import
    debug = "--debug" in argv
    if "--trust" in argv:
        os.environ["ZOO_TRUST"] = "1"  # child processes inherit it
    argv = [word for word in argv if word not in ("--debug", "--trust")]
    try:
        with signals.handled(signals.ENDING):  # also reports signals that arrive before a command has its own handlers
            cli.main(argv, prog_name="zoo", standalone_mode=False)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 0
    except BaseException as error:
        if isinstance(error, OSError) and (broken := _close_streams() or _of_output(error)):
            return _unread(argv, broken)
        if (
            isinstance(error, SystemExit) and type(sys.stdout).__name__ == "_PacifyFlushWrapper"
        ):  # click's reaction to a closed pipe
            return 141
        if isinstance(error, (SystemExit, GeneratorExit)):
            raise
        if debug:
            import traceback

            traceback.print_exc()
        return _print_error(argv, *_outcome(argv, error))


def _outcome(argv: list[str], error: BaseException) -> tuple[str, int]:
    """The message and the exit code of the exception that ended a command."""
    import click

    from zoo.training.signals import Interrupted

    error = interruption(error) or error
    if isinstance(error, click.ClickException):
        return error.format_message().replace("\n", " "), 2
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted; all files on disk are complete", 130
    if isinstance(error, ZooError):
        return str(error), error.code
    if isinstance(error, Interrupted):
        go_on = f"resume with: {getattr(error, 'resume', 'zoo train --resume')}"
        return f"stopped by {error}; {go_on if error.saved else 'there is nothing to resume, start it again'}", error.code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # pathlib's tests for existence raise it
        return f"no file can have this name ({str(error.filename)[:60]}..., {error.strerror}); check it", UsageError.code
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        where = f" ({error.filename}, {error.strerror})" if error.filename else f" ({error.strerror})"
        return f"cannot read or write{where}; free some space or change the permissions", DiskError.code
    return _crashed(argv, error), 1


def _print_error(argv: list[str], message: str, code: int) -> int:
    command = next((word for word in argv if not word.startswith("-")), "")
    # under torchrun all processes stop for the same reason: only rank 0 prints it
    if leading():
        line = plain(f"zoo {command}: {message}" if command else f"zoo: {message}")
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
    return code


def _open_streams() -> None:
    """Replace streams that were closed before the start (``>&-``) by os.devnull; escape characters that the encoding lacks (LC_ALL=C)."""
    for name in ("stdout", "stderr"):
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        elif stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - open as long as the process is


def _close_streams() -> OSError | None:
    """The error if stdout or stderr cannot be written (closed pipe, full disk); the stream is then redirected to os.devnull."""
    broken = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            broken = broken or error
            with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, in tests
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return broken


def _of_output(error: OSError) -> OSError | None:
    """The error if it was raised by printing: it names no file and comes from a module that prints."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    printing = trace is not None and PRINTING & {*Path(trace.tb_frame.f_code.co_filename).parts}
    return error if isinstance(error, BrokenPipeError) or (error.filename is None and printing) else None


def _unread(argv: list[str], error: OSError) -> int:
    """Output could not be printed, but the results are complete: exit 141, with a message unless the pipe was closed."""
    if isinstance(error, BrokenPipeError):
        return 141
    return _print_error(
        argv, f"cannot write the output ({error.strerror}); results are complete: redirect the output to another disk", 141
    )


def _crashed(argv: list[str], error: BaseException) -> str:
    """Write the traceback to the run folder or the runs folder; the message that names the file."""
    run = getattr(error, "run", None)
    folder = run if run is not None and run.is_dir() else Path(os.environ.get("ZOO_RUNS", "runs"))
    log = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        import traceback

        text = "".join(traceback.format_exception(error))
        log.write_text(f"zoo {' '.join(argv)}\n{text}", encoding="utf-8", errors="backslashreplace")
        where = f"the traceback is in {log}"
    except OSError:
        where = "show the traceback with --debug"
    first = str(error).splitlines()[0][:100] if str(error) else ""
    return f"internal error: {type(error).__name__}: {first}; {where}"


if __name__ == "__main__":
    main()
