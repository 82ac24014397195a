"""Run folders: location, name of a new one, the latest, locking (imports no torch)."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import socket
import string
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs

from zoo import hub, model_files, registry
from zoo.console import print_line
from zoo.errors import BusyError, DiskError, FileError, UsageError, did_you_mean
from zoo.files import as_disk_error, check_own, exists, expanded, read_facts, remove_stale
from zoo.recipe import Recipe, of_hub, read, same, shipped

LOCK, HOLDER = ".lock", ".holder"
LABEL = 80
"""Most characters of the names of data and model in the name of a run."""


def root() -> Path:
    """The folder of all runs: ``$ZOO_RUNS`` or ``runs`` in the current folder."""
    return Path(os.environ.get("ZOO_RUNS", "runs"))


def all_runs() -> list[Path]:
    """Run folders, the most recently started or resumed first."""
    folders = [path for path in root().glob("*/") if (path / "recipe.toml").is_file()]
    return sorted(
        folders, key=lambda path: (path / "env.json").stat().st_mtime if (path / "env.json").is_file() else 0, reverse=True
    )


def sweeps() -> Path:
    """Folder of the sweeps, each with one run per setting and seed."""
    return root() / "sweeps"


def find(name: str | Path | None, *, untrained: bool = False) -> Path:
    """The folder of a run: a path, a name, a unique prefix of one, ``hf:owner/name``, a folder with its layout, or the latest for None and ``latest``.

    The latest is the latest with weights, if there is one, unless ``untrained`` is set.

    Raises:
        FileError: no run yet, or not a run folder. UsageError: unknown name, or an ambiguous prefix. Both also as
            :func:`zoo.recipe.of_hub`.
    """
    if hub.is_hub(name):
        return of_hub(str(name))[0]
    known = all_runs()
    if name is None or str(name) == "latest":
        if not known:
            raise FileError(f"no run yet ({root().absolute()}); make one with: zoo train, or zoo demo")
        return known[0] if untrained else _latest_trained(known)
    path = expanded(name)
    if hub.is_local(path):
        return hub.local_run(path)
    if (path / "recipe.toml").is_file():
        return path
    exact = [run for run in known if run.name == str(name)]
    begin = exact or [run for run in known if str(name) and run.name.startswith(str(name))]
    if len(begin) == 1:
        return begin[0]
    names = [run.name for run in known]
    if begin:
        raise UsageError(
            f"{len(begin)} runs begin with {str(name)!r} ({', '.join(run.name for run in begin[:3])}); give a longer prefix"
        )
    if path.is_dir():
        raise FileError(f"not a run folder ({path.absolute()}, no recipe.toml in it); make one with: zoo train")
    if advice := _not_a_run(str(name)):
        raise UsageError(advice)
    raise UsageError(f"no run {str(name)!r}{did_you_mean(str(name), names)}; list them with: ls {root()}")


def _latest_trained(known: Sequence[Path]) -> Path:
    """The first of these runs that has weights, or the first; a line names a later run that has none."""
    found = next((run for run in known if (run / "weights.safetensors").is_file()), known[0])
    if found != known[0]:
        print_line(f"notice   the latest run has no weights yet ({known[0].name}); the latest with weights is used")
    return found


def _not_a_run(name: str) -> str:
    """What a name denotes instead of a run, and how to use that; empty if it is unknown."""
    if name.endswith(".onnx") and exists(name):
        return f"not a run ({name}, an ONNX file); use it with zoo predict --onnx, zoo verify or zoo bench"
    if model_files.is_file(name) or name.startswith("timm/") or name in registry.names("models"):
        return f"not a run ({name}, a model); train it: zoo train {name}, or export a module in Python: zoo.export.onnx"
    if exists(name):
        export = f"zoo.export.onnx(zoo.create_model(MODEL, weights={name!r}), ...)"
        return f"not a run ({name}, a file); train with it: zoo train MODEL --weights {name}, or in Python: {export}"
    return ""


def named(what: str | None) -> str | None:
    """The folder of the run named ``what``, or ``latest``, if models, recipes and files have no such name; else ``what``."""
    if what is None or what in shipped() or what in registry.names("models") or exists(what):
        return what
    if what == "latest":
        return str(find(None))
    return str(root() / what) if exists(root() / what / "recipe.toml") else what


def weights_path(name: str) -> Path:
    """A weights file or a folder with one: a path, or a run as :func:`find` takes it if no such path exists."""
    path = expanded(name)
    if not exists(path) and not hub.is_hub(name):
        with contextlib.suppress(FileError, UsageError):
            return find(name)
    return path


def located(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of the files, folders and runs that it names, so that its run can be resumed from any folder."""

    def place(name: str, path: Path) -> str:
        return str(path.absolute()) if name not in ("", "none", "default") and path.exists() else name

    data = structs.replace(recipe.data, dir=place(recipe.data.dir, expanded(recipe.data.dir)))
    distil = structs.replace(recipe.distil, teacher=[place(name, expanded(name)) for name in recipe.distil.teacher])
    return structs.replace(recipe, weights=place(recipe.weights, weights_path(recipe.weights)), data=data, distil=distil)


