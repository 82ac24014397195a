"""Benchmarks: one file per question with ``main(quick, ...)``; all use the clock in :mod:`zoo.bench._timing`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import files
from zoo.bench._budget import Budget
from zoo.errors import UsageError, ZooError
from zoo.export import _child, _guard

if TYPE_CHECKING:
    from zoo.run import Run

    Target = Run | str | Path

BUSY = 0.25
"""Number of cores in use by other processes above which a benchmark warns: synchronised threads then wait for the scheduler."""


def names() -> list[str]:
    """Names of the benchmarks of zoo's own parts; runs and models use ``inference``."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "inference")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Labelled images that replace the run's own for measuring accuracy: a data set, and metadata that the model file lacks."""

    data: str = ""
    """Name of a data set, or a folder or file that ``--data`` accepts."""
    folder: str = ""
    split: str = "test"
    """``test``, or ``all`` for the images of all splits."""
    labels: Path | None = None
    """Text file with one class name per line, in the order of the outputs."""
    mean: tuple[float, ...] = ()
    """Channel means and standard deviations of images scaled to [0, 1]."""
    std: tuple[float, ...] = ()
    skip_bad: bool = False
    """Skip images that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of ``zoo bench`` by name; 0 and "" mean the default."""

    quick: bool = False
    batches: str | None = None
    devices: str | None = None
    threads: int = 0
    seconds: float = 0.0
    allow_cpu_fallback: bool = False
    serve: bool = False
    self_check: bool = False
    scenario: str = ""
    rate: float = 0.0
    """Queries per second of scenario ``server``."""
    latency_ms: float = 0.0
    images: Images = Images()
    size: int = 0
    """Pixels of the input of ONNX files that leave them open."""
    out: Path | None = None
    max_memory: int = 0
    timeout: float = _guard.TIMEOUT
    as_json: bool = False

    @property
    def kind(self) -> str:
        """The module that measures a model."""
        return "_serve" if self.serve else "_self_check" if self.self_check else "_scenario" if self.scenario else "inference"

    @property
    def of_a_model(self) -> bool:
        """Whether an option is set that benchmarks of zoo's own parts do not have."""
        limited = self.max_memory or self.timeout != _guard.TIMEOUT
        return bool(
            self.batches
            or self.devices
            or self.threads
            or self.seconds
            or self.kind != "inference"
            or limited
            or self.images != Images()
            or self.size
        )


def command(what: Target | Sequence[Target] | None = None, request: Request = Request()) -> Path:
    """``zoo bench``: measure runs (default: the latest run), models, files, or a part of zoo; print the table and the paths of the files.

    Raises:
        UsageError: the settings contradict each other.
    """
    from zoo.console import print_line

    budget = Budget(request.seconds)
    if request.seconds and not request.scenario:  # whose --seconds are those of one run
        print_line(f"expect   at most {request.seconds:g} s (--seconds)")
    targets: list[Any]
    began, targets = time.time(), list(what or ()) if isinstance(what, (list, tuple, type(None))) else [what]
    part = next((str(target) for target in targets if str(target) in names()), "")
    if request.out is not None:
        _check_out(request.out)
    if part and request.of_a_model:
        raise UsageError(f"bench {part} accepts no --batches, --devices or similar options; omit them")
    if not part:
        options, targets = _options(request, budget), _known(targets, request.out)
    from zoo.bench import _timing  # torch is imported here; its time counts

    if (taken := _timing.busy()) > BUSY:
        print_line(
            f"warning  other processes keep {taken:.1f} cores busy: figures are unreliable, at small batches by a factor of 10 or more"
        )
    if part:
        module, others = importlib.import_module(f"zoo.bench.{part}"), [str(name) for name in targets if str(name) != part]
        takes_runs = "runs" in inspect.signature(module.main).parameters
        if others and not takes_runs:
            raise UsageError(f"bench {part} accepts no other names; omit {others[0]}")
        path = module.main(
            request.quick,
            out=request.out or _timing.default_out(part, quick=request.quick),
            **({"runs": others} if takes_runs else {}),
        )
    else:
        module = importlib.import_module(f"zoo.bench.{request.kind}")
        budget.imports = budget.elapsed()
        from zoo import machine

        try:
            with machine.torch_defaults():
                path = module.main(request.quick, targets, **options)
        except _child.TooLongError as error:
            if request.seconds and request.seconds < request.timeout:
                raise UsageError(f"--seconds {request.seconds:g} is too short to run {error.model} once; give more") from error
            raise
    _print_result(module, path, began, as_json=request.as_json)
    return path


