"""An exported file agrees with PyTorch and describes itself; otherwise it is not published."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import zoo.export
from zoo import recipe
from zoo import run as engine
from zoo.data._pixels import square
from zoo.data.synthetic import CLASSES, make
from zoo.errors import BusyError, DataError, DisagreeError, DiskError, FileError, UsageError
from zoo.export import _accuracy, _graph, _onnx, _parity, _session, _shortcut
from zoo.run import Run
from zoo.spec import DataSet, Split
from zoo.training import model_specs

ort = pytest.importorskip("onnxruntime")
MEAN, STD = (0.49, 0.45, 0.4), (0.25, 0.23, 0.21)


@cache
def images(side: int, count: int = 64) -> DataSet:
    pixels, targets = make(count, 2, side)
    part = Split(pixels, targets, [str(i) for i in range(len(targets))])
    return DataSet("synthetic", CLASSES, part, part, part, MEAN, STD, "0")


@dataclasses.dataclass(frozen=True)
class HeldRun(Run):
    """A run with its data in memory."""

    count: int = 64

    def dataset(self) -> DataSet:
        return images(self.input[1], self.count)


class AwayRun(Run):
    """A run whose data set is missing."""

    def dataset(self) -> DataSet:
        raise DataError("no data folder")


class Tiny(nn.Module):
    """A net that traces in a second, with every layer that eval mode changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(torch.relu(self.bn(self.conv1(x))))
        return self.linear(self.drop(torch.relu(x).mean((2, 3))))


def run_of(model: nn.Module, folder: Path, kind: type[Run] = HeldRun, name: str = "cnn_small", **changes: Any) -> Run:
    made = recipe.resolve(name, {"data.name": "synthetic", "data.dir": str(folder)})
    rows = [{"epoch": 1, "split": "test", "n": 64, "accuracy": 0.5, "low": 0.4, "high": 0.6, "macro": 0.5, "loss": 1.0}]
    shape = model_specs.model_spec(name).input
    run = kind(folder, model.eval(), made, CLASSES, shape, MEAN, STD, rows, {"data_digest": "abc"})
    return dataclasses.replace(run, **changes)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A tiny run whose BatchNorm statistics differ from those of a new net."""
    torch.manual_seed(0)
    model = Tiny()
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(16, 3, 32, 32))
    return run_of(model, tmp_path)


def facts(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize(("preprocess", "softmax"), [("none", False), ("normalize", True), ("full", False)])
def test_answers_and_says_what_it_is(run: Run, preprocess: str, softmax: bool) -> None:
    receipt = zoo.export.onnx(run, preprocess=preprocess, softmax=softmax)
    assert receipt.path == run.path / "model.onnx"
    assert receipt.batches == (1, 2, 7, 64)
    assert receipt.bytes == receipt.path.stat().st_size
    assert "64/64 classes" in receipt.line()
    assert "opset 20" in receipt.line()
    session = _session.open_session(receipt.path)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, given.name) == ("image", "probabilities" if softmax else "logits")
    assert taken.shape == (["batch", "height", "width", 3] if preprocess == "full" else ["batch", 3, 32, 32])
    pixels = images(32).test.images[:7]
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    normal = (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.inference_mode():
        wanted = run.model.double()(normal)
    wanted = wanted.softmax(1) if softmax else wanted
    fed = {"none": normal.float().numpy(), "normalize": scaled.float().numpy(), "full": pixels}[preprocess]
    for size in (1, 2, 7):
        got = session.run(None, {"image": fed[:size]})[0]
        np.testing.assert_allclose(got, wanted[:size].numpy(), atol=2e-6)


@pytest.mark.parametrize("times", [1.0, 2.0])
def test_each_stage_is_reported(
    run: Run, times: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute without output looks like a hang: each stage is printed before it begins."""
    monkeypatch.setattr(_accuracy, "slower", lambda *measured: times)
    zoo.export.onnx(run, precision="fp16", max_drop=100)
    nothing, err = capsys.readouterr()
    topics = [line.split()[0] for line in err.splitlines()]
    warned = ["warning"] if times > 1 else []
    assert topics == ["trace", "parity", "accuracy", "accuracy", *warned, "check"]
    assert ("fp16 takes 2.00 times as long as fp32 on this machine: it is smaller, but not faster" in err) == (times > 1)
    assert "parity   64 images and 12 edge cases, at batch 1, 2, 7 and 64\n" in err
    assert "accuracy fp16 on 64 test images\naccuracy fp32 on 64 test images\n" in err
    assert nothing == ""