def new_name(recipe: Recipe, when: datetime.date | None = None) -> str:
    """A name that no run has yet: data, model, loss, seed, month and day, and a letter.

    >>> new_name(Recipe(), datetime.date(2026, 11, 23))
    'synthetic-cnn_small-cross_entropy-s0-1123a'
    """
    when = when or datetime.date.today()
    model = Path(recipe.model).name if ".py:" in recipe.model else recipe.model.removeprefix(model_files.OBJECT)
    stem = f"{recipe.data.label[:LABEL]}-{model[:LABEL]}-{recipe.loss.name}-s{recipe.seed}-{when:%m%d}"
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).lstrip("-.")  # a leading - would be an option
    return next(stem + letter for letter in _letters() if not (root() / (stem + letter)).exists())


def free(stem: str) -> str:
    """``stem``, with a letter appended if a run of that name exists."""
    return next(name for name in (stem, *(stem + letter for letter in _letters())) if not (root() / name).exists())


def _letters() -> Iterator[str]:
    """a to z, then aa to zz."""
    yield from string.ascii_lowercase
    yield from (a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)


def like(recipe: Recipe, *, any_weights: bool = False) -> list[tuple[int, Path]]:
    """Seed and folder of every run that differs from ``recipe`` at most in its seed and in :data:`zoo.recipe.NOT_THE_RECIPE`.

    Finished runs come first. A folder whose recipe cannot be read is skipped, and a run with objects that no recipe names.
    ``any_weights`` ignores the initial weights too.
    """
    found = []
    for path in all_runs():
        with contextlib.suppress(UsageError, FileError):
            if objects(path):
                continue
            other = read(path / "recipe.toml")
            if same(structs.replace(other, weights=recipe.weights) if any_weights else other, recipe):
                found.append((other.seed, path))
    return sorted(found, key=lambda run: not is_finished(run[1]))


def objects(folder: Path) -> list[str]:
    """What was given in Python to train a run: ``model``, ``data`` or ``loss``; the recipe does not name it."""
    facts = read_facts(folder / "env.json")
    return [name for name in ("model", "data", "loss") if facts.get(f"{name}_given")]


def wanted(recipe: Recipe) -> dict[str, int]:
    """Length of a run; ``result.json`` stores it to identify the training of its result."""
    return {"epochs": recipe.epochs, "patience": recipe.patience}


