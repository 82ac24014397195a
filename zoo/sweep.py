"""Train a recipe with several settings and seeds, and select the settings by validation accuracy.

A setting is one trial of an optuna study; a trial trains one run per seed, in a folder named after both. Running the same
sweep again resumes it: a finished run is never trained again, an interrupted one resumes from its last saved state.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import socket
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import recipe as recipes
from zoo import report, run_folders, training
from zoo.console import print_line
from zoo.errors import BusyError, DiskError, DivergedError, FileError, UsageError, ZooError
from zoo.files import as_disk_error, check_room
from zoo.recipe import Recipe, settings
from zoo.report import Point
from zoo.training import checks
from zoo.training.signals import Interrupted

if TYPE_CHECKING:
    from optuna import Study, Trial

TRIALS = 20
"""Default number of settings if a range is searched."""
MOST = 10_000
"""Largest grid that is accepted."""
CARVED = 0.1
"""Share of the training images to select on if the recipe has no validation images."""
ROOM = 1_000_000
"""Bytes that a study needs at least."""
PLACE = ("data.dir", "device")
"""Settings that may differ between the machines of one sweep; the folder of a user's own data may not, as nothing else names it."""


class _Twice(Exception):
    """Another process has a trial of the same setting."""


@dataclass(frozen=True)
class Axis:
    """One setting that varies: the ``values`` of a list, or a range ``low`` to ``high``, searched ``log`` or ``lin``."""

    key: str
    values: tuple[Any, ...] = ()
    kind: str = "list"
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    """The setting is an integer."""

    def suggest(self, trial: Trial) -> Any:
        """The value of a trial."""
        if self.kind == "list":
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(value) for value in self.values]))
        if self.whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.kind == "log")
        return trial.suggest_float(self.key, self.low, self.high, log=self.kind == "log")


def parse(settings: Sequence[str]) -> tuple[list[Axis], dict[str, Any]]:
    """What varies and what is fixed: ``key=a,b,c`` is a list, ``key=log:LOW:HIGH`` or ``lin:LOW:HIGH`` a range, ``key=a`` fixed.

    >>> parse(["lr=log:1e-3:1e-1", "beta=0,0.9", "epochs=5"])[0][0].key
    'optim.lr'

    Raises:
        UsageError: a malformed range, an unknown key, a key given twice, or no setting that varies.
    """
    axes: list[Axis] = []
    fixed: dict[str, Any] = {}
    for text in settings:
        key, _, value = text.partition("=")
        name = recipes.full_key(key.strip()) if "=" in text else recipes.parse_override(text)[0]
        if name in fixed or name in {axis.key for axis in axes}:
            raise UsageError(f"{name} is given twice ({text!r}); give it once, its values with commas")
        parts = re.split(r",(?![^\[]*\])", value)
        if re.match(r"(log|lin):", value):
            axes.append(_range(name, value))
        elif len(parts) > 1:
            values = tuple(dict.fromkeys(json.dumps(recipes.parse_override(f"{name}={part}")[1]) for part in parts))
            axes.append(Axis(name, tuple(json.loads(each) for each in values)))
        else:
            fixed |= dict([recipes.parse_override(text)])
    if not axes:
        raise UsageError("no setting varies; give one several values, e.g. loss.beta=0,0.9,0.99 or lr=log:1e-3:1e-1")
    if "seed" in {axis.key for axis in axes}:
        raise UsageError("seed cannot be swept; repeat each setting with --seeds N")
    return axes, fixed


def measure(recipe: Recipe) -> str:
    """The accuracy by which settings are selected, in words: ``val``, ``test`` or e.g. ``val macro``."""
    return f"{recipe.select_on} macro" if recipe.select_by == "macro" else recipe.select_on


def _range(name: str, text: str) -> Axis:
    kind, *ends = text.split(":")
    try:
        low, high = (float(end) for end in ends)
    except ValueError as error:
        raise UsageError(f"cannot read the range {name}={text}; write {kind}:LOW:HIGH, e.g. {name}=log:1e-3:1e-1") from error
    if not low < high or (kind == "log" and low <= 0):
        raise UsageError(f"not a range ({name}={text}); LOW must be below HIGH" + ", and above 0 for log" * (kind == "log"))
    whole = recipes.options()[name].type == "int"
    return Axis(name, (), kind, low, high, whole)


