"""User errors as exceptions, each with the exit code of the command."""

from __future__ import annotations

from collections.abc import Iterable


class ZooError(Exception):
    """An error that the user can correct; ``code`` is the exit code of the command."""

    code = 1


class UsageError(ZooError):
    """A wrong option, name or recipe."""

    code = 2


class DataError(ZooError):
    """Missing, damaged or contradictory data."""

    code = 3


class FileError(ZooError):
    """A checkpoint or model file that cannot be used."""

    code = 4


class DivergedError(ZooError):
    """The loss became non-finite in training."""

    code = 5


class DiskError(ZooError):
    """No space, no permission, or not enough memory on the device."""

    code = 6


class BusyError(ZooError):
    """A folder or file is in use or would be overwritten."""

    code = 7


class DisagreeError(ZooError):
    """Two computations of the same numbers differ (export, bench)."""

    code = 8


def interruption(error: BaseException) -> BaseException | None:
    """The interruption that led to an error, if any: a library that a signal stops, such as a half-imported one, may raise another error over it."""
    below: BaseException | None = error
    while below is not None and isinstance(below, Exception):
        below = below.__cause__ or below.__context__
    return None if isinstance(below, (SystemExit, GeneratorExit)) else below


def did_you_mean(word: str, known: Iterable[str], n: int = 3) -> str:
    """`` (did you mean a, b?)`` with up to ``n`` similar names, or an empty string.

    >>> did_you_mean("resnet23", ["resnet32", "alexnet"])
    ' (did you mean resnet32?)'
    """
    import difflib

    near = difflib.get_close_matches(word, list(dict.fromkeys(known)), n=n, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""
