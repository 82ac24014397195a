"""A child process with limits on memory and time, for untrusted files; it answers in lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any

from zoo import runtimes
from zoo.errors import FileError, UsageError, ZooError

LONGEST = 1 << 20
START = 60.0
"""Seconds for the start of the child, independent of the limit for the model."""
STDERR_BYTES = 4000
"""Bytes read from the end of the child's stderr."""


class TooLongError(FileError):
    """A model that takes longer than its time limit."""

    def __init__(self, model: Path, timeout: float) -> None:
        super().__init__(f"model takes too long ({model}, over {timeout:g} s); if you trust it, raise --timeout")
        self.model = model


def lines(module: str, request: dict[str, Any], model: Path, *, max_memory: int, timeout: float) -> Iterator[dict[str, Any]]:
    """Answers of ``python -m module``, which calls :func:`serve`, to ``request``, line by line.

    ``max_memory`` are bytes; ``timeout`` seconds may pass from its start until the first line, and between two.

    Raises:
        FileError: out of memory or time, killed, or an error of the model reported by the child. UsageError: one that it reported.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # -P: a Python file next to a downloaded model must not be imported instead of a package
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            [sys.executable, "-P", "-m", module], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        ) as child,
    ):
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(request | {"max_memory": max_memory}).encode())
            child.stdin.close()
            done = yield from _answers(child, model, max_memory, timeout)
            if not done:
                raise _ended(child.wait(), stderr, model, max_memory)
        finally:
            child.kill()


def _answers(
    child: subprocess.Popen[bytes], model: Path, max_memory: int, timeout: float
) -> Generator[dict[str, Any], None, bool]:
    """The child's answers, and whether it reported completion before it ended."""
    assert child.stdout is not None
    rest, deadline = b"", time.monotonic() + max(timeout, START)
    while True:
        ready, _, _ = select.select([child.stdout], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            raise TooLongError(model, timeout)
        got = os.read(child.stdout.fileno(), LONGEST)
        if not got:
            return False
        *whole, rest = (rest + got).split(b"\n")
        for line in whole:
            answer = json.loads(line)
            if answer.get("done"):
                return True
            if answer.get("started"):
                deadline = time.monotonic() + timeout
                continue
            if "memory" in answer:
                raise _too_much(model, max_memory)
            if "fault" in answer:
                raise UsageError(answer["fault"]) if answer["usage"] else FileError(answer["fault"])
            yield answer
            deadline = time.monotonic() + timeout


def _ended(code: int, stderr: IO[bytes], model: Path, max_memory: int) -> FileError:
    """The error of a child that ended early, by its exit status and the end of its stderr."""
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - STDERR_BYTES))
    text = stderr.read().decode(errors="replace")
    if code == -6 or _about_memory(text):  # a failed allocation in C++ aborts
        return _too_much(model, max_memory)
    if code >= 0:
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
        return FileError(f"model cannot be tested ({model}, exit {code}: {last[:120]}); report this as a bug in zoo")
    return FileError(f"model crashes onnxruntime ({model}, {_signal(code)}); export it again: zoo export --onnx")


def _signal(code: int) -> str:
    return signal.Signals(-code).name if -code in signal.valid_signals() else f"exit {code}"


def _too_much(model: Path, max_memory: int) -> FileError:
    return FileError(
        f"model needs too much memory ({model}, over {max_memory / 1e6:,.0f} MB); if you trust it, raise --max-memory"
    )


def serve(answers: Callable[[dict[str, Any]], Iterator[dict[str, Any]]]) -> None:
    """In the child: set the limit, answer the request on stdin."""
    import resource

    request = json.loads(sys.stdin.buffer.read())
    limit = request.pop("max_memory")
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of libraries are not answers
    try:
        with contextlib.suppress(ImportError):  # reported where it is used
            runtimes.onnxruntime()  # takes seconds on a busy machine, which must not count for the model
        print(json.dumps({"started": True}), file=out, flush=True)
        for answer in answers(request):
            print(json.dumps(answer), file=out, flush=True)
        print(json.dumps({"done": True}), file=out, flush=True)
    except MemoryError:
        print(json.dumps({"memory": True}), file=out, flush=True)
    except ZooError as error:
        print(json.dumps({"memory": True} if out_of_memory(error) else _fault(error)), file=out, flush=True)


def _fault(error: ZooError) -> dict[str, Any]:
    return {"fault": str(error), "usage": isinstance(error, UsageError)}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error or its cause is about memory."""
    return _about_memory(f"{error} {error.__cause__ or ''}")


def _about_memory(text: str) -> bool:
    return any(word in text.lower() for word in ("alloc", "memoryerror", "failed to map"))
