"""Subject of a benchmark: a run, a model by name or an ONNX file, in one form for PyTorch and the runtimes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from zoo import registry
from zoo import run as engine
from zoo.bench import Images, _own, is_model
from zoo.console import print_line, print_lines
from zoo.errors import DataError, FileError, UsageError
from zoo.export import _facts, _feed, _graph, _guard, _input, _onnx, _quantise, _session, onnx_fp16
from zoo.training.model_specs import model_spec

IMAGES = 10_000
"""Largest number of test images for a contender's accuracy."""
SCALED = (0.0,) * 3, (1.0,) * 3
"""Mean and standard deviation of images that are scaled to [0, 1], and normalised in the graph."""


@dataclass(frozen=True)
class Subject:
    """A model as in its ONNX file: input, builder for PyTorch, and a file per precision."""

    name: str
    shape: tuple[int, ...]
    """Of one input: (3, H, W) float32, or (H, W, 3) uint8 if the file includes the preprocessing."""
    build: Callable[[], _graph.Exported] | None
    files: dict[str, Path] = field(default_factory=dict)
    weights_mb: float = 0.0
    folder: Path | None = None
    run: engine.Run | None = None
    preprocess: str = "none"
    dtype: str = "float32"
    fixed: int = 0
    """The only accepted batch size; 0: any."""
    seconds: float = 0.0
    """Seconds per image in the trial, if there was one."""
    own: _own.Labelled | None = None
    """Images of the user's choice for the accuracy, instead of the run's."""

    def noise(self, batch: int) -> Tensor:
        """The same (N, *shape) images for every contender and every run: :func:`zoo.export._feed.noise`."""
        return torch.from_numpy(_feed.noise(batch, self.shape, self.dtype))

    def images(self, split: str = "test", most: int = IMAGES) -> tuple[Tensor, Tensor] | None:
        """Images as model inputs, evenly spread over the split, with targets: those chosen (:attr:`own`) or of the run's data, else None."""
        found = self.own if self.own and split == "test" else self._of_run(split)
        return found.take(most) if found else None

    def _of_run(self, split: str) -> _own.Labelled | None:
        if self.run is None:
            return None
        try:
            data = self.run.dataset()
            engine.check_classes(self.run, data)
        except (DataError, FileError, UsageError):
            return None
        part = getattr(data, split)
        return _own.Labelled(part.images, part.targets, self.input(self.run)) if len(part) else None

    def input(self, run: engine.Run) -> _input.Input:
        """What the model reads and answers, as its run tells."""
        mean, std = (run.mean, run.std) if self.preprocess == "none" else SCALED
        return _input.Input(
            label=self.name, shape=self.shape, dtype=self.dtype, outputs=len(run.classes), side=run.input[1], mean=mean, std=std,
            classes=run.classes, whole=self.preprocess == "full", advice="omit --data",
        )  # fmt: skip


@contextlib.contextmanager
def opened(
    target: str | Path | engine.Run | None, precisions: tuple[str, ...], *, max_memory: int = 0, timeout: float = _guard.TIMEOUT,
    given: Images | None = None, size: int = 0,
) -> Iterator[Subject]:  # fmt: skip
    """A run (None: the latest), a ``FILE.onnx`` or a model's name, with a file for each of ``precisions``.

    ``given`` are labelled images for the accuracy of a file or a run, instead of the run's own; ``size`` are the pixels of the
    input of a file that leaves them open.

    Existing files are tried in a child process first (:func:`zoo.export._guard.trial`, by its ``max_memory`` MB and
    ``timeout`` s), also those of a run, which may be from an unknown source. Missing ones are created temporarily.

    Raises:
        UsageError: no such run or model, or a size that it does not leave open. FileError: a file that cannot be used.
    """
    tried = partial(_guard.trial, size=size, max_memory=max_memory, timeout=timeout)
    if isinstance(target, str | Path) and _guard.is_onnx(target):
        yield _of_file(Path(target), tried(Path(target)), given, size)
        return
    if size:
        raise UsageError(f"--size applies to an ONNX file that leaves sizes open ({target} is none); omit it")
    if given and is_model(target):
        raise UsageError(
            f"{target} has random weights, so that its accuracy means nothing; omit --data, or name a run or a file"
        )
    with tempfile.TemporaryDirectory() as name:
        with torch.inference_mode(False):  # the exporter traces, which takes it two attempts with weights made in that mode
            subject, exported = _of_model(target) if is_model(target) else _of_run(target, precisions, tried)
            files = _files(subject, exported, Path(name), precisions)
        yield replace(
            subject, files=files, own=_own.images(given, subject.input(subject.run)) if given and subject.run else None
        )


def _of_model(target: Any) -> tuple[Subject, _graph.Exported]:
    """Random weights, the same each time."""
    shape = model_spec(target).input

    def build() -> _graph.Exported:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = engine.create_model(target)
        return _graph.Exported(model, (0, 0, 0), (1, 1, 1), size=shape[1], stored=shape[1], preprocess="none")

    exported = build()
    return Subject(target, shape, build, weights_mb=_mb(exported)), exported


