"""Folders for servers and hubs: their content is valid and is taken from the file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs
from test_export import CLASSES, Tiny, facts, run_of

from zoo import recipe, tensor_files
from zoo.cli.export import command
from zoo.errors import BusyError, FileError, UsageError
from zoo.export import _hub, _job, _session, _triton
from zoo.run import Run

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with weights and a recipe in its folder."""
    torch.manual_seed(0)
    run = run_of(Tiny(), tmp_path_factory.mktemp("run"))
    meta = {"model": "cnn_small", "classes": list(CLASSES), "frozen": {}}
    tensor_files.save_tensors(run.path / "weights.safetensors", run.model.state_dict(), meta)
    (run.path / "recipe.toml").write_text(recipe.dump(run.recipe))
    return run


def test_triton(run: Run, tmp_path: Path) -> None:
    receipt = _triton.write(run, tmp_path)
    place = tmp_path / "cnn_small"
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()) == [
        "1/model.onnx", "config.pbtxt", "labels.txt",
    ]  # fmt: skip
    assert receipt.path == place / "1" / "model.onnx"
    assert (place / "labels.txt").read_text().split("\n") == [*CLASSES, ""]
    text = (place / "config.pbtxt").read_text()
    for part in (
        'name: "image"',
        "data_type: TYPE_FP32",
        "dims: [ 3, 32, 32 ]",
        'name: "logits"',
        "dims: [ 10 ]",
        "dynamic_batching",
    ):
        assert part in text
    with pytest.raises(BusyError, match="output folder is not empty"):
        _triton.write(run, tmp_path)
    with pytest.raises(UsageError, match="preprocess full accepts images of any size, which Triton cannot batch"):
        _triton.write(run, tmp_path / "other", preprocess="full")


@pytest.mark.parametrize(
    ("model", "name"),
    [("/srv/my nets/net.py:Drop", "Drop"), ("timm/resnet18.a1_in1k", "timm_resnet18_a1_in1k"), ("cnn_small", "cnn_small")],
)
def test_a_name_for_triton(model: str, name: str) -> None:
    assert _triton._name(model) == name


def test_triton_by_its_schema(run: Run, tmp_path: Path) -> None:
    """Triton's protobuf parser reads it; an unknown field or a wrong type is an error."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    receipt = _triton.write(run, tmp_path)
    found = text_format.Parse((receipt.path.parent.parent / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (found.name, found.platform, found.max_batch_size) == ("cnn_small", "onnxruntime_onnx", 64)
    assert (found.input[0].name, list(found.input[0].dims), found.input[0].data_type) == (
        "image",
        [3, 32, 32],
        schema.TYPE_FP32,
    )
    assert (found.output[0].label_filename, found.HasField("dynamic_batching")) == ("labels.txt", True)


def test_hub(run: Run, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    receipt = _hub.write(run, tmp_path / "hub")
    place = tmp_path / "hub"
    assert {path.name for path in place.iterdir()} == {
        "README.md",
        "config.json",
        "model.onnx",
        "model.safetensors",
        "recipe.toml",
    }
    card = hub.ModelCard.load(place / "README.md")
    (result,) = card.data.eval_results
    assert receipt.test is not None
    assert (result.metric_type, result.dataset_name) == ("accuracy", "synthetic")
    assert result.metric_value == pytest.approx(receipt.test["accuracy"], abs=1e-6)
    found = json.loads((place / "config.json").read_text())
    assert (found["num_classes"], found["input_size"], found["id2label"]["3"]) == (10, [3, 32, 32], CLASSES[3])
    tensors, _ = tensor_files.load_tensors(place / "model.safetensors")
    assert set(tensors) == set(run.model.state_dict())
    assert _session.open_session(place / "model.onnx").run(None, {"image": np.zeros((1, 3, 32, 32), np.float32)})[0].shape == (
        1,
        10,
    )


def test_no_path_of_the_machine_is_uploaded(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model of the run is code in a file, its data, weights and teacher have absolute paths."""
    pytest.importorskip("huggingface_hub")
    settings = structs.replace(
        run.recipe, model="/srv/other/net.py:Net", weights="/srv/other/x.pth", data=structs.replace(run.recipe.data, dir="/srv/other"),
        distil=structs.replace(run.recipe.distil, teacher=["/srv/other/run", "mine"]),
    )  # fmt: skip
    found = _job.public(settings)
    assert (found.model, found.weights, found.data.dir, found.distil.teacher) == ("net.py:Net", "x.pth", "", ["run", "mine"])
    (tmp_path / "run").mkdir()
    meta = {"model": settings.model, "classes": list(CLASSES), "frozen": {}}
    tensor_files.save_tensors(tmp_path / "run" / "weights.safetensors", run.model.state_dict(), meta)
    receipt = _hub.write(dataclasses.replace(run, path=tmp_path / "run", recipe=settings), tmp_path / "hub")
    written = {path.name: path.read_bytes() for path in (tmp_path / "hub").iterdir()}
    assert [name for name, raw in written.items() if b"/srv" in raw] == []
    assert facts(receipt.path)["model"] == "net.py:Net"
    assert (
        b"The code of the model (net.py:Net) is not part of this folder: without it, only `model.onnx`" in written["README.md"]
    )
    assert "code of the model (net.py:Net) is not in the folder" in capsys.readouterr().err


def test_hub_of_a_run_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no weights in the run"):
        _hub.write(run_of(Tiny(), tmp_path), tmp_path / "hub")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--web", "a", "--hub", "b"], "--out, --web, --triton and --hub are mutually exclusive"),
        (["--format", "pt2", "--triton", "a"], "--triton needs an ONNX file .format pt2."),
        (["--format", "pt2", "--opset", "20"], "--opset, --target-ort and --external-data apply to ONNX"),
        (["--fastest", "--precision", "int8"], "--fastest chooses format, precision and file name"),
        (["--max-drop", "0.5"], "--max-drop applies to --precision fp16 or int8 and to --fastest"),
        (["--fastest", "--web", "a"], "--fastest chooses format, precision and file name"),
    ],
)
def test_options_that_exclude_each_other(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        command.main(words, standalone_mode=False)
