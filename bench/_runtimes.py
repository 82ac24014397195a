"""onnxruntime and OpenVINO as contenders, with their fastest settings; each choice is measured and named in the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from zoo.bench import _gpu, _timing
from zoo.bench._contenders import Call, Contender, Ready, loaded
from zoo.export import _feed, _guard, _session

K = TypeVar("K")
MARGIN = 0.03
"""Share by which a non-default setting must be faster."""
SPLIT_FROM = 16
"""Smallest batch that is also tried in parts, whose activations may fit the caches."""


def of_onnxruntime(
    files: Mapping[str, Path],
    device: torch.device,
    threads: int,
    *,
    tune: bool = False,
    allow_cpu: bool = False,
    example: np.ndarray | None = None,
) -> list[Contender]:
    """onnxruntime on the CPU (fp32, int8) or the GPU (fp32, fp16; there with TensorRT too, if available).

    ``example``, a batch that the files accept, is needed for a GPU.

    Raises:
        UsageError: onnxruntime is missing or cannot run on ``device`` (it would fall back to the CPU silently).
    """
    if device.type != "cpu":
        assert example is not None
        return _gpu.contenders(files, device, threads, example=example, allow_cpu=allow_cpu)
    return [
        loaded(
            _name("onnxruntime cpu", precision), precision, partial(Tuned, path, threads, tune=tune),
            lambda tuned, inputs: tuned.prepare(inputs), file_mb=_guard.check(path) / 1e6,
        )
        for precision, path in files.items()
        if precision != "fp16" or len(files) == 1  # on the CPU it is converted back: smaller, never faster
    ]  # fmt: skip


def _name(runtime: str, precision: str) -> str:
    return runtime if precision == "fp32" else f"{runtime} {precision}"


class Tuned:
    """A session on the CPU whose waiting (spinning or not) and batch splitting are chosen by a short measurement."""

    def __init__(self, path: Path, threads: int, *, tune: bool) -> None:
        self.path, self.threads, self.tune = path, threads, tune
        self.session = self._open(spin=True)
        self.fixed = isinstance(self.session.get_inputs()[0].shape[0], int)
        """Whether only one batch size is accepted; it is then not tried in parts."""
        self.waits = ""

    def _open(self, *, spin: bool) -> Any:
        entries = {"session.intra_op.allow_spinning": str(int(spin))}
        return _session.open_session(self.path, threads=self.threads, entries=entries)

    def prepare(self, inputs: Tensor) -> Ready:
        """A plain call, with :meth:`tuned` to follow."""
        return Ready(run(self.session, inputs.numpy()), tune=partial(self.tuned, inputs) if self.tune else None)

    def tuned(self, inputs: Tensor) -> Ready:
        """The fastest call for this batch; the first batch decides the waiting mode."""
        if not self.waits:
            self._choose_waiting(inputs.numpy())
        parts = {1: run(self.session, inputs.numpy())}
        if len(inputs) >= SPLIT_FROM and not self.fixed:
            parts |= {n: run(self.session, inputs.numpy(), n) for n in (2, 4)}
        chosen = fastest(parts)
        return Ready(parts[chosen], settings="; ".join([self.waits, *([f"in {chosen} parts"] if chosen > 1 else [])]))

    def _choose_waiting(self, images: np.ndarray) -> None:
        if self.threads == 1:  # no thread waits for others
            self.waits = "one thread"
            return
        other = self._open(spin=False)
        if fastest({"spin": run(self.session, images), "sleep": run(other, images)}) == "sleep":
            self.session = other
        self.waits = "threads sleep" if self.session is other else "threads spin"


def fastest(calls: Mapping[K, Call], rounds: int = 5) -> K:
    """The key of the quickest call; the first, unless another is faster by more than :data:`MARGIN`."""
    usual, *others = calls
    if not others:
        return usual
    samples = _timing.interleave({str(key): call for key, call in calls.items()}, rounds=rounds, warmup=1)
    best = min(calls, key=lambda key: samples[str(key)].median)
    return best if _timing.ratio(samples[str(usual)], samples[str(best)]) > 1 + MARGIN else usual


def run(session: Any, images: np.ndarray, parts: int = 1) -> Call:
    """``session.run`` on a batch that is read on every call, in ``parts`` one after the other."""
    name, wanted = session.get_inputs()[0].name, [_feed.output(session, Path())]
    feeds = [{name: part} for part in np.array_split(images, parts)]  # views: nothing is copied
    if parts == 1:
        feed = feeds[0]
        return lambda: session.run(wanted, feed)[0]
    return lambda: np.concatenate([session.run(wanted, feed)[0] for feed in feeds])


def of_openvino(files: Mapping[str, Path], threads: int, *, half: bool) -> list[Contender]:
    """OpenVINO on the CPU, compiled for each batch size: fp32, bf16 if the CPU supports it, int8; empty if not installed."""
    try:
        import openvino
    except ImportError:
        return []
    ways = [("fp32", "fp32"), ("int8", "int8"), *([("bf16", "fp32")] if half else [])]
    core = openvino.Core()
    return [
        loaded(
            _name("openvino", precision), precision, partial(core.read_model, str(files[source])),
            partial(_compiled, core, threads, precision), file_mb=_guard.check(files[source]) / 1e6, may_fail=True,
        )
        for precision, source in ways if source in files
    ]  # fmt: skip


def _compiled(core: Any, threads: int, precision: str, model: Any, inputs: Tensor) -> Ready:
    import openvino

    own = model.clone()
    own.reshape(list(inputs.shape))
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(own, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(inputs.numpy(), shared_memory=True))
    return Ready(_inferring(request))


def _inferring(request: Any) -> Callable[[], np.ndarray]:
    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return call
