"""Every file zoo writes goes through :func:`publish`: the old content or the new, never a partial file."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zoo.errors import DiskError, FileError

TEMPORARY = ".zoo-tmp"
"""Part of the name of every temporary file, so that leftovers of a killed process can be recognised."""
RESULTS = ("model.", "bench", "serve")
"""Beginnings of the names of files in a run folder that can be written elsewhere."""
LOCK = ".zoo.lock"
"""The file that :func:`alone` locks in a folder."""


def exists(path: str | Path) -> bool:
    """Whether there is a file or folder of that name; False also for a name that no file can have, such as one that is too long."""
    return os.path.exists(path)  # noqa: PTH110 - pathlib raises


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder of that name, as :func:`exists`."""
    return os.path.isdir(path)  # noqa: PTH112 - pathlib raises


def is_link(path: str | Path) -> bool:
    """Whether there is a symbolic link of that name, as :func:`exists`."""
    return os.path.islink(path)  # noqa: PTH114 - pathlib raises


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of a leading ``~``, which a shell leaves in ``--out=~/x``; else unchanged."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user
        return Path(path)


def near(path: Path) -> Path:
    """The path relative to the current folder if it is inside it, so that what is printed is short and names no home folder."""
    try:
        relative = os.path.relpath(path)
    except OSError:  # the current folder was removed
        return path
    return path if relative.startswith(os.pardir) else Path(relative)


def cache_folder() -> Path:
    """``$ZOO_CACHE``, else ``$XDG_CACHE_HOME/zoo``, else ``~/.cache/zoo``; DiskError for a user without a home folder."""
    if found := os.environ.get("ZOO_CACHE"):
        return expanded(found)
    if found := os.environ.get("XDG_CACHE_HOME"):
        return Path(found) / "zoo"
    try:
        return Path.home() / ".cache" / "zoo"
    except RuntimeError as error:  # in a container with a user id that has no entry
        raise DiskError("this user has no home folder for the cache; set ZOO_CACHE to a folder") from error


