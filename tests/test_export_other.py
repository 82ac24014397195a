"""torch.export and OpenVINO files agree with PyTorch; one that does not is not published."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_export import Tiny, images, run_of

import zoo.export
from zoo import files
from zoo.errors import BusyError, DisagreeError, UsageError
from zoo.export import _graph, _tensorrt, openvino_ir
from zoo.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    torch.manual_seed(0)
    return run_of(Tiny(), tmp_path)


def test_pt2(run: Run) -> None:
    receipt = zoo.export.program(run, fmt="pt2")
    assert (receipt.path.name, receipt.agree, receipt.n) == ("model.pt2", 64, 64)
    held = {"zoo.json": ""}
    program = torch.export.load(receipt.path, extra_files=held).module()
    assert json.loads(json.loads(held["zoo.json"])["test"])["n"] == 64
    pixels = torch.from_numpy(images(32).test.images[:7]).permute(0, 3, 1, 2) / 255
    wanted = run.model((pixels - torch.tensor(run.mean)[:, None, None]) / torch.tensor(run.std)[:, None, None])
    torch.testing.assert_close(program(pixels), wanted, atol=1e-5, rtol=0)
    with pytest.raises(BusyError, match="file exists"):
        zoo.export.program(run, fmt="pt2")


def test_openvino(run: Run) -> None:
    pytest.importorskip("openvino")
    receipt = zoo.export.program(run, fmt="openvino")
    assert sorted(path.name for path in run.path.iterdir()) == ["model.bin", "model.xml"]
    assert (receipt.agree, receipt.n) == (64, 64)
    got = openvino_ir.answer(receipt.path)(np.zeros((3, 3, 32, 32), np.float32))
    assert got.shape == (3, 10)


def test_the_two_files_of_openvino_are_one_exports(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    publish, seen = files.publish, []

    def held(path: Path, *rest: Any) -> None:
        if path.parent == run.path:
            with pytest.raises(TimeoutError), files.held(run.path / files.LOCK, wait=False):
                pass
            seen.append(path.name)
        publish(path, *rest)

    monkeypatch.setattr(files, "publish", held)
    zoo.export.program(run, fmt="openvino")
    assert seen == ["model.bin", "model.xml"]


def test_a_wrong_one_is_not_published(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph.Exported, "prepare", lambda self, images: images * self.scale + self.shift * 1.01)
    with pytest.raises(DisagreeError, match="differs from PyTorch .*pt2 fp32.; nothing published"):
        zoo.export.program(run, fmt="pt2")
    assert list(run.path.iterdir()) == []


def test_unknown_format(run: Run) -> None:
    with pytest.raises(UsageError, match="no format 'tflite'; use one of onnx, openvino, pt2"):
        zoo.export.program(run, fmt="tflite")
    with pytest.raises(UsageError, match="no precision 'int8' of pt2; use one of fp32"):
        zoo.export.program(run, fmt="pt2", precision="int8")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("preprocess", ["none", "normalize", "full"])
def test_the_command_for_tensorrt_names_what_the_file_has(tmp_path: Path, precision: str, preprocess: str) -> None:
    path = tmp_path / "a model.onnx"
    receipt = zoo.export.Receipt(
        path=path, bytes=1, files=(path.name,), format="onnx", precision=precision, opset=20, ir_version=9, preprocess=preprocess,
        batches=(1, 2, 7), agree=1, n=1, ties=0, max_abs=0.0, images="", seconds=0.0,
    )  # fmt: skip
    words = shlex.split(_tensorrt.command(receipt, 32))
    if precision == "int8" or preprocess == "full":
        assert not words, "TensorRT takes no unsigned activations, and rounds float64 to float32"
        return
    assert words[:3] == ["trtexec", f"--onnx={path}", f"--saveEngine={tmp_path / 'a model.engine'}"]
    assert words[3:6] == [f"--{name}Shapes=image:{n}x3x32x32" for name, n in (("min", 1), ("opt", 8), ("max", 64))]
    assert not {"--fp16", "--int8", "--best"} & set(words), "gone in TensorRT 11, and not allowed with strong types before"
