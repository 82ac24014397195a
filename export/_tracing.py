"""A boundary around torch's tracers: they print pages and raise dozens of types."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from zoo.errors import FileError, ZooError, interruption

PACKAGES = ("torch", "onnxscript", "onnx_ir")
"""Packages whose log messages are suppressed."""
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Context for tracing a model; what torch and the model print is discarded, and Python's garbage collector rests.

    Raises:
        FileError: the model cannot be traced, with the reason and its line of code if it is known.
    """
    try:
        with warnings.catch_warnings(), _logs_off(), _uncollected(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # fmt: skip
            warnings.simplefilter("ignore")
            yield
    except (ZooError, MemoryError, OSError, ImportError):
        raise
    except Exception as error:
        if (stopped := interruption(error)) is not None:
            raise stopped from None
        raise _explained(error) from error


def _explained(error: BaseException) -> FileError:
    """The error of a tracer in one line, from its first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = ESCAPES.sub("", str(error))
    place = _line_of_model(error)
    if found := re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", text):
        why, advice = f"ONNX lacks the operator {found[1]}", "use other operators in the model, or --format pt2"
    elif found := re.search(r"marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", text):
        why, advice = f"the code fixes the {found[1]} to {found[2]}", "use x.shape without int()"
    elif "data-dependent" in text:
        why, advice = "a branch or size depends on the data", "use torch.where or torch.cond"
    else:
        first = " ".join(text.split())[:100]
        why = f"{type(error).__name__}: {first}" if first.isprintable() and first else type(error).__name__
        advice = "change that code so that torch.export accepts it"
    return FileError(f"model cannot be traced ({place}{why}); {advice}")


def _line_of_model(error: BaseException) -> str:
    """``FILE:LINE, `` of the innermost code outside torch, the standard library and this folder, or an empty string."""
    torchs, others = Path(torch.__file__).parent, (Path(__file__).parent, Path(contextlib.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not (file := Path(frame.filename)).is_relative_to(torchs) and file.parent not in others and file.name[:1] != "<"
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}, " if frames else ""


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: its passes over the hundreds of thousands of objects of torch are a fifth of the time of a trace."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextlib.contextmanager
def _logs_off() -> Iterator[None]:
    """Suppress the messages of :data:`PACKAGES`; loggers below them may have their own levels."""
    names = [name for name in (*PACKAGES, *logging.root.manager.loggerDict) if name.partition(".")[0] in PACKAGES]
    loggers = [logging.getLogger(name) for name in dict.fromkeys(names)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
