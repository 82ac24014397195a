"""The int8 file of a run with quantisation-aware training has weights of the bits that the run was trained for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from onnx import ModelProto, numpy_helper
from test_export import Tiny, run_of

import zoo.export
from zoo import recipe as recipes
from zoo.export import _choose, _graph, _job, _onnx, _quantise
from zoo.run import Run
from zoo.training import qat

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def graph() -> ModelProto:
    torch.manual_seed(0)
    made = _graph.Exported(Tiny(), (0.5,) * 3, (0.2,) * 3, size=32, stored=32, preprocess="none")
    return _onnx.trace(made)


@pytest.mark.parametrize(("narrow", "bits"), [(False, 8), (True, 7)])
def test_training_rounds_as_onnxruntime_does(graph: ModelProto, narrow: bool, bits: int) -> None:
    """Of each convolution, whose BatchNorm is folded into the weights of the graph."""
    inputs = np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)
    (ranges,) = _quantise.calibrate(graph, inputs, method="minmax", counts=[8])
    made = _quantise.quantise(graph, _quantise.Ranges("minmax", 8, ranges.values, narrow))
    before = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    after = {each.name: numpy_helper.to_array(each) for each in made.graph.initializer}
    compared = 0
    for node in graph.graph.node:
        if node.op_type == "Conv":
            whole = after[f"{node.input[1]}_quantized"].astype(np.float32)
            scale = after[f"{node.input[1]}_scale"].reshape(-1, 1, 1, 1)
            expected = qat.rounded_weight(torch.from_numpy(before[node.input[1]].copy()), bits)
            np.testing.assert_allclose(whole * scale, expected.numpy(), atol=1e-6)
            compared += 1
    assert compared == 2


@pytest.mark.parametrize(
    ("trained", "asked", "saturates", "narrow", "line"),
    [
        (7, False, False, True, "int8     weights in 7 bits, for which the run was trained"),
        (8, False, False, False, ""),
        (8, False, True, True, "warning  the run was trained for weights of 8 bits, this file has 7"),
        (8, True, False, True, "warning  the run was trained for weights of 8 bits, this file has 7"),
        (0, False, True, True, ""),
        (0, True, False, True, ""),
    ],
)
def test_bits_of_the_file(
    trained: int, asked: bool, saturates: bool, narrow: bool, line: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(_quantise, "saturate", lambda *_: saturates)
    job: Any = SimpleNamespace(subject=SimpleNamespace(qat_bits=trained), reduce_range=asked, exact=None)
    nothing: Any = None
    assert _choose._narrow(job, nothing, nothing) is narrow
    assert capsys.readouterr().err.partition(";")[0].strip() == line


@pytest.mark.parametrize(
    ("env", "settings", "expected"),
    [
        ({"qat_bits": 7}, {"qat": True}, 7), ({}, {"qat": True, "qat_bits": 7}, 7), ({}, {"qat": True}, 0),
        ({"qat_bits": 7}, {"qat": False}, 0),
    ],
)  # fmt: skip
def test_bits_that_a_run_was_trained_for(env: dict[str, Any], settings: dict[str, Any], expected: int, tmp_path: Path) -> None:
    run = changed(run_of(Tiny(), tmp_path, env=env), settings)
    assert _job.of_run(run, 8).qat_bits == expected


def test_the_images_of_a_run_are_those_that_it_was_trained_on(small_run: Path) -> None:
    run = zoo.load(small_run)
    run = dataclasses.replace(run, recipe=structs.replace(run.recipe, data=structs.replace(run.recipe.data, per_class=7)))
    assert len(_job.of_run(run, 8).train) == 70


def changed(run: Run, settings: dict[str, Any]) -> Run:
    """The run with other settings in its recipe."""
    return dataclasses.replace(run, recipe=recipes.changed(run.recipe, settings))


def test_the_file_of_a_run_trained_for_7_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quantise, "saturate", None)  # is not measured
    monkeypatch.setattr(_quantise, "METHODS", ("minmax",))
    monkeypatch.setattr(_quantise, "COUNTS", (64,))
    torch.manual_seed(0)
    run = changed(run_of(Tiny(), tmp_path, env={"qat_bits": 7}), {"qat": True})
    receipt = zoo.export.onnx(run, precision="int8", max_drop=100)
    assert receipt.calibration is not None
    assert receipt.calibration["weights"] == "7 bits per channel"