def _of_run(target: Any, precisions: tuple[str, ...], tried: Callable[[Path], _guard.Trial]) -> tuple[Subject, _graph.Exported]:
    run = target if isinstance(target, engine.Run) else engine.load(target)
    there = {
        each: path for each in precisions if (path := run.path / f"model{registry.targets()['onnx', each]['suffix']}").is_file()
    }
    for path in there.values():
        tried(path)
        _guard.check_receipt(path)
    mode, softmax = own_preprocessing(there["fp32"]) if "fp32" in there else ("none", False)
    if mode == "full":  # accepts images of any size as bytes; runtimes are compared on the network only
        mode, softmax = "none", False
        print_line("onnx     model.onnx includes resizing; only the network is measured (pass the file to measure all of it)")
    files = {each: path for each, path in there.items() if own_preprocessing(path) == (mode, softmax)}

    def build() -> _graph.Exported:
        return _graph.of_run(run.reloaded() if run.path else run, stored=run.stored, preprocess=mode, softmax=softmax)

    weights = run.path / "weights.safetensors"
    found = Subject(
        run.recipe.model, run.input, build, files, weights.stat().st_size / 1e6 if weights.is_file() else _mb(run.model), run.path, run,
        mode,
    )  # fmt: skip
    return found, _graph.of_run(run, stored=run.stored, preprocess=mode, softmax=softmax)


def _mb(model: nn.Module) -> float:
    return sum(value.nbytes for value in model.state_dict().values()) / 1e6


def _own_of_file(
    path: Path, session: Any, feed: _feed.Feed, found: Subject, written: Mapping[str, str], given: Images
) -> _own.Labelled:
    """Labelled images for a file; its scores are computed once, as their declared shape may be open."""
    outputs = _feed.scores(session, replace(feed, batch=found.fixed), path, "omit --data")[0].size
    names = _facts.names(written)
    model = _input.Input(
        label=path.name,
        shape=found.shape,
        dtype=feed.dtype,
        outputs=outputs,
        classes=names if len(names) == outputs else (),
        advice="omit --data",
    )
    if facts := _of_zoo(written, path):
        steps = facts.preprocessing
        mean, std = (steps.mean, steps.std) if steps.mode == "none" else SCALED
        model = replace(model, side=steps.size, mean=mean, std=std, classes=facts.classes, whole=steps.mode == "full")
    return _own.images(given, model)


def _of_zoo(written: Mapping[str, str], path: Path) -> _facts.Facts | None:
    return _facts.read(written, path) if _facts.of_zoo(written) else None


def _of_file(path: Path, trial: _guard.Trial, given: Images | None = None, size: int = 0) -> Subject:
    """A file; with its run in the same folder, PyTorch is included too."""
    _guard.check_receipt(path)
    session = _session.open_session(path)
    feed, written = _feed.of(session, path, size=size), session.get_modelmeta().custom_metadata_map
    facts = _of_zoo(written, path)
    _feed.check_size(feed, path, size, known=facts is not None)
    mode, shape = (facts.preprocessing.mode if facts else "none"), feed.shape
    if facts and mode == "full":
        shape = (facts.preprocessing.resize, facts.preprocessing.resize, 3)
    found = Subject(
        path.stem, shape, None, {precision(path): path}, _guard.check(path) / 1e6, preprocess=mode, dtype=feed.dtype,
        fixed=trial.batch, seconds=trial.seconds,
    )  # fmt: skip
    _say(path, session, feed, found)
    if given:
        found = replace(found, own=_own_of_file(path, session, feed, found, written, given))
    if not (path.parent / "recipe.toml").is_file() or "weights_sha256" not in written:
        return found
    run = engine.load(path.parent)
    if _graph.weights_sha256(run.model) != written.get("weights_sha256"):
        print_line(f"pytorch  skipped: {path.name} was exported from other weights than those of {path.parent}")
        return found
    softmax = written.get("softmax", "false") == "true"

    def build() -> _graph.Exported:
        return _graph.of_run(engine.load(path.parent), stored=run.stored, preprocess=mode, softmax=softmax)

    return replace(found, build=build, run=run)


def _say(path: Path, session: Any, feed: _feed.Feed, found: Subject) -> None:
    """Choices for a file with open dimensions or several outputs."""
    print_lines(_feed.remarks(session, feed, path))
    if found.fixed:
        print_line(f"batch    {path.name} accepts only batches of {found.fixed}")


def own_preprocessing(path: Path) -> tuple[str, bool]:
    """Preprocessing and softmax of an exported file, by its metadata: ``none``, ``normalize`` or ``full``; softmax or not."""
    written = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    return written.get("preprocess", "none"), written.get("softmax", "false") == "true"


def precision(path: Path) -> str:
    """``int8``, ``fp16`` or ``fp32``, by the operators in the graph."""
    graph = onnx.load(path, load_external_data=False).graph
    if any(node.op_type == "DequantizeLinear" for node in graph.node):
        return "int8"
    halves = sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    return "fp16" if 2 * halves > len(graph.initializer) else "fp32"


def _files(subject: Subject, exported: _graph.Exported, folder: Path, precisions: tuple[str, ...]) -> dict[str, Path]:
    files = {"fp32": folder / "model.onnx"} | subject.files  # always first
    missing = [each for each in precisions if each not in subject.files]
    if not missing:
        return files
    exact = _onnx.trace(exported)
    for each in missing:
        made = folder / f"model_{each}.onnx"
        try:
            if each == "int8":
                _onnx.save(_quantise.calibrated(exact, _calibration(subject)), made, {})
            elif each == "fp16":
                _onnx.save(onnx_fp16.convert(exact), made, {})
            else:
                _onnx.save(exact, files["fp32"], {})
                continue
        except Exception as error:  # several libraries are involved, each with its own errors
            if each == "fp32":
                raise
            print_line(f"skipped  {each}: cannot be exported ({type(error).__name__}: {_session.reason(error)})")
            continue
        files[each] = made
    return files


def _calibration(subject: Subject) -> np.ndarray:
    """Training images, or noise where there are none."""
    found = subject.images("train", 256)
    return (found[0] if found else subject.noise(32)).numpy()