def is_finished(folder: Path) -> bool:
    """Whether a run has the test result of its recipe: a run resumed with more epochs has an outdated result until it ends."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return bool(result["trained"] == wanted(read(folder / "recipe.toml")))
    except (OSError, ValueError, LookupError, TypeError, UsageError):
        return False


def result(folder: Path, *numbers: str) -> dict[str, Any]:
    """The test result of a run, ``result.json``; empty without one, FileError if it is damaged or does not have these numbers."""
    path = folder / "result.json"
    found = read_facts(path)
    if absent := [key for key in numbers if found and not isinstance(found.get(key), (int, float))]:
        raise FileError(f"damaged file ({path}, no number {absent[0]!r}); restore it, or repeat the run")
    return found


@contextlib.contextmanager
def taken(recipe: Recipe, out: Path | None, *, resume: bool = False, force: bool = False) -> Iterator[Path]:
    """Choose the folder of a run, create and lock it: two processes that start at once get two folders, or one gets a BusyError.

    A folder that this call created is removed at the end if it is empty.

    Raises:
        DiskError: ``out`` is a file or cannot be made. FileError: nothing to resume. BusyError: another process holds it, or
            it is not empty and neither ``resume`` nor ``force`` is given.
    """
    with as_disk_error(out or root()):
        folder, made = _made(recipe, out)
    try:
        if not (folder / LOCK).is_file():
            _check(folder, resume=resume, force=force)  # nothing is written to a folder of another user
        with locked(folder):
            _check(folder, resume=resume, force=force)
            yield folder
    finally:
        if made and all(path.name in (LOCK, HOLDER) for path in folder.iterdir()):
            for name in (LOCK, HOLDER):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process uses a parent folder
                for place in made:
                    place.rmdir()


def _made(recipe: Recipe, out: Path | None) -> tuple[Path, list[Path]]:
    """The folder, and the folders that this call created, the innermost first."""
    while True:
        folder = out or root() / new_name(recipe)
        if folder.exists() and not folder.is_dir():
            raise DiskError(f"output is a file ({folder.absolute()}); choose another --out")
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            if out is None:
                continue  # another process took the name meanwhile
        return folder, new


def _check(folder: Path, *, resume: bool, force: bool) -> None:
    if resume:
        if not (folder / "recipe.toml").is_file():
            raise FileError(f"no run to resume ({folder.absolute()}); name its folder with --out")
        for name in INSIDE:
            check_own(folder / name)
        return
    inside = sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, HOLDER))
    if inside and "recipe.toml" not in inside and not (folder / LOCK).is_file():
        raise BusyError(f"output folder is not a run ({folder} has {inside[0]}); choose another --out")
    if inside and not force:
        raise BusyError(
            f"output folder is not empty ({folder}); use --resume to continue it, --force to replace it, or another --out"
        )


def stored_recipe(folder: Path) -> Path:
    """The recipe of the run in a folder; FileError, with the state of the folder, if there is none, BusyError if one is starting."""
    path = folder / "recipe.toml"
    if not path.is_file():
        if not folder.exists():
            raise FileError(
                f"no run to resume ({folder.absolute()}, no such folder); check the name, or start it: zoo train RECIPE"
            )
        check_free(folder)
        what = "its training was stopped before the first step" if (folder / LOCK).exists() else "not a run folder"
        raise FileError(
            f"no run to resume ({folder.absolute()}, {what}); start it again: zoo train RECIPE --force --out {folder}"
        )
    return path


def check_objects(what: str | None, recipe: Recipe, now: Collection[str] = (), *, resume: bool = False) -> None:
    """UsageError for the recipe of a run that was trained with objects from Python, which ``recipe`` does not replace by names.

    ``now`` are the names of the objects that are given again. A run that is trained on may have another loss; a warning names it.
    """
    path = Path(what or "")
    if (path / "recipe.toml").is_file():
        loss = read_facts(path / "env.json").get("loss_given")
        if loss and "loss" not in now:
            print_line(f"warning  the run was trained with a loss given in Python ({loss}); this one uses {recipe.loss.name}")
    if path.name != "recipe.toml":
        return
    facts, stored = read_facts(path.parent / "env.json"), read(path)
    kept = {key: getattr(stored, key) == getattr(recipe, key) and key not in now for key in ("model", "data", "loss")}
    if given := [name for name in kept if kept[name] and facts.get(f"{name}_given")]:
        objects = ", ".join(f"{name} {facts[f'{name}_given']}" for name in given)
        again = f", out={str(path.parent)!r}, resume=True" if resume else ""
        call = f"zoo.train({str(path)!r}, {', '.join(f'{name}=...' for name in given)}{again})"
        raise UsageError(f"the run was trained with objects given in Python ({objects}), which no file has; pass them: {call}")


WRITTEN = (
    "model.py",
    "weights.safetensors",
    "metrics.jsonl",
    "bench.csv",
    "bench.png",
    "bench.svg",
    "result.json",
    "predictions.csv",
    "bad_batch.json",
    "env.json",
    "calibration.json",
    "profile.csv",
    "profile.png",
    "profile.svg",
    "profile_trace.json",
    "per_class.csv",
    "confusion.csv",
    "README.md",
    "report.html",
    *(f"{name}.{suffix}" for name in ("curves", "confusion", "per_class") for suffix in ("png", "svg")),
)
"""Files of a run that are removed before another run uses the folder."""
INSIDE = ("last", "tensorboard")
"""Folders inside a run folder."""


def clear(folder: Path) -> None:
    """Empty a run folder before it is replaced; only files that zoo writes are removed."""
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)
    suffixes = {".onnx", ".data"}
    for target in registry.targets().values():
        suffixes |= {"." + target["suffix"].rpartition(".")[2], *target.get("beside", ())}
    for exported in folder.glob("model.*"):  # of the old weights, in any precision and format
        if exported.suffix in suffixes:
            exported.unlink()
    for name in INSIDE:
        if (folder / name).is_symlink():
            (folder / name).unlink()  # its target belongs to another user
        shutil.rmtree(folder / name, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder for this process and remove partial files of a killed process.

    The lock ends with its process, so it is never stale. The file ``.holder`` names the process.

    Raises:
        BusyError: another process holds it, or the file system has no locks.
    """
    with _taken(folder):
        if before := _holder(folder):
            print_line(f"notice   the last process of the run ended without finishing it ({before}); the lock is taken over")
        with as_disk_error(folder):
            (folder / HOLDER).write_text(f"pid {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        try:
            for place in (folder, *(folder / name for name in INSIDE)):
                remove_stale(place)
            yield
        finally:
            (folder / HOLDER).unlink(missing_ok=True)


def check_free(folder: Path) -> None:
    """BusyError if a process holds this run folder."""
    if (folder / LOCK).is_file():
        with _taken(folder):
            pass


@contextlib.contextmanager
def _taken(folder: Path) -> Iterator[None]:
    """Hold the folder's lock file."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        with as_disk_error(folder):
            lock.acquire()
    except Timeout as error:
        holder = _holder(folder) or "another process"
        raise BusyError(f"run folder is in use ({folder}, held by {holder}); wait, or choose another --out") from error
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or "no locks there"
        raise BusyError(f"cannot lock the run folder ({folder}, {why}); put it on another file system") from error
    try:
        yield
    finally:
        lock.release()


def _holder(folder: Path) -> str:
    """The process that holds the folder or held it when it was killed; empty after a normal end."""
    with contextlib.suppress(OSError):
        return (folder / HOLDER).read_text(encoding="utf-8", errors="replace").strip()
    return ""