def test_metadata(run: Run) -> None:
    receipt = zoo.export.onnx(run, preprocess="full", opset=18)
    model = onnx.load(receipt.path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert (receipt.opset, receipt.ir_version) == (18, 8) == (18, model.ir_version)
    found = facts(receipt.path)
    assert json.loads(found["classes"]) == list(CLASSES)
    steps = json.loads(found["preprocessing"])
    assert (steps["mode"], steps["mean"], steps["std"], steps["size"]) == ("full", list(MEAN), list(STD), 32)
    assert (found["model"], found["data"], found["data_sha256"], found["opset"]) == ("cnn_small", "synthetic", "abc", "18")
    assert found["weights_sha256"] == _graph.weights_sha256(run.model)
    assert found["torch"] == torch.__version__
    assert json.loads(found["test"])["n"] == 64
    parity = json.loads(found["parity"])
    assert (parity["n"], parity["agree"], parity["max_abs"]) == (64, 64, receipt.max_abs)
    assert 'model = "cnn_small"' in found["recipe"]
    raw = receipt.path.read_bytes()
    assert str(run.path).encode() not in raw, "no path of this machine"
    assert b"site-packages" not in raw
    assert b".py" not in raw


def test_a_shortcut_without_parameters_is_a_convolution(tmp_path: Path) -> None:
    """The values have the same bits; slices with another consumer, or with other padding, are unchanged."""
    model = engine.create_model("resnet20").eval()
    exported = _graph.Exported(model, MEAN, STD, size=32, stored=32, preprocess="none")
    plain = _onnx.written(exported)
    made = _onnx.trace(exported)
    kinds = [[node.op_type for node in graph.graph.node] for graph in (plain, made)]
    assert (kinds[0].count("Slice"), kinds[0].count("Pad")) == (4, 2)
    assert not {"Slice", "Pad"} & set(kinds[1])
    assert kinds[1].count("Conv") == kinds[0].count("Conv") + 2
    onnx.checker.check_model(made, full_check=True)
    pixels = np.random.default_rng(0).standard_normal((5, 3, 32, 32), np.float32)
    answers = [
        _session.open_session(graph.SerializeToString(), optimise=False).run(None, {"image": pixels})[0]
        for graph in (plain, made)
    ]
    np.testing.assert_array_equal(*answers)
    for change in ("reflect", "read twice", "other step"):
        other = onnx.ModelProto()
        other.CopyFrom(plain)
        pads = [node for node in other.graph.node if node.op_type == "Pad"]
        slices = [node for node in other.graph.node if node.op_type == "Slice"]
        if change == "reflect":
            for node in pads:
                next(entry for entry in node.attribute if entry.name == "mode").s = b"reflect"
        elif change == "read twice":
            other.graph.output.extend(onnx.helper.make_empty_tensor_value_info(node.output[0]) for node in slices)
        else:
            for node in slices[::2]:
                node.input[4] = slices[0].input[1]  # a step of zero
        before = other.SerializeToString()
        assert _shortcut.convolved(other).SerializeToString() == before, change


def test_same_run_same_bytes(run: Run) -> None:
    first = zoo.export.onnx(run, run.path / "a.onnx").path.read_bytes()
    assert zoo.export.onnx(run, run.path / "b.onnx").path.read_bytes() == first


def test_existing_file_is_kept(run: Run) -> None:
    path = run.path / "model.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(BusyError, match=r"file exists \(.*model.onnx\); replace it with --force"):
        zoo.export.onnx(run)
    assert path.read_bytes() == b"mine"
    assert zoo.export.onnx(run, force=True).bytes > 1000


def test_what_a_killed_export_left_goes(run: Run) -> None:
    stray, other = (run.path / f".model{kind}.abcd_123.zoo-tmp.onnx" for kind in ("", ".int8"))
    data = run.path / ".model.0123abcd.onnx.abcd_123.zoo-tmp.data"
    for path in (stray, other, data):
        path.write_bytes(b"half")
    zoo.export.onnx(run)
    assert {path.name for path in run.path.iterdir()} == {"model.onnx", other.name}, "another file's may be in the making"


def test_a_place_that_takes_no_file_is_reported_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onnx, "trace", None)
    (run.path / "mine").write_bytes(b"")
    with pytest.raises(DiskError, match=r"cannot write \(.*mine/model.onnx, Not a directory\); choose another --out"):
        zoo.export.onnx(run, run.path / "mine" / "model.onnx")


