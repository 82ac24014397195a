"""onnxruntime on a GPU, verified: the provider is required, checked in the session, and its nodes are counted in a profile.

By default onnxruntime falls back to the CPU silently if CUDA cannot start.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo import runtimes
from zoo.bench._contenders import Call, Contender, Ready, loaded
from zoo.errors import UsageError
from zoo.export import _guard, _session

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
HEAVY = ("Conv", "Gemm", "MatMul")
"""In the names of operators that no small shape computation needs (NhwcFusedConv too): one of them on the CPU is a fallback."""
FELL = " (on the cpu)"


def contenders(
    files: Mapping[str, Path], device: torch.device, threads: int, *, example: np.ndarray, allow_cpu: bool
) -> list[Contender]:
    """The CUDA provider (fp32, fp16), and TensorRT if it starts; ``example`` is a batch that the files accept.

    Raises:
        UsageError: the CUDA provider does not run the model, and ``allow_cpu`` is not set.
    """
    found = []
    for provider, name in ((CUDA, "onnxruntime cuda"), (TENSORRT, "onnxruntime tensorrt")):
        for precision, path in files.items():
            if precision == "int8":
                continue
            full = name if precision == "fp32" else f"{name} {precision}"
            try:
                proof = prove(path, provider, device, threads, example)
            except UsageError:
                if provider == TENSORRT:
                    continue
                if not allow_cpu:
                    raise
                proof, full = "fell back to the cpu, as allowed", full + FELL
            found.append(_contender(full, precision, path, provider, device, threads, proof))
    return found


def _contender(
    name: str, precision: str, path: Path, provider: str, device: torch.device, threads: int, proof: str
) -> Contender:
    fell = name.endswith(FELL)

    def load() -> Any:
        if fell:
            return _session.open_session(path, threads=threads)
        return open_session(path, provider, device, threads)

    def prepare(session: Any, inputs: Tensor) -> Ready:
        label, wanted = session.get_inputs()[0].name, [session.get_outputs()[0].name]
        feed = {label: inputs.numpy()}

        def call() -> Any:
            return session.run(wanted, feed)[0]

        resident = None if fell else bound(session, inputs.to(device), call())
        return Ready(call, resident, proof if fell else f"tf32 off, {proof}")

    return loaded(name, precision, load, prepare, file_mb=_guard.check(path) / 1e6, device=None if fell else device)


def open_session(path: Path, provider: str, device: torch.device, threads: int, profile: Path | None = None) -> Any:
    """A session on ``provider`` without a fallback to the CPU; TF32 off as in PyTorch.

    onnxruntime then rejects a graph with small shape nodes, which run on the CPU; it is opened with the fallback, and the
    profile shows the placement.

    Raises:
        UsageError: the provider is missing or did not start.
    """
    onnxruntime = runtimes.onnxruntime()
    live = onnxruntime.get_available_providers()
    if provider not in live:
        raise UsageError(f"onnxruntime has no {provider} (available: {', '.join(live)}); use --devices cpu")
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints missing libraries
            onnxruntime.preload_dlls()  # torch's CUDA libraries
    try:
        return _checked(_opened(path, _options(threads, profile, locked=True), _chain(provider, device)), provider)
    except UsageError:
        raise
    except Exception as error:  # onnxruntime raises its own types, RuntimeError and ValueError
        if "explicitly assigned" not in str(error) and "assigned to the default CPU EP" not in str(error):
            raise UsageError(_why(provider, error)) from error
    return _checked(_opened(path, _options(threads, profile, locked=False), [*_chain(provider, device), CPU]), provider)


def _opened(path: Path, options: Any, providers: list[Any]) -> Any:
    """A session whose failure is raised: by default onnxruntime prints it to stdout and falls back to the CPU."""
    return runtimes.onnxruntime().InferenceSession(str(path), options, providers=providers, enable_fallback=0)


def _options(threads: int, profile: Path | None, *, locked: bool) -> Any:
    onnxruntime = runtimes.onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    if locked:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return options


def _chain(provider: str, where: torch.device) -> list[Any]:
    device = where.index or 0
    cuda = (CUDA, {"device_id": device, "use_tf32": 0})
    return [cuda] if provider == CUDA else [(provider, {"device_id": device}), cuda]


def _checked(session: Any, provider: str) -> Any:
    if (first := session.get_providers()[0]) != provider:
        raise UsageError(_why(provider, f"onnxruntime used {first} instead"))
    return session


def _why(provider: str, error: object) -> str:
    first = " ".join(str(error).split())[:90] or type(error).__name__
    return f"onnxruntime cannot start {provider} ({first}; available: {CPU}); use --devices cpu, or --allow-cpu-fallback"


def prove(path: Path, provider: str, device: torch.device, threads: int, example: np.ndarray) -> str:
    """Profile one batch, ``example``, and return the placement of nodes, e.g. ``cuda 40 nodes, cpu 2 (Shape, Gather)``.

    Raises:
        UsageError: the provider is missing, or a Conv, Gemm or MatMul ran on the CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, provider, device, threads, Path(folder) / "profile")
        session.run(None, {session.get_inputs()[0].name: example})
        counts = placed(Path(session.end_profiling()))
    return judged(counts, provider)


def placed(profile: Path) -> dict[str, Counter[str]]:
    """For each provider its operators with their number, from onnxruntime's profile."""
    found: dict[str, Counter[str]] = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        facts = event.get("args", {})
        if event.get("cat") == "Node" and facts.get("provider"):
            found.setdefault(facts["provider"], Counter())[facts.get("op_name", "?")] += 1
    return found


def judged(counts: Mapping[str, Counter[str]], provider: str) -> str:
    """The counts in words; UsageError if ``provider`` ran nothing or heavy work ran on the CPU."""
    here = counts.get(CPU, Counter())
    heavy = {name: number for name, number in here.items() if any(part in name for part in HEAVY)}
    if not counts.get(provider) or heavy:
        listed = ", ".join(f"{number} {name}" for name, number in heavy.items()) or "all nodes"
        raise UsageError(
            f"onnxruntime ran {listed} on the CPU instead of {provider}; use --devices cpu, or --allow-cpu-fallback"
        )
    parts = [
        f"{each.removesuffix('ExecutionProvider').lower()} {sum(ops.values())} nodes"
        for each, ops in counts.items()
        if each != CPU
    ]
    if here:
        parts.append(f"cpu {sum(here.values())} ({', '.join(sorted(here))})")
    return ", ".join(parts)


def bound(session: Any, inputs: Tensor, answer: np.ndarray) -> Call:
    """A run whose inputs and outputs stay on the GPU (I/O binding); outputs have the shape and type of ``answer``."""
    outputs = torch.empty_like(torch.from_numpy(answer), device=inputs.device)
    binding = session.io_binding()
    place = (inputs.device.type, inputs.device.index or 0)
    kind = np.uint8 if inputs.dtype == torch.uint8 else np.float32
    binding.bind_input(session.get_inputs()[0].name, *place, kind, tuple(inputs.shape), inputs.data_ptr())
    binding.bind_output(session.get_outputs()[0].name, *place, answer.dtype.type, tuple(outputs.shape), outputs.data_ptr())

    def call() -> Tensor:
        assert inputs.is_contiguous()  # the closure also keeps the tensor alive
        session.run_with_iobinding(binding)
        return outputs

    return call
