"""What an export computes: the images that are compared, in which layout, how many at a time, on how many threads."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_export import MEAN, STD, HeldRun, Tiny, run_of
from torch import Tensor, nn

import zoo.export
from zoo import thread_settings
from zoo.errors import UsageError
from zoo.export import _cases, _graph, _hub, _job, _session, _tracing, _verify
from zoo.run import Run
from zoo.spec import Split

pytest.importorskip("onnxruntime")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    torch.manual_seed(0)
    return run_of(Tiny(), tmp_path, HeldRun, env={})


def exported(model: nn.Module, size: int = 32) -> _graph.Exported:
    return _graph.Exported(model, MEAN, STD, size=size, stored=size, preprocess="normalize")


def test_images_are_of_all_classes_in_proportion() -> None:
    targets = np.where(np.arange(1000) % 10 == 5, 1, 0)  # every 10th image is missed by steps of 10
    part = Split(np.zeros((1000, 1)), targets, [])
    at = _cases.places(part, 100)
    assert np.bincount(targets[at]).tolist() == [90, 10]
    assert (np.diff(at) > 0).all()
    assert _cases.places(part, 5000).tolist() == list(range(1000))


def test_accuracy_of_fp32_is_that_of_the_images_compared(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = zoo.export.onnx(run, images=16)
    assert receipt.test is not None
    assert (receipt.n, receipt.test["n"], receipt.test["of"]) == (16, 16, 64)
    assert "] on 16 of 64 test images (the run: 50.00 % of 64)" in receipt.lines()["test"]
    monkeypatch.setattr(Run, "dataset", lambda self: run.dataset())
    checks = {check.name: check for check in _verify.verify(receipt.path, run=run)}
    assert (checks["accuracy"].state, checks["parity with PyTorch"].state) == ("ok", "ok")
    assert " of 16 [" in checks["accuracy"].found
    whole = zoo.export.onnx(run, images=16, full_test=True, force=True)
    assert whole.test is not None
    assert (whole.n, whole.test["n"], "of" in whole.test) == (16, 64, False)
    half = zoo.export.onnx(run, images=16, precision="fp16", max_drop=100)
    assert half.test is not None
    assert half.test["n"] == 64, "a small loss needs all images"
    with pytest.raises(UsageError, match="images = 0 is not allowed"):
        zoo.export.onnx(run, images=0, force=True)


def test_the_card_of_the_hub_has_the_accuracy_of_the_whole_test_set(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def stop(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise KeyboardInterrupt

    (run.path / "weights.safetensors").touch()
    monkeypatch.setattr(_hub, "_cards", lambda: None)
    monkeypatch.setattr(_hub, "onnx", stop)
    with pytest.raises(KeyboardInterrupt):
        _hub.write(run, tmp_path / "hub", full_test=False, images=10)
    assert (asked["full_test"], asked["images"]) == (True, 10)


def test_images_of_a_module_are_not_run_twice() -> None:
    inputs = torch.randn(12, 3, 32, 32)
    subject = _job.of_module(Tiny(), shape=(3, 32, 32), images=inputs, targets=torch.zeros(12, dtype=torch.int64))
    assert subject.at is not None
    assert subject.at.tolist() == list(range(12))


class Watched(nn.Module):
    """Records the layout and number of its inputs; ``view`` of its features needs the usual layout if ``flat``."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.conv, self.linear, self.flat = nn.Conv2d(3, 4, 3, stride=16), nn.LazyLinear(2), flat
        self.seen: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), x.is_contiguous(memory_format=torch.channels_last)))
        x = self.conv(x)
        return self.linear(x.view(len(x), -1) if self.flat else x.reshape(len(x), -1))


@pytest.mark.parametrize("flat", [False, True])
def test_the_reference_computes_in_the_fast_layout_if_it_can(flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Watched(flat)
    net(torch.zeros(1, 3, 64, 64))
    images = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), np.uint8)
    wrapped = exported(net, 64)
    with torch.inference_mode():
        expected = wrapped.model(_cases.normalised(images, wrapped))
    model, _ = laid_out = _cases._laid_out(wrapped)
    monkeypatch.setattr(_cases, "_laid_out", lambda _: laid_out)
    model.seen.clear()
    np.testing.assert_allclose(_cases.right(wrapped)(images), expected.numpy(), atol=1e-5)
    assert model.seen == [(10, not flat)]
    assert wrapped.model.conv.weight.is_contiguous(), "what is traced keeps its layout"


@pytest.mark.parametrize(("variable", "expected"), [("3", 3), ("", thread_settings.cores())])
def test_onnxruntime_has_the_threads_that_are_set(
    variable: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in thread_settings.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZOO_THREADS", variable)
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), tmp_path / "x.onnx"
    )
    assert _session.open_session(tmp_path / "x.onnx").get_session_options().intra_op_num_threads == expected
    assert _session.open_session(tmp_path / "x.onnx", threads=2).get_session_options().intra_op_num_threads == 2


def test_garbage_is_not_collected_while_tracing() -> None:
    with _tracing.tracing():
        assert not gc.isenabled()
    assert gc.isenabled()
