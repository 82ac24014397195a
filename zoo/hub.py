"""Models of the Hugging Face hub, named ``hf:owner/name`` or ``hf:owner/name@revision``.

A repository in the layout of ``zoo export --hub`` becomes a run folder in zoo's cache folder; its weights alone may have
any names that :mod:`zoo.weights` reads. Only text and safetensors files are fetched: nothing from the hub is run or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from zoo import files
from zoo.console import print_line
from zoo.errors import FileError, UsageError

PREFIX = "hf:"
WEIGHTS = "model.safetensors"
LAYOUT = ("config.json", "recipe.toml", WEIGHTS)
"""The files of a repository that is used as a run."""
CALIBRATION = "calibration.json"
"""A further file, of a calibrated run."""
COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def is_hub(name: Any) -> bool:
    """Whether a model, run or weights are named as a repository of the hub."""
    return str(name).startswith(PREFIX)


def pinned(name: str) -> str:
    """The name with the commit that its revision (default: main) has now: ``hf:owner/name@0123...``.

    Raises:
        UsageError, FileError: as :func:`fetch`.
    """
    repository, revision = _split(name)
    commit = revision if revision and COMMIT.fullmatch(revision) else fetch(name).name
    return f"{PREFIX}{repository}@{commit}"


def weights(name: str) -> Path:
    """The file ``model.safetensors`` of any repository.

    Raises:
        UsageError, FileError: as :func:`fetch`; FileError also if the repository has no such file.
    """
    folder = fetch(name)
    _check_files(name, folder, (WEIGHTS,))
    return folder / WEIGHTS


def run_folder(name: str) -> Path:
    """A repository as a run folder with ``recipe.toml`` and ``weights.safetensors``, in zoo's cache folder.

    Raises:
        UsageError, FileError: as :func:`fetch`; FileError also for another layout, naming what is missing.
    """
    snapshot = fetch(name)
    _check_files(name, snapshot, LAYOUT)
    repository, _ = _split(name)
    return _copied(name, snapshot, f"{repository.replace('/', '--')}@{snapshot.name[:12]}")


def is_local(folder: Path) -> bool:
    """Whether a folder has the layout of a repository that is used as a run."""
    return all((folder / file).is_file() for file in LAYOUT) and not (folder / "weights.safetensors").is_file()


def local_run(folder: Path) -> Path:
    """:func:`run_folder` of a folder in the layout of a repository, such as ``zoo export --hub`` wrote; FileError if it did not."""
    with files.as_disk_error(folder):
        content = (folder / file for file in (*LAYOUT, CALIBRATION))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in content if file.is_file()))
    return _copied(str(folder), folder, f"{folder.absolute().name}@{digest.hexdigest()[:12]}")


def _copied(name: str, source: Path, copy: str) -> Path:
    """The run folder ``copy`` in zoo's cache folder, with the files of ``source``; FileError unless zoo wrote them."""
    config = files.read_facts(source / "config.json")
    if config.get("library_name") != "zoo":
        raise FileError(
            f"{name} was not written by zoo (config.json, library_name {json.dumps(config.get('library_name'))[:40]}); use its "
            f"weights only: zoo train MODEL --weights {name}"
        )
    folder = root() / copy
    with files.as_disk_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file, place in ((CALIBRATION, CALIBRATION), (WEIGHTS, "weights.safetensors"), ("recipe.toml", "recipe.toml")):
            if (source / file).is_file() and not (folder / place).is_file():
                files.publish(folder / place, partial(shutil.copyfile, source / file))
    return folder


def root() -> Path:
    """The folder of the run folders that are copies of repositories."""
    return files.cache_folder() / "hub"


def fetch(name: str) -> Path:
    """The folder of a repository's files in the cache of huggingface_hub, downloaded if needed; its name is the commit.

    Without a connection, or with ``HF_HUB_OFFLINE=1``, the revision fetched last is used.

    Raises:
        UsageError: not a name, huggingface_hub is not installed, or no such repository or revision, or it is private.
        FileError: the hub cannot be reached and the cache does not have the revision.
    """
    repository, revision = _split(name)
    library = _library()
    try:
        folder = Path(library.snapshot_download(repository, revision=revision, allow_patterns=[*LAYOUT, CALIBRATION]))
    except Exception as error:  # it raises its own types, those of its HTTP library, OSError and ValueError
        raise _reason(name, repository, revision, error) from error
    print_line(f"hub      {repository}, revision {folder.name[:12]} ({folder})")
    return folder


def _split(name: str) -> tuple[str, str | None]:
    """Repository and revision of a name; UsageError for anything else."""
    found = NAME.fullmatch(name)
    if found is None:
        raise UsageError(f"{name[:80]!r} does not name a repository; write hf:owner/name or hf:owner/name@revision")
    return found["repository"], found["revision"]


def _library() -> Any:
    try:
        import huggingface_hub.utils
    except ImportError as error:
        raise UsageError("huggingface_hub is not installed; install it: pip install huggingface_hub") from error
    huggingface_hub.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


def _reason(name: str, repository: str, revision: str | None, error: Exception) -> UsageError | FileError:
    """The error of a failed download in one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return UsageError(f"access to {repository} is restricted; accept its terms on its page and log in: hf auth login")
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"no revision {revision!r} of {repository}; name a branch, a tag or a commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(
            f"no repository {repository!r} on the hub, or it is private; check its name, or log in: hf auth login"
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{name[:80]!r} does not name a repository; write hf:owner/name or hf:owner/name@revision")
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError)):
        return FileError(
            f"the hub cannot be reached and its cache does not have {name}; repeat with a connection, or name a folder"
        )
    why = " ".join(str(error).split())[:80]
    return FileError(f"cannot download {name} ({type(error).__name__}: {why}); repeat later, or name a folder")


def _check_files(name: str, folder: Path, wanted: tuple[str, ...]) -> None:
    """FileError naming the files that a repository does not have."""
    if absent := [file for file in wanted if not (folder / file).is_file()]:
        written = "a repository that zoo export --hub wrote" if len(wanted) > 1 else "a repository with safetensors"
        raise FileError(f"{name} has no {' and no '.join(absent)}; name {written}")