def publish(
    path: Path, write: Callable[[Path], object], verify: Callable[[Path], object] | None = None, *, size: int = 0
) -> None:
    """Call ``write(temporary)``, then ``verify(temporary)``, and put the result in place of ``path`` in one step.

    The temporary file is in the same folder with the same suffix. It is fsynced before the rename and removed on any error,
    so ``path`` keeps its old content until the new one is complete on disk. ``size`` is the approximate number of bytes, if
    known: the space is allocated first, so that a full disk is detected before the work.

    Raises:
        DiskError: no space, no permission or a read-only disk, with needed and free bytes where they are known.
    """
    path = Path(path)
    with as_disk_error(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:60]}.", suffix=f"{TEMPORARY}{path.suffix}", dir=path.parent)
        temporary = Path(name)
        try:
            try:
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, 0, size)
                    os.ftruncate(handle, 0)  # released: some writers (safetensors) create a new file in its place
            finally:
                os.close(handle)
            write(temporary)
            if verify is not None:
                verify(temporary)
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def publish_text(path: Path, text: str) -> None:
    """:func:`publish` for a string, as UTF-8."""
    publish(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def digest(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty if the file is missing; FileError if it is damaged or not an object."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise FileError(f"damaged file ({path}, {str(error)[:80]}); restore it, or repeat the run") from error
    return found


def as_utf8(name: str) -> str:
    """A file's name as text, independent of the locale's encoding; bytes that are not UTF-8 stay escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def check_own(path: Path) -> None:
    """DiskError if a file or folder that a run writes is a symbolic link: the data would be written elsewhere."""
    if path.is_symlink():
        raise DiskError(f"cannot write ({path}, a link to {path.readlink()}); remove the link, or choose another --out")


def own_folder(path: Path) -> Path:
    """Make a folder inside a run folder; :func:`check_own`."""
    check_own(path)
    with as_disk_error(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def remove_stale(folder: Path) -> None:
    """Remove what a killed :func:`publish` left in a folder that no other process writes to; nothing else."""
    for stray in folder.glob(f".*{TEMPORARY}*"):
        stray.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """DiskError unless a file can be created in the folder of ``path``; leftovers of a killed :func:`publish` are removed."""
    with as_disk_error(path):
        try:
            tempfile.TemporaryFile(dir=_existing(path.absolute().parent)).close()
        except FileNotFoundError as error:  # the error of /proc for each new name
            raise DiskError(f"cannot write ({path}, no file can be created in that folder); choose another --out") from error
    if not path.parent.is_dir():
        return
    with alone(path):  # no process is writing any of the leftovers
        for stray in path.parent.glob(f".{glob.escape(path.stem[:60])}.????????{TEMPORARY}{glob.escape(path.suffix)}"):
            stray.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lock the folder of ``path``, created if missing, while related files in it change; other processes wait.

    On a file system without locks, nothing is locked.

    Raises:
        DiskError: the folder cannot be made.
    """
    with as_disk_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.parent / LOCK):
        try:
            yield
        finally:
            # a waiting process that gets the removed file's lock sees that it has no name and takes a new one (filelock)
            with contextlib.suppress(OSError):
                (path.parent / LOCK).unlink()


@contextlib.contextmanager
def held(lock: Path, *, wait: bool = True, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file, created if missing; the lock ends with this process. Nothing is locked on a file system without locks.

    ``on_wait`` is called before waiting for another process.

    Raises:
        TimeoutError: another process holds it, and ``wait`` is not set.
    """
    from filelock import FileLock

    taken = FileLock(lock, timeout=0)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(taken)
        except TimeoutError:
            if not wait:
                raise
            on_wait()
            taken.timeout = -1
            stack.enter_context(taken)
        except (OSError, NotImplementedError):  # NotImplementedError: the file system has no locks
            stack.pop_all()
        yield


def check_room(folder: Path, need: int) -> None:
    """DiskError unless ``need`` bytes are free on the disk of ``folder``, which may not exist yet."""
    free = shutil.disk_usage(_existing(folder.absolute())).free
    if free < need:
        raise DiskError(f"no space left ({folder.absolute()}, {_space(need, free)}); free some space or choose another --out")


# EEXIST: a file stands where a folder is to be made; EBUSY: the file is a mount point, which no other can replace
_PERMISSION, _NAME = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}, {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
UNWRITABLE = _PERMISSION | _NAME | {errno.ENOTDIR, errno.EEXIST, errno.EBUSY, errno.ESTALE}


@contextlib.contextmanager
def as_disk_error(path: Path, need: int = 0) -> Iterator[None]:
    """Convert an error of the operating system, also in the context of another error, to a :class:`DiskError`."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing(path.absolute())).free
            raise DiskError(
                f"no space left ({path}, {_space(need, free)}); {' or '.join(filter(None, ('free some space', _elsewhere(path))))}"
            ) from error
        if number == errno.EFBIG:
            raise DiskError(f"file exceeds the size limit ({path}, ulimit -f); raise the limit") from error
        # a folder in which no other can be made, such as /proc; a missing input of the writer is no fault of this path
        no_folder = isinstance(error, FileNotFoundError) and Path(error.filename or "") in (path, *path.parents)
        if number and (no_folder or number in UNWRITABLE):
            raise DiskError(
                f"cannot write ({path}, {os.strerror(number)}); {_elsewhere(path) or 'change its permissions'}"
            ) from error
        raise


def _errno(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if native := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors' Rust
            return int(native[1])
        error = error.__cause__ or error.__context__
    return None


def _elsewhere(path: Path) -> str:
    """How to choose another place for this file; empty for a file that belongs into its run folder."""
    place = path.absolute()
    with contextlib.suppress(DiskError):
        if cache_folder().absolute() in place.parents:
            return "set ZOO_CACHE to another folder"
    if any(exists(folder / "recipe.toml") for folder in (place, *place.parents[:2])) and not place.name.startswith(RESULTS):
        return ""
    if Path(os.environ.get("ZOO_RUNS", "runs")).absolute() in (place, *place.parents):
        return "choose another --out, or set ZOO_RUNS to another folder"
    return "choose another --out"


def _space(need: int, free: int) -> str:
    return (f"need {need / 1e6:.1f} MB, " if need else "") + f"{free / 1e6:.1f} MB free"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