def search(
    what: str | None,
    axes: Sequence[Axis],
    fixed: Mapping[str, Any],
    *,
    seeds: int,
    trials: int | None,
    out: Path,
    storage: str,
    command: str,
) -> list[Point]:
    """Run the sweep or its remaining part, and write its tables, pictures and page to ``out``; returns the settings it tried.

    Raises:
        UsageError: settings that are not a valid recipe, or a folder with another sweep.
        BusyError: other processes train all remaining settings, and none is finished. Interrupted: after a signal.
        DiskError, FileError: the study cannot be written, or is damaged.
    """
    base = recipes.resolve(what, fixed)
    if base.select_on == "val" and not base.data.val and "data.val" not in {*fixed, *(axis.key for axis in axes)}:
        fixed = {**fixed, "data.val": CARVED}
        base = recipes.resolve(what, fixed)
        print_line(f"data     the recipe has no validation images; the sweep holds out data.val = {CARVED}")
    grid = all(axis.kind == "list" for axis in axes)
    _check(what, axes, fixed)
    with _stored(out, storage):
        study = _study(out, storage)
        _same(out, base, axes, seeds, study)
        _again(study)
        wanted = _enqueue(study, axes) if grid else trials or TRIALS
    print_line(f"sweep    {out} · {wanted} settings x {seeds} seeds · selected on {measure(base)} accuracy")

    from optuna.samplers import TPESampler

    def objective(trial: Trial) -> float:
        trial.set_user_attr("held_by", f"{socket.gethostname()} {os.getpid()}")
        if not grid:  # draws are seeded by the number of the trial: repeatable, and different in each process
            study.sampler = TPESampler(seed=trial.number, n_startup_trials=8)
        changes = {axis.key: axis.suggest(trial) for axis in axes}
        if _taken(study, trial, finished=grid):
            raise _Twice
        return _train(what, {**fixed, **changes}, changes, seeds, out, trial, command)

    with _stored(out, storage):
        while _left(study, wanted):
            study.optimize(objective, n_trials=1, catch=(_Twice,))
            _again(study)
    points, elsewhere = _points(study), _running(study)
    if elsewhere:
        print_line(
            f"sweep    other processes still train {elsewhere} of {wanted} settings; run the same command again for the full result"
        )
    if not points:
        raise BusyError(f"no finished run ({out}, {elsewhere} settings: training in other processes); try again later")
    if not any(point.scores for point in points):
        raise DivergedError(f"every setting diverged ({len(points)}, {out}); lower the learning rate")
    report.sweep(out, points, select_on=measure(base), what=what or base.model)
    return points


def _check(what: str | None, axes: Sequence[Axis], fixed: Mapping[str, Any]) -> None:
    """Check every point of the grid, of a range its ends, before the first is trained; errors as in training."""
    ends = [axis.values or [int(end) if axis.whole else end for end in (axis.low, axis.high)] for axis in axes]
    if (n := math.prod(map(len, ends))) > MOST:
        raise UsageError(f"the grid has {n:,} settings, over {MOST:,}; give shorter lists, or ranges with --trials")
    known = set()
    for values in itertools.product(*ends):
        point = recipes.resolve(what, {**fixed, **dict(zip((axis.key for axis in axes), values))})
        if point.select_on == "val" and not point.data.val:
            raise UsageError("a sweep selects on validation images, but data.val is 0; set a share, e.g. data.val=0.1")
        checks.check_settings(point)
        named = repr((point.model, point.weights, point.freeze, point.unfreeze, point.epochs, point.distil, point.data))
        if named not in known:
            checks.check_names(point)
            known.add(named)


def _same(out: Path, base: Recipe, axes: Sequence[Axis], seeds: int, study: Study) -> None:
    """Store the sweep's definition, or check that the stored one is the same; more trials are allowed."""
    own, base = base.data.own, run_folders.located(base)
    definition = {
        "recipe": {key: value for key, value in settings(base).items() if key not in PLACE or (key == "data.dir" and own)},
        "seeds": seeds,
        "axes": [f"{a.key} {a.kind} {list(a.values) or [a.low, a.high]}" for a in axes],
    }
    if stored := study.user_attrs.get("sweep"):
        if changed := [key for key in definition if definition[key] != stored.get(key)]:
            raise UsageError(f"the folder has another sweep ({out}, different {', '.join(changed)}); choose another --out")
    else:
        study.set_user_attr("sweep", definition)