def test_a_folder_is_no_file(run: Run) -> None:
    with pytest.raises(UsageError, match="output is a folder"):
        zoo.export.onnx(run, run.path, force=True)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_not_finite(run: Run, value: float) -> None:
    run.model.state_dict()["bn.running_var"][3] = value
    with pytest.raises(FileError, match=r"weights are not finite \(.*tensor bn.running_var\)") as caught:
        zoo.export.onnx(run)
    assert caught.value.code == 4
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("opset", [7, 17, 24, 99])
def test_opset_outside(run: Run, opset: int) -> None:
    with pytest.raises(UsageError, match=rf"opset {opset} is not supported; use one from 18 to 23"):
        zoo.export.onnx(run, opset=opset)


def test_unknown_preprocess(run: Run) -> None:
    with pytest.raises(UsageError, match="no preprocess 'normalise' .did you mean normalize"):
        zoo.export.onnx(run, preprocess="normalise")


def test_train_mode_is_not_exported(run: Run) -> None:
    exported = _graph.Exported(run.model.train(), MEAN, STD, size=32, stored=32, preprocess="none")
    assert not any(module.training for module in exported.train(True).modules())
    assert run.model.training, "the caller's model is left alone"
    run.model.eval()
    receipt = zoo.export.onnx(run)
    kinds = {node.op_type for node in onnx.load(receipt.path).graph.node}
    assert "Dropout" not in kinds
    assert "BatchNormalization" not in kinds, "folded into the convolution"


def refuses(run: Run, monkeypatch: pytest.MonkeyPatch, change: Any) -> str:
    """The error of an export whose graph is changed; no file may remain."""
    traced = _onnx.trace

    def planted(*args: Any, **named: Any) -> onnx.ModelProto:
        graph = traced(*args, **named)
        change(graph)
        return graph

    monkeypatch.setattr(_onnx, "trace", planted)
    old = run.path / "model.onnx"
    old.write_bytes(b"mine")
    with pytest.raises(DisagreeError) as caught:
        zoo.export.onnx(run, force=True)
    assert caught.value.code == 8
    assert old.read_bytes() == b"mine"
    assert [path.name for path in run.path.iterdir()] == ["model.onnx"]
    return str(caught.value)


def scale_initializer(graph: onnx.ModelProto, name: str, factor: float) -> None:
    (tensor,) = [each for each in graph.graph.initializer if each.name == name]
    tensor.CopyFrom(onnx.numpy_helper.from_array((onnx.numpy_helper.to_array(tensor) * factor).astype(np.float32), name))


def test_a_wrong_normalisation_is_caught(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph.Exported, "prepare", lambda self, images: images * self.scale + self.shift * 1.01)
    text = refuses(run, monkeypatch, lambda graph: None)
    assert "first node that differs" in text
    assert "(Mul)" in text
    assert "nothing published" in text
    assert len(text) <= 200


@pytest.mark.parametrize("layer", ["conv1", "conv2", "linear"])
def test_the_first_wrong_node_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    nodes: list[str] = []

    def change(graph: onnx.ModelProto) -> None:
        (node,) = [each for each in graph.graph.node if any(name.startswith(f"model.{layer}.weight") for name in each.input)]
        weight = next(name for name in node.input if name.startswith(f"model.{layer}.weight"))
        nodes.append(node.name)
        scale_initializer(graph, weight, 1.01)

    text = refuses(run, monkeypatch, change)
    assert f"first node that differs: {nodes[0]} (" in text


def test_a_nan_output_is_caught() -> None:
    pixels = images(32).test.images[:4]
    truth = lambda part: np.ones((len(part), 3), np.float32) * np.arange(3)  # noqa: E731
    wrong = lambda part: np.full((len(part), 3), np.nan, np.float32)  # noqa: E731
    assert _parity.check([_parity.Case(pixels, truth)], truth, tolerance=1e-4).holds
    assert not _parity.check([_parity.Case(pixels, truth)], wrong, tolerance=1e-4).holds
    assert not _parity.check([_parity.Case(pixels, truth)], lambda part: truth(part)[:, :2], tolerance=1e-4).holds
    only7 = lambda part: truth(part) + (len(part) == 2)  # noqa: E731
    assert not _parity.check([_parity.Case(pixels, truth)], only7, tolerance=1e-4).holds, "wrong at batch 2 alone"


