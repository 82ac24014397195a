"""Every export target on the smallest net with every kind of preprocessing: it passes, and a wrong target is detected."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_export import Tiny, run_of

import zoo.export
from zoo import registry
from zoo.errors import DisagreeError
from zoo.export import _graph, _onnx, _quantise
from zoo.run import Run

pytest.importorskip("onnxruntime")
TARGETS = registry.targets()
Answer = Callable[[np.ndarray], np.ndarray]
FAULTS: dict[str, Callable[[Answer], Answer]] = {
    "returns its input": lambda answer: lambda inputs: inputs,
    "negates its answers": lambda answer: lambda inputs: -answer(inputs),
    "answers for the image before": lambda answer: lambda inputs: np.roll(answer(inputs), 1, axis=0) + (len(inputs) == 1),
    "gives no number": lambda answer: lambda inputs: answer(inputs) * np.float32("nan"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.manual_seed(0)
    return run_of(Tiny(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def traced() -> dict[str, Any]:
    """Traced graphs by preprocessing: only the stages after tracing are tested here."""
    return {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, traced: dict[str, Any]) -> None:
    """One calibration, and one trace per kind of preprocessing."""
    trace = _onnx.trace

    def kept(model: _graph.Exported, **options: Any) -> Any:
        if model.preprocess not in traced:
            traced[model.preprocess] = trace(model, **options)
        graph = type(traced[model.preprocess])()
        graph.CopyFrom(traced[model.preprocess])
        return graph

    monkeypatch.setattr(_onnx, "trace", kept)
    monkeypatch.setattr(_quantise, "METHODS", ("minmax",))
    monkeypatch.setattr(_quantise, "COUNTS", (64,))


def module_of(key: tuple[str, str]) -> Any:
    for package in TARGETS[key].get("needs", ()):
        pytest.importorskip(package)
    return importlib.import_module(f"zoo.export.{TARGETS[key]['module']}")


def test_the_walk_is_not_empty() -> None:
    assert {("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("openvino", "fp32"), ("pt2", "fp32")} <= set(TARGETS)
    files = {path.stem for path in Path(zoo.export.__file__).parent.glob("[a-z]*.py")}
    assert files == {fields["module"] for fields in TARGETS.values()}, "each public file is a target"


@pytest.mark.parametrize("preprocess", _graph.PREPROCESS)
@pytest.mark.parametrize("key", TARGETS, ids=" ".join)
def test_every_target(key: tuple[str, str], preprocess: str, run: Run, tmp_path: Path, quick: None) -> None:
    spec = module_of(key).TARGET
    assert {name: getattr(spec, name) for name in TARGETS[key] if name != "module"} == {
        name: value for name, value in TARGETS[key].items() if name != "module"
    }, "the literals that the registry reads are those of the module"
    out = tmp_path / f"model{spec.suffix}"
    receipt = zoo.export.program(run, out, fmt=key[0], precision=key[1], preprocess=preprocess, max_drop=10)
    assert (receipt.format, receipt.precision, receipt.preprocess) == (*key, preprocess)
    assert receipt.agree + receipt.ties == receipt.n == 64
    assert receipt.max_abs <= spec.tolerance
    assert {path.name for path in tmp_path.iterdir()} == set(receipt.files)
    assert receipt.files[0] == out.name


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("key", TARGETS, ids=" ".join)
def test_a_wrong_target_is_caught(
    key: tuple[str, str], fault: str, run: Run, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module_of(key)
    answer = module.answer
    monkeypatch.setattr(module, "answer", lambda path: FAULTS[fault](answer(path)))
    with pytest.raises(DisagreeError, match=r"differs from PyTorch .*; nothing published"):
        zoo.export.program(run, tmp_path / f"model{module.TARGET.suffix}", fmt=key[0], precision=key[1], max_drop=100)
    assert list(tmp_path.iterdir()) == []
