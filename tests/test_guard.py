"""Models from unknown sources: rejected in one line before onnxruntime opens them, or in a child process with limits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import reads_onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from zoo import __main__ as cli
from zoo import predictor
from zoo.bench import _serve, _subjects
from zoo.errors import FileError
from zoo.export import _child, _guard, _wire

pytest.importorskip("onnxruntime")
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def with_external(folder: Path, location: str, **entries: str) -> Path:
    """A model with one external weight of 24 bytes in weights.bin."""
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=WEIGHT.shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ["n", 2]), ("y", ["n", 3]))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


def outside(folder: Path) -> Path:
    secret = folder.parent / f"{folder.name}.secret"
    secret.write_bytes(WEIGHT.tobytes())
    return secret


def symlinked(folder: Path) -> Path:
    (folder / "link.bin").symlink_to(outside(folder))
    return with_external(folder, "link.bin")


def hardlinked(folder: Path) -> Path:
    os.link(outside(folder), folder / "hard.bin")
    return with_external(folder, "hard.bin")


def device(folder: Path) -> Path:
    os.mkfifo(folder / "zero")  # like /dev/zero, as far as a test without privileges can create one
    return with_external(folder, "zero", length="24")


ATTACKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "parent": (lambda f: with_external(f, f"../{outside(f).name}"), "leaves the model's folder"),
    "absolute": (lambda f: with_external(f, str(outside(f))), "absolute path"),
    "symlink": (symlinked, "symbolic link"),
    "hard link": (hardlinked, "hard link to another file"),
    "device": (lambda f: with_external(f, "/dev/zero", length="24"), "absolute path"),
    "pipe": (device, "not a regular file"),
    "missing": (lambda f: with_external(f, "none.bin"), "missing"),
    "length 1e12": (lambda f: with_external(f, "weights.bin", length="1000000000000"), "1,000,000,000,000 bytes expected, the file has 24"),
    "offset -4": (lambda f: with_external(f, "weights.bin", offset="-4"), "offset -4"),
    "checksum": (lambda f: with_external(f, "weights.bin", checksum="0" * 40), "checksum differs"),
    "a/../..": (lambda f: with_external(f, f"a/../../{outside(f).name}"), "leaves the model's folder"),
    "short": (lambda f: with_external(f, "weights.bin", length="20"), "length 20, expected 24 for its shape"),
    "windows": (lambda f: with_external(f, "C:\\weights.bin"), "absolute path"),
    "backslash": (lambda f: with_external(f, "..\\weights.bin"), "leaves the model's folder"),
    "nothing": (lambda f: with_external(f, ""), "no location"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_external_data_refused(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    make, message = ATTACKS[attack]
    path = make(folder)
    monkeypatch.setattr("subprocess.Popen", None)  # nothing is opened, not even in a child process
    benched = lambda model: _subjects.opened(model, ("fp32",)).__enter__()  # noqa: E731
    for use in (_guard.trial, lambda model: predictor.predict(model, []), benched):
        with pytest.raises(FileError) as caught:
            use(path)
        text = str(caught.value)
        assert caught.value.code == 4
        assert text.startswith("external data rejected (")
        assert message in text
        assert "\n" not in text


def test_good_external_data_passes(tmp_path: Path) -> None:
    right = hashlib.sha1(WEIGHT.tobytes()).hexdigest()
    path = with_external(tmp_path, "weights.bin", offset="0", length="24", checksum=right)
    assert _guard.check(path) == path.stat().st_size + 24
    _guard.trial(path)


ONE = (1, 3, 1, 1)
"""Shape of the smallest image."""


def small(nodes: list[onnx.NodeProto], weights: list[TensorProto], folder: Path) -> Path:
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ONE),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 1, 1]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def bomb(folder: Path) -> Path:
    """A few hundred bytes that allocate 2 GiB."""
    shape = numpy_helper.from_array(np.array([2**29], np.int64), "s")
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ReduceMax", ["c"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    return small(nodes, [shape], folder)


def endless(folder: Path) -> Path:
    """A loop of 1e8 iterations."""
    trips, go = numpy_helper.from_array(np.array(10**8, np.int64), "m"), numpy_helper.from_array(np.array(True), "go")
    ends = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("v", TensorProto.FLOAT, ONE), helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
        helper.make_tensor_value_info("v2", TensorProto.FLOAT, ONE),
    ]  # fmt: skip
    steps = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Sin", ["v"], ["v2"])]
    body = helper.make_graph(steps, "b", ends[:3], ends[3:])
    return small([helper.make_node("Loop", ["m", "go", "x"], ["y"], body=body)], [trips, go], folder)


def test_two_gigabytes_out_of_nothing(tmp_path: Path) -> None:
    path = bomb(tmp_path)
    assert path.stat().st_size < 200
    with pytest.raises(
        FileError, match=r"needs too much memory \(.*over 1,07\d MB\); if you trust it, raise --max-memory"
    ) as caught:
        _guard.trial(path)
    assert caught.value.code == 4


def test_a_child_that_cannot_start_in_its_memory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"needs too much memory \(.*over 20 MB"):
        _guard.trial(with_external(tmp_path, "weights.bin"), max_memory=20)


def test_a_fault_of_the_child_itself_is_reported_as_one(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot be tested \(m.onnx, exit 1: .*No module named .?zoo.nothing.*report this"):
        next(_child.lines("zoo.nothing", {}, Path("m.onnx"), max_memory=10**9, timeout=60))


def test_a_python_file_beside_the_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is that of a downloaded model, with files named as the packages that the children import."""
    path = with_external(tmp_path, "weights.bin")
    for package in ("zoo", "msgspec", "numpy", "onnxruntime"):
        (tmp_path / f"{package}.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    assert _guard.trial(path).batch == 0
    with _serve._processes(_serve.Setup("processes", 1, 1), path, np.ones((1, 2), np.float32)) as load:
        assert len(load(0.0)) == 1
    assert not (tmp_path / "ran").exists()


def as_zoos(path: Path) -> Path:
    """The same with the metadata that ``zoo predict`` requires."""
    steps = {"mode": "none", "size": 1, "resize": 1, "mean": [0, 0, 0], "std": [1, 1, 1]}
    model = onnx.load(path)
    helper.set_model_props(model, {"classes": '["a"]', "preprocessing": json.dumps(steps), "softmax": "false"})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("make", "message"), [(bomb, "needs too much memory"), (endless, "takes too long")])
