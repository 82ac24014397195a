"""Weights in a second file: both files change together, match each other, and can be moved together."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_export import Tiny, images, refuses, run_of, scale_initializer

import zoo.export
from zoo import files, predictor
from zoo.bench import _subjects
from zoo.cli.verify import command
from zoo.errors import DiskError, FileError
from zoo.export import _external, _guard, _quantise, _session, _verify
from zoo.run import Run

pytest.importorskip("onnxruntime")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    torch.manual_seed(0)
    return run_of(Tiny(), tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def answer(path: Path) -> np.ndarray:
    return np.asarray(_session.open_session(path).run(None, {"image": np.ones((2, 3, 32, 32), np.float32)})[0])


def test_two_files_are_the_same_model_as_one(run: Run, tmp_path: Path) -> None:
    one = zoo.export.onnx(run, tmp_path / "one" / "model.onnx")
    two = zoo.export.onnx(run, tmp_path / "two" / "model.onnx", external_data=True)
    assert names(tmp_path / "one") == list(one.files) == ["model.onnx"]
    graph, data = two.files
    assert names(tmp_path / "two") == sorted(two.files)
    assert data.startswith("model.")
    assert data.endswith(".onnx.data")
    assert two.bytes == sum(path.stat().st_size for path in (tmp_path / "two").iterdir()) == _guard.check(two.path)
    assert f"{two.path}  2 files 0.0 MB" in two.line()
    tensors = {each.name: each for each in onnx.load(two.path, load_external_data=False).graph.initializer}
    outside = [each for each in tensors.values() if each.data_location == onnx.TensorProto.EXTERNAL]
    assert {each.name for each in outside} == {name for name, each in tensors.items() if np.prod(each.dims) >= 256}
    entries = [{entry.key: entry.value for entry in each.external_data} for each in outside]
    assert {entry["location"] for entry in entries} == {data}
    assert all(int(entry["offset"]) % 4096 == 0 for entry in entries)
    (tmp_path / "elsewhere").mkdir()
    for name in two.files:
        (tmp_path / "two" / name).rename(tmp_path / "elsewhere" / name)
    np.testing.assert_array_equal(answer(tmp_path / "elsewhere" / graph), answer(one.path))


def test_every_command_takes_it(run: Run, tmp_path: Path) -> None:
    receipt = zoo.export.onnx(run, tmp_path / "x" / "model.onnx", external_data=True)
    path, data = receipt.path, receipt.path.with_name(receipt.files[1])
    checks = {check.name: check.code for check in _verify.verify(path, run=run)}
    assert [checks[name] for name in ("structure", "weights and graph", "receipt", "parity with PyTorch")] == [0] * 4
    Image.fromarray(images(32).test.images[0]).save(tmp_path / "picture.png")
    (said,) = predictor.predict(path, [tmp_path / "picture.png"])
    assert len(said["top"]) == 3
    with _subjects.opened(path, ("fp32",)) as subject:
        assert subject.weights_mb == receipt.bytes / 1e6
    raw = bytearray(data.read_bytes())
    for at in (0, len(raw) // 2):
        damaged = bytearray(raw)
        damaged[at] ^= 1
        data.write_bytes(damaged)
        result = CliRunner().invoke(command, [str(path)])
        assert isinstance(result.exception, FileError)
        assert "checksum differs" in str(result.exception)
        with pytest.raises(FileError, match="checksum differs"):
            predictor.predict(path, [tmp_path / "picture.png"])
    data.unlink()
    with pytest.raises(FileError, match="external data rejected .*missing"):
        _guard.check(path)


def test_a_receipt_covers_the_weights_beside_it(run: Run, tmp_path: Path) -> None:
    """Other weights with their correct checksum: the receipt's digest covers the checksum too."""
    path = zoo.export.onnx(run, tmp_path / "x" / "model.onnx", external_data=True).path
    model = onnx.load(path)
    scale_initializer(model, "model.conv2.weight", 2)
    written = {entry.key: entry.value for entry in model.metadata_props}
    with _external.placed(model, path, asked=True) as (made, _):
        onnx.helper.set_model_props(made, written)
        path.write_bytes(made.SerializeToString())
    assert {check.name for check in _verify.verify(path) if check.code} == {"weights and graph"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_too_large_for_one_file(run: Run, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = zoo.export.onnx(run, precision=precision, max_drop=100)
    monkeypatch.setattr(_external, "LIMIT", 300)
    monkeypatch.setattr(_external, "SMALL", 256)
    monkeypatch.setattr(_quantise, "METHODS", ("minmax", "percentile"))
    made = zoo.export.onnx(run, precision=precision, max_drop=100, force=True)
    assert (len(exact.files), len(made.files)) == (1, 2)
    assert (made.agree, made.test) == (exact.agree, exact.test)


def test_a_wrong_node_of_a_large_model_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_external, "LIMIT", 1000)
    text = refuses(run, monkeypatch, lambda graph: scale_initializer(graph, "model.linear.weight", 1.01))
    assert "first node that differs: linear/linear (Gemm)" in text


def test_replacing(run: Run) -> None:
    """The old data file is removed with the old graph, and no other file is."""
    mine = run.path / "model.weights.onnx.data"
    mine.write_bytes(b"mine")
    first = zoo.export.onnx(run, external_data=True)
    assert zoo.export.onnx(run, external_data=True, force=True).files == first.files, "the same content"
    with torch.no_grad():
        run.model.conv2.weight += 1  # type: ignore[union-attr,operator]
    second = zoo.export.onnx(run, external_data=True, force=True)
    assert second.files[1] != first.files[1]
    assert names(run.path) == sorted([*second.files, mine.name])
    zoo.export.onnx(run, force=True)
    assert names(run.path) == ["model.onnx", mine.name]


def test_a_full_disk_leaves_the_old_pair(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = zoo.export.onnx(run, external_data=True)
    before = answer(first.path)
    with torch.no_grad():
        run.model.conv2.weight += 1  # type: ignore[union-attr,operator]
    publish = files.publish

    def full(path: Path, *rest: object, **named: object) -> None:
        if path.suffix == ".onnx":
            raise DiskError("no space left")
        publish(path, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "publish", full)
    with pytest.raises(DiskError):
        zoo.export.onnx(run, external_data=True, force=True)
    assert names(run.path) == sorted(first.files)
    np.testing.assert_array_equal(answer(first.path), before)


KILLED = """
import os, sys, pathlib, onnx
from zoo.export import _external
path = pathlib.Path(sys.argv[1])
graph = onnx.load(path)
(weight,) = [each for each in graph.graph.initializer if each.name == "model.conv2.weight"]
weight.raw_data = bytes(len(weight.raw_data))
with _external.placed(graph, path, asked=True):
    os._exit(9)
"""


def test_killed_between_the_two(run: Run) -> None:
    """With the new data and the old graph on disk, the old graph still reads the old data; the next export removes the rest."""
    first = zoo.export.onnx(run, external_data=True)
    before = answer(first.path)
    assert subprocess.run([sys.executable, "-c", KILLED, str(first.path)], check=False).returncode == 9
    assert len(names(run.path)) == 4
    assert ".zoo.lock" in names(run.path), "the killed process leaves it; its lock ended with the process"
    np.testing.assert_array_equal(answer(first.path), before)
    _guard.check(first.path)
    assert zoo.export.onnx(run, external_data=True, force=True).files == first.files
    assert names(run.path) == sorted(first.files)


def test_another_export_waits(run: Run) -> None:
    """Without the lock, it would remove the data of the graph that is about to be published as those of an older one."""
    graph = onnx.load(zoo.export.onnx(run).path)
    path = run.path / "other.onnx"

    def other() -> None:
        with _external.placed(graph, path):
            pass

    thread = threading.Thread(target=other)
    with _external.placed(graph, path, asked=True) as (made, (data,)):
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert data.is_file()
        path.write_bytes(made.SerializeToString())
    thread.join(60)
    assert not thread.is_alive()