def test_a_calibrated_file_may_clip_one_image_in_a_hundred() -> None:
    """Always the same one, and to finite values."""
    pixels = np.repeat(np.arange(100, dtype=np.uint8)[:, None], 12, 1).reshape(100, 2, 2, 3)

    def truth(part: np.ndarray) -> np.ndarray:
        return part[:, 0, 0, :1] * np.ones(3) + np.arange(3)

    def holds(numbers: Sequence[int], by: float = 500.0, sizes: Sequence[int] = (1, 2, 7, 36, 64), share: float = 0.99) -> bool:
        def answer(part: np.ndarray) -> np.ndarray:
            clipped = np.isin(part[:, 0, 0, 0], numbers)[:, None] & (len(part) in sizes)
            return truth(part) + np.where(clipped, by, 0)

        found = _parity.check([_parity.Case(pixels, truth)], answer, tolerance=2.0, share=share)
        assert found.far == (len(numbers) if 64 in sizes else 0)
        return found.holds

    assert holds([5])
    assert not holds([5], share=1.0)
    assert not holds([5, 6])
    assert not holds([5], by=np.inf)
    assert not holds([5], sizes=(2,)), "wrong at batch 2 alone"


def test_undecided_images_are_distinguished() -> None:
    pixels = images(32).test.images[:4]
    truth = np.tile(np.array([1.0, 1.0 + 1e-6, -2.0], np.float32), (4, 1))
    found = _parity.check(
        [_parity.Case(pixels, lambda p: truth[: len(p)])], lambda p: truth[: len(p), [1, 0, 2]], tolerance=1e-4
    )
    assert (found.agree, found.ties, found.wrong, found.holds) == (0, 4, 0, True)


def test_without_the_data(run: Run) -> None:
    away = AwayRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(Run)})
    assert "synthetic noise" in zoo.export.onnx(away).line()


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (50, 33), (33, 50), (20, 31), (1, 1), (7, 400), (375, 500)])
def test_resize_is_pillows(shape: tuple[int, int]) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
    for stored, size in ((32, 32), (36, 32)):
        got = _graph.fit(torch.from_numpy(image.copy())[None], stored, size)[0].permute(1, 2, 0).numpy()
        edge = (stored - size) // 2
        wanted = square(image, stored)[edge : edge + size, edge : edge + size]
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 1.0, "Pillow rounds twice to whole numbers"
        if shape == (stored, stored):
            np.testing.assert_array_equal(got, wanted)


def test_no_other_device_in_silence(run: Run) -> None:
    path = zoo.export.onnx(run).path
    with pytest.raises(UsageError, match="no device 'npu' .available providers: .*CPUExecutionProvider"):
        _session.open_session(path, "npu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"onnxruntime (cannot start|has no) .*(CPUExecutionProvider)"):
            _session.open_session(path, "cuda")


def test_session_of_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no model file"):
        _session.open_session(tmp_path / "none.onnx")
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x07garbage")
    with pytest.raises(FileError, match="not a model that onnxruntime can run") as caught:
        _session.open_session(tmp_path / "torn.onnx")
    assert len(str(caught.value)) <= 200 + len(str(tmp_path))


LOADING = "[ONNXRuntimeError] : 1 : FAIL : Load model from /srv/a b/model.onnx failed:"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LOADING + "Fatal error: my.ops:Foo(-1) is not a registered function/op", "Fatal error: my.ops:Foo(-1) is not a registered function/op"),
        (
            LOADING + "/onnxruntime_src/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::Options&) "
            "Unsupported model IR version: 99, max supported IR version: 13\n", "Unsupported model IR version: 99, max supported IR version: 13",
        ),
        (
            LOADING + "/src/load.h:46 void onnxruntime::utils::Validate(const std::unordered_map<std::basic_string<char>, int>&, "
            "std::function<void(int)>) const Opset 99 is under development", "Opset 99 is under development",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. Name:'' Status Message: "
            "matmul_helper.h:59 Compute MatMul dimension mismatch", "MatMul node. Status Message: Compute MatMul dimension mismatch",
        ),
        ("", "ValueError"),
    ],
)  # fmt: skip
def test_the_reason_of_onnxruntime(text: str, reason: str) -> None:
    assert _session.reason(ValueError(text)) == reason