@pytest.mark.parametrize("words", ["bench --quick", "verify", "predict picture.png --onnx"])
def test_each_command_has_the_limits(
    words: str,
    make: Callable[[Path], Path],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (1, 1)).save("picture.png")
    path = as_zoos(make(tmp_path))
    assert cli.run([*words.split(), str(path), "--max-memory", "1500", "--timeout", "3"]) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert f"model {message} ({path}, over {'1,500 MB' if make is bomb else '3 s'})" in line


def test_the_time_that_the_child_takes_to_start_is_not_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_external(tmp_path, "weights.bin")
    assert _guard.trial(path, timeout=30.0).seconds < 1
    monkeypatch.setattr(_child, "START", 0.01)
    with pytest.raises(FileError, match="takes too long"):
        _guard.trial(path, timeout=0.01)
    monkeypatch.setattr(_child, "START", 60.0)
    assert _guard.trial(path, timeout=1.0).seconds < 1, "starting Python and onnxruntime takes longer than that"


def test_a_limit_of_time_is_kept_promptly(tmp_path: Path) -> None:
    path = endless(tmp_path)
    began = time.monotonic()
    with pytest.raises(FileError, match=r"takes too long \(.*over 0\.5 s\)"):
        _guard.trial(path, timeout=0.5)
    assert time.monotonic() - began < 30, "most of it to start the child"


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_a_runs_own_files_are_tried_too(name: str, small_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_run, tmp_path / "run"))
    (folder / name).write_bytes(bomb(tmp_path).read_bytes())
    with pytest.raises(FileError, match="needs too much memory"), _subjects.opened(folder, ("fp32", "int8")):
        pass
    hardlinked(folder).rename(folder / "again.onnx")
    (folder / "again.onnx").rename(folder / name)
    with pytest.raises(FileError, match="hard link"), _subjects.opened(folder, ("fp32", "int8")):
        pass