def measure(
    what: Target | Sequence[Target] | None = None,
    *,
    batches: Sequence[int] = (),
    devices: Sequence[str] = (),
    threads: int = 0,
    seconds: float = 0.0,
    quick: bool = False,
    out: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Measure runs (default: the latest), ONNX files or registered models as ``zoo bench`` does; return the rows of the table.

    Args:
        batches: batch sizes (default: those of ``zoo bench``).
        devices: devices, such as ("cpu", "cuda") (default: all available devices).
        threads: CPU threads; 0: all available cores.
        seconds: time limit in seconds; 0: none.
        quick: measure fewer rounds.
        out: CSV file; the figures are written next to it.

    Raises:
        UsageError, FileError, DisagreeError, DiskError: as in the command. TypeError, ValueError: an argument has the wrong type or range.
    """
    if callable(what):
        raise TypeError(
            f"what is {type(what).__name__}; export the module, and measure the file: zoo.export.onnx(module, PATH, ...)"
        )
    if any(isinstance(each, str) or not isinstance(each, Sequence) for each in (batches, devices)):
        raise TypeError(f"batches is {batches!r} and devices {devices!r}; they are sequences, such as (1, 64) and ('cpu',)")
    if not isinstance(threads, int) or threads < 0 or not seconds >= 0:
        raise ValueError(f"threads is {threads!r} and seconds {seconds!r}; give numbers of at least 0, threads a whole one")
    path = command(
        what,
        Request(
            batches=",".join(map(str, batches)) or None, devices=",".join(devices) or None, threads=threads, seconds=float(seconds),
            quick=quick, out=Path(out) if out is not None else None,
        ),
    )  # fmt: skip
    from zoo.bench import _timing

    return _typed(_timing.read_csv(path))


def _options(request: Request, budget: Budget) -> dict[str, Any]:
    """Arguments of the module's ``main``; UsageError for contradictory settings."""
    places = words("--devices", request.devices)
    options: dict[str, Any] = {
        "out": request.out,
        "threads": request.threads,
        "max_memory": request.max_memory,
        "size": request.size,
        "timeout": min(request.timeout, request.seconds or request.timeout),
    }
    if (request.rate or request.latency_ms) and request.scenario != "server":
        raise UsageError("--qps and --latency-ms apply to --scenario server only; omit them")
    options |= _given(request)
    if request.kind == "inference":
        options |= {"devices": places, "allow_cpu_fallback": request.allow_cpu_fallback}
    elif request.allow_cpu_fallback or places not in ((), ("cpu",)):
        raise UsageError("--serve, --scenario and --self-check measure the CPU; omit --devices and --allow-cpu-fallback")
    if not request.scenario:
        return options | {"batches": numbers("--batches", request.batches), "budget": budget}
    if request.batches:  # the rules fix it
        raise UsageError("a scenario has its own batch size; omit --batches")
    options |= {"latency_ms": request.latency_ms} if request.latency_ms else {}
    return options | {"seconds": request.seconds, "scenario": request.scenario, "rate": request.rate}


def _given(request: Request) -> dict[str, Any]:
    """The images of the request, as an argument of the module's ``main``; UsageError for options that do not go together."""
    if request.images == Images():
        return {}
    if request.kind not in ("inference", "_scenario"):
        raise UsageError(
            "--serve and --self-check do not measure accuracy; omit --data and the options that describe its images"
        )
    if not request.images.data:
        raise UsageError("--data-dir, --split, --classes, --mean and --std describe the images of --data; name it")
    return {"given": request.images}


def _check_out(out: Path) -> None:
    """Check before measuring: UsageError unless ``out`` ends in .csv, DiskError if it cannot be created."""
    if out.is_dir():
        raise UsageError(f"output is a folder ({out.absolute()}); name a file, e.g. --out {out / 'bench.csv'}")
    if out.suffix != ".csv":  # pictures have the same name with .png
        raise UsageError(f"output is not a .csv file ({out}); use e.g. --out {out.with_suffix('.csv')}")
    files.check_writable(out)


def _known(targets: Sequence[Target], out: Path | None) -> list[Any]:
    """The targets, by default the latest run; prints its folder.

    Raises:
        UsageError, FileError: a target is missing or damaged. DiskError: the default ``out`` cannot be created. All targets are
            checked before the first is measured.
    """
    from zoo import hub, run_folders
    from zoo.console import print_line

    found: list[Any] = [each if hasattr(each, "recipe") else str(each) for each in targets] or [str(run_folders.find(None))]
    if not targets:
        print_line(f"run      {found[0]}")
    for each in targets:
        if isinstance(each, str | Path):
            _check_target(str(each))
    if out is None:  # checked before measuring, as an --out
        folder = run_folders.root() / "bench"
        if len(found) == 1 and not hub.is_hub(name := getattr(found[0], "path", found[0])):
            with contextlib.suppress(ZooError):  # a model or a file
                folder = run_folders.find(name)
        files.check_writable(folder / "bench.csv")
    return found


def _check_target(name: str) -> None:
    """UsageError or FileError unless there is such a run, model or ONNX file."""
    from zoo import hub, registry, run_folders
    from zoo.errors import did_you_mean

    if _guard.is_onnx(name):
        _guard.check(Path(name))
    elif not is_model(name) and not hub.is_hub(name):
        try:
            run_folders.find(name)
        except UsageError as error:
            if near := did_you_mean(name, registry.names("models")):
                raise UsageError(f"no run or model {name!r}{near}; list models with: zoo models") from error
            raise


def is_model(target: object) -> bool:
    """Whether a target is a model of the registry or of timm, with random weights."""
    from zoo import registry

    return isinstance(target, str) and (target in registry.names("models") or target.startswith("timm/"))


def _print_result(module: Any, path: Path, began: float, *, as_json: bool) -> None:
    """Print the table and the paths of pictures drawn since ``began``: older ones may have similar names."""
    from zoo import report, tables
    from zoo.bench import _timing
    from zoo.console import print_line

    if (path.parent / "recipe.toml").is_file() and path.name == "bench.csv":
        report.summary(path.parent)
        report.page(path.parent)
    rows = _timing.read_csv(path)
    if as_json:
        json.dump(_typed(rows), sys.stdout, indent=1)
        print()
        return
    tables.out().print(module.table(rows))
    if module.__name__.endswith(".inference"):
        from zoo.bench import _advice

        for line in _advice.lines(rows):
            print_line(line)
    drawn = sorted(each for each in path.parent.glob(f"{path.stem}*.png") if each.stat().st_mtime >= began)
    print_line("  ".join([f"bench    {path}", *(picture.name for picture in drawn)]))


def _typed(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Rows of a CSV for JSON, with numbers where they are numbers; a model or a version may look like one and stays text."""
    from zoo import tables
    from zoo.bench import _timing

    texts = {"model", *_timing.ENVIRONMENT} - {"cores"}
    return [{name: cell if name in texts else tables.value(cell) for name, cell in row.items()} for row in rows]


def compare(first: Path, second: Path, *, as_json: bool = False) -> None:
    """``zoo bench --compare``: two CSV files row by row."""
    from zoo import tables
    from zoo.bench import _compare

    rows = _compare.compared(first, second)
    if as_json:
        json.dump(rows, sys.stdout, indent=1)
        print()
    else:
        tables.out().print(_compare.table(rows))


def numbers(option: str, text: str | None) -> tuple[int, ...]:
    """``1,8,64`` as numbers; UsageError for anything else."""
    try:
        return () if text is None else tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"cannot read {option} {text!r}; give numbers with commas, e.g. {option} 1,8,64") from error


def words(option: str, text: str | None) -> tuple[str, ...]:
    """``cpu,cuda`` as words, each once; UsageError for none."""
    if text is None:
        return ()
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise UsageError(f"{option} {text!r} is empty; use e.g. {option} cpu,cuda")
    return found
