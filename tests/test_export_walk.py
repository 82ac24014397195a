"""Every registered model and some of timm's, with random weights, in every precision: the file agrees with PyTorch."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from test_export import run_of
from torch import nn

import zoo.export
from zoo import registry
from zoo import run as engine
from zoo.export import _quantise
from zoo.run import Run

pytest.importorskip("onnxruntime")
MODELS = registry.table("models")
HEAVY = {name for name, fields in MODELS.items() if fields["params"] > 5_000_000 or fields["macs"] > 90_000_000}
SMALL = [name for name in MODELS if name not in HEAVY]
TIMM = ["timm/resnet10t", "timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224"]
TINY_TIMM = ["timm/test_resnet", "timm/test_vit"]


def settled(name: str, folder: Path, count: int = 64) -> Run:
    """A run with random weights whose BatchNorm statistics are those of its first images.

    Without them values grow from block to block, in ResNet-110 beyond float16's largest.
    """
    torch.manual_seed(1)
    model = engine.create_model(name, 10)
    run = run_of(model, folder, name=name, count=count)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a cumulative average, here of one batch
    first = torch.from_numpy(run.dataset().test.images[:16].copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        model.train()((first - torch.tensor(run.mean)[:, None, None]) / torch.tensor(run.std)[:, None, None])
    model.eval()
    return run


def test_the_walk_is_not_empty() -> None:
    assert len(SMALL) >= 6
    assert len(HEAVY) >= 6


@pytest.mark.parametrize("name", [*SMALL, *TINY_TIMM])
def test_every_small_model(name: str, tmp_path: Path) -> None:
    receipt = zoo.export.onnx(settled(name, tmp_path), preprocess="none", images=16)
    assert (receipt.agree, receipt.n) == (16, 16)
    assert receipt.max_abs <= 2e-5
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "one file"


@pytest.mark.slow
@pytest.mark.timeout(7200)  # 25 TFLOP for ResNet-50
@pytest.mark.parametrize("name", [*MODELS, *TIMM])
def test_every_model_on_a_thousand_images(name: str, tmp_path: Path) -> None:
    receipt = zoo.export.onnx(settled(name, tmp_path, 1000), images=1000)
    assert (receipt.agree, receipt.n) == (1000, 1000)
    assert receipt.max_abs <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("fmt", sorted({fmt for fmt, _ in registry.targets()} - {"onnx"}))
@pytest.mark.parametrize("name", [*MODELS, *TIMM])
def test_every_model_in_other_formats(name: str, fmt: str, tmp_path: Path) -> None:
    if fmt == "openvino":
        pytest.importorskip("openvino")
    receipt = zoo.export.program(settled(name, tmp_path), fmt=fmt, images=64)
    assert (receipt.agree, receipt.n) == (64, 64)
    assert receipt.max_abs <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, *TIMM])
def test_every_model_in_fp16(name: str, tmp_path: Path) -> None:
    receipt = zoo.export.onnx(settled(name, tmp_path), precision="fp16", images=16, max_drop=100)
    assert receipt.agree + receipt.ties == 16
    assert receipt.max_abs <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, "timm/resnet10t"])
def test_every_small_model_in_int8(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights accuracy is meaningless, but the file must have 8 bit weights and be near float32."""
    monkeypatch.setattr(_quantise, "METHODS", ("minmax",))
    monkeypatch.setattr(_quantise, "COUNTS", (64,))
    run = settled(name, tmp_path)
    receipt = zoo.export.onnx(run, precision="int8", images=64, max_drop=100)
    assert receipt.agree >= 32
    assert receipt.max_abs <= 1.0
    model = onnx.load(receipt.path)
    weights = sum(each.data_type == onnx.TensorProto.INT8 for each in model.graph.initializer)
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in run.model.modules())
    assert weights >= layers, "each layer's weight"
    assert receipt.bytes < 0.5 * sum(value.nbytes for value in run.model.state_dict().values())