@pytest.mark.parametrize("make", [bomb, hardlinked])
def test_benchmarks_open_no_such_file(make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = make(folder)
    monkeypatch.setattr(_subjects._session, "open_session", None)  # not in this process
    with pytest.raises(FileError) as caught, _subjects.opened(path, ("fp32",)):
        pass
    assert caught.value.code == 4


def test_a_loop_without_end(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"takes too long \(.*over 3 s\); if you trust it, raise --timeout") as caught:
        _guard.trial(endless(tmp_path), timeout=3)
    assert caught.value.code == 4


def test_the_size_that_was_tried_is_named(tmp_path: Path) -> None:
    """A linear layer for images of 3 x 3, whose file leaves height and width open."""
    model = reads_onnx.net(shape=("n", 3, "h", "w"))
    model.graph.node[1].CopyFrom(helper.make_node("Identity", ["c"], ["p"]))
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(
        FileError,
        match=r"does not run \(.*, open sizes set to 3 x 224 x 224, MatMul node.*\); set another with --size, or export it with fixed",
    ):
        _guard.trial(tmp_path / "x.onnx")
    assert _guard.trial(tmp_path / "x.onnx", size=3).batch == 0
    with _subjects.opened(tmp_path / "x.onnx", ("fp32",), size=3) as subject:
        assert subject.shape == (3, 3, 3)


def test_mutated_files(tmp_path: Path) -> None:
    """Whichever bytes are changed: one printable line with exit 4, or a model that runs."""
    good = with_external(tmp_path, "weights.bin").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(300):
        raw = bytearray(good)
        for _ in range(rng.integers(1, 6)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        path = tmp_path / "model.onnx"
        path.write_bytes(raw[: rng.integers(1, len(raw))] if number % 3 == 0 else raw)
        message = refusal(_guard.trial if number % 60 == 0 else _guard.check, path)
        assert message.isprintable()


def refusal(use: Callable[[Path], object], path: Path) -> str:
    try:
        use(path)
    except FileError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"not an ONNX model \(.*x.onnx is empty\); copy it again"),
        (b"<html>no</html>", r"is a web page or XML\); the download failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", r"is a Git LFS pointer.*git lfs pull"),
        (b"\x1c\0\0\0TFL3\x14\0", "is a TensorFlow Lite model"),
        (b"PK\x03\x04" + bytes(60), "is a checkpoint: weights without a graph.*zoo export FILE.py:NAME --weights FILE"),
        (b"\x80\x02}q\x00.", "is a checkpoint"),
        (b"\x40\0\0\0\0\0\0\0{}", "is a checkpoint"),
        (b"hello\n", r"x.onnx, damaged, or another format\); copy or export it again"),
        (b"\x08\x07", "no graph"),
        (b"\x0a\xff\xff\xff\xff\x0f", "cut off"),
    ],
)
def test_other_files(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(raw)
    with pytest.raises(FileError, match=message):
        _guard.check(path)


def test_not_utf8(tmp_path: Path) -> None:
    """An operator whose name is not UTF-8: onnxruntime's message cannot be decoded."""
    path = small([helper.make_node("Nonesuch", ["x"], ["y"])], [], tmp_path)
    path.write_bytes(path.read_bytes().replace(b"Nonesuch", b"\xff\xfe\x80esuch"))
    with pytest.raises(FileError) as caught:
        _guard.trial(path)
    assert str(caught.value).isprintable()


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.onnx")
    for path in (tmp_path / "x.onnx", tmp_path, Path("/dev/zero")):
        with pytest.raises(FileError, match="not a regular file"):
            _guard.check(path)


def test_tensors_in_subgraphs_are_seen(tmp_path: Path) -> None:
    inner = helper.make_node("Constant", [], ["k"], value=TensorProto(name="deep", data_location=TensorProto.EXTERNAL))
    body = helper.make_graph([inner], "b", [], [helper.make_tensor_value_info("k", TensorProto.FLOAT, None)])
    path = small([helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)], [], tmp_path)
    assert [each.name for each in _wire.tensors(memoryview(path.read_bytes()))] == ["deep", "deep"]
    with pytest.raises(FileError, match="external data rejected"):
        _guard.check(path)