def _study(out: Path, storage: str) -> Study:
    if not storage:
        check_room(out, ROOM)
    with as_disk_error(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            f"zoo sweep needs optuna, which cannot be imported ({error}); install it: pip install optuna"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are tracebacks of interrupted trials
    return _opened(storage or f"sqlite:///{(out / 'study.db').absolute()}", out.name)


@contextlib.contextmanager
def _stored(out: Path, storage: str) -> Iterator[None]:
    """Convert errors of the database; a folder that this sweep could not use is removed if it is empty."""
    try:
        yield
    except ZooError:
        with contextlib.suppress(OSError):
            out.rmdir()
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("optuna", "sqlalchemy", "sqlite3"):
            raise
        raise _of_database(storage or str(out / "study.db"), error) from error


def _of_database(where: str, error: Exception) -> ZooError:
    """The error of a database in one line: of every driver's own type, with several lines."""
    below: BaseException = error
    while (cause := below.__cause__ or below.__context__) is not None:
        below = cause
    first = (str(below) or type(below).__name__).splitlines()[0][:90]
    if any(words in first for words in ("disk is full", "unable to open", "readonly", "disk I/O error")):
        place = "name another --storage" if "://" in where else "free some space, or choose another --out"
        return DiskError(f"cannot write the study ({where}, {first}); {place}")
    if "://" in where:
        return UsageError(f"cannot open the storage ({where}, {first}); give an SQLAlchemy URL")
    return FileError(f"cannot read the study ({where}, {first}); restore the file, or remove it to start the sweep again")


def _opened(url: str, name: str) -> Study:
    import optuna

    for left in (2, 1, 0):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                kept = optuna.storages.RDBStorage(url, heartbeat_interval=60, grace_period=300)
            return optuna.create_study(study_name=name, storage=kept, direction="maximize", load_if_exists=True)
        except Exception as error:  # every database driver raises its own types
            if not left:
                raise _of_database(url.removeprefix("sqlite:///") if url.endswith("study.db") else url, error) from error
            time.sleep(0.5)  # another process may be creating the same tables
    raise AssertionError


def _again(study: Study) -> None:
    """Enqueue what was interrupted: trials that failed (a diverged one is pruned instead) or whose process on this machine has ended."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == TrialState.RUNNING and not _alive(trial.user_attrs.get("held_by", "")):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    trials = study.get_trials(deepcopy=False)
    taken = [_settings(trial) for trial in trials if trial.state != TrialState.FAIL]
    for trial in trials:
        if trial.state == TrialState.FAIL and trial.params and trial.params not in taken:
            study.enqueue_trial(trial.params)
            taken.append(trial.params)


def _taken(study: Study, trial: Trial, finished: bool) -> bool:
    """Whether an earlier trial has these settings: two processes that start at once enqueue the same grid, and draw the same of few.

    If ``finished`` is false, only a running trial counts: a search may return to a setting.
    """
    from optuna.trial import TrialState

    earlier = [
        each for each in study.get_trials(deepcopy=False) if each.number < trial.number and _settings(each) == trial.params
    ]
    return any(each.state == TrialState.RUNNING or (finished and each.state != TrialState.FAIL) for each in earlier)


def _running(study: Study) -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def _settings(trial: Any) -> dict[str, Any]:
    return trial.params or trial.system_attrs.get("fixed_params", {})


def _alive(holder: str) -> bool:
    """Whether a trial's process may still run; for other machines the heartbeat decides."""
    host, _, pid = holder.partition(" ")
    if host and host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except (OSError, ValueError):
        return False
    return True


def _enqueue(study: Study, axes: Sequence[Axis]) -> int:
    """Enqueue every point of the grid that is not in the study yet; returns the number of points."""
    points = list(itertools.product(*([json.dumps(value) for value in axis.values] for axis in axes)))
    known = [_settings(trial) for trial in study.get_trials(deepcopy=False)]
    for point in points:
        settings = {axis.key: value for axis, value in zip(axes, point)}
        if settings not in known:
            study.enqueue_trial(settings)
    return len(points)


def _left(study: Study, wanted: int) -> bool:
    from optuna.trial import TrialState

    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return TrialState.WAITING in states or sum(state != TrialState.FAIL for state in states) < wanted


def _train(
    what: str | None, values: Mapping[str, Any], changes: Mapping[str, Any], seeds: int, out: Path, trial: Trial, command: str
) -> float:
    """Mean accuracy, over the seeds of one setting, by which to select; finished runs are read, not repeated."""
    import optuna

    first = recipes.resolve(what, values).seed
    named = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes.items())
    scores: dict[str, float] = {}
    tested: list[float] = []
    for seed in range(first, first + seeds):
        folder = out / re.sub(r"[^\w.,=-]+", "-", f"{named},s{seed}")
        if not run_folders.is_finished(folder):
            print_line(f"trial    {trial.number + 1}: {named} seed {seed}")
            begun = any((folder / "last").glob("state-*"))
            recipe = recipes.resolve(what, {**values, "seed": seed})
            try:
                training.train(recipe, out=folder, resume=begun, force=not begun, command=command)
            except DivergedError as error:
                trial.set_user_attr("diverged", str(error))
                print_line(f"diverged {named} seed {seed}: {error}")
                raise optuna.TrialPruned(str(error)) from error
            except Interrupted as error:
                error.resume = command  # type: ignore[attr-defined]
                # optuna does not end the trial; if the storage fails too, the next start does
                with contextlib.suppress(Exception):
                    trial.study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
                raise
        result = run_folders.result(folder, "chosen_accuracy", "accuracy")
        scores[folder.name] = result["chosen_accuracy"]
        tested.append(result["accuracy"])
        env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        trial.set_user_attr("lint", env.get("lint", []))
    trial.set_user_attr("tested", tested)
    trial.set_user_attr("scores", scores)
    return statistics.mean(scores.values())


def _points(study: Study) -> list[Point]:
    """Every finished setting once, in the order of the trials."""
    from optuna.trial import TrialState

    found = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            values = {key: json.loads(value) if isinstance(value, str) else value for key, value in trial.params.items()}
            attributes = trial.user_attrs
            scores = attributes.get("scores", {}) if trial.state == TrialState.COMPLETE else {}
            found[json.dumps(values)] = Point(
                values,
                scores,
                attributes.get("diverged", ""),
                tuple(attributes.get("tested", ())),
                tuple(attributes.get("lint", ())),
            )
    return list(found.values())
