"""``zoo verify`` finds a flipped bit, a changed receipt, another run's weights and a wrong normalisation."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import reads_onnx
import torch
from click.testing import CliRunner
from test_export import STD, AwayRun, Tiny, facts, run_of

import zoo.export
from zoo.cli.verify import command
from zoo.errors import DataError, DisagreeError, FileError, ZooError
from zoo.export import _onnx, _verify, _wire
from zoo.run import Run
from zoo.training import freezing

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    torch.manual_seed(0)
    run = run_of(Tiny(), tmp_path_factory.mktemp("verify"))
    return zoo.export.onnx(run).path, run


def states(checks: list[_verify.Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_good_file(exported: tuple[Path, Run]) -> None:
    path, run = exported
    found = states(_verify.verify(path, run=run))
    assert {key: found[key] for key in ("structure", "weights and graph", "receipt", "parity with PyTorch")} == dict.fromkeys(
        ("structure", "weights and graph", "receipt", "parity with PyTorch"), "ok"
    )
    assert states(_verify.verify(path))["parity with PyTorch"] == "not run"


def test_a_flipped_weight_bit(exported: tuple[Path, Run], tmp_path: Path) -> None:
    model = onnx.load(exported[0])
    weight = next(each for each in model.graph.initializer if each.name == "model.linear.weight")
    raw = exported[0].read_bytes()
    at = raw.index(weight.raw_data)
    for bit in (0, 9, 8 * len(weight.raw_data) - 1):
        damaged = bytearray(raw)
        damaged[at + bit // 8] ^= 1 << bit % 8
        path = tmp_path / "model.onnx"
        path.write_bytes(damaged)
        checks = _verify.verify(path)
        assert [(c.name, c.code) for c in checks if c.code] == [("weights and graph", 4)]
    result = CliRunner().invoke(command, [str(path), "--json"])
    assert isinstance(result.exception, FileError)
    assert "file is damaged or was changed" in str(result.exception)
    assert json.loads(result.stdout)[1]["state"] == "differs"


def test_a_changed_receipt(exported: tuple[Path, Run], tmp_path: Path) -> None:
    model = onnx.load(exported[0])
    next(entry for entry in model.metadata_props if entry.key == "test").value = '{"n": 64, "accuracy": 0.99}'
    onnx.save(model, tmp_path / "x.onnx")
    assert [(c.name, c.code) for c in _verify.verify(tmp_path / "x.onnx") if c.code] == [("receipt", 4)]


def test_a_wrong_normalisation_with_right_digests(exported: tuple[Path, Run], tmp_path: Path) -> None:
    path, run = exported
    model = onnx.load(path)
    scale = next(each for each in model.graph.initializer if each.name == "scale")
    wrong = np.array([1 / s for s in STD[::-1]], np.float32).reshape(1, 3, 1, 1)
    scale.CopyFrom(onnx.numpy_helper.from_array(wrong, "scale"))
    _onnx.save(model, tmp_path / "x.onnx", facts(path))
    checks = _verify.verify(tmp_path / "x.onnx", run=run)
    assert states(checks)["weights and graph"] == "ok"
    assert next((c.name, c.code) for c in checks if c.code) == ("parity with PyTorch", 8)


def test_another_run(exported: tuple[Path, Run], tmp_path: Path) -> None:
    torch.manual_seed(1)
    checks = _verify.verify(exported[0], run=run_of(Tiny(), tmp_path))
    assert next((c.name, c.code) for c in checks if c.code) == ("weights of the run", 8)


def test_frozen_tensors_are_those_of_the_run(exported: tuple[Path, Run], tmp_path: Path) -> None:
    path, run = exported
    digest = freezing.frozen_digest(run.model, ["conv1.weight", "bn.running_mean"])
    for claim, code in ((digest, 0), (digest | {"conv1.weight": "0" * 64}, 8), (digest | {"gone.weight": "0" * 64}, 8)):
        _onnx.save(onnx.load(path), tmp_path / "x.onnx", facts(path) | {"frozen_sha256": json.dumps(claim)})
        checks = {check.name: check for check in _verify.verify(tmp_path / "x.onnx", run=run)}
        assert checks["frozen tensors"].code == code
        assert checks["receipt"].code == 0


def test_the_drop_from_float32_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    run = run_of(Tiny(), tmp_path, env={})
    path = zoo.export.onnx(run, precision="fp16").path
    monkeypatch.setattr(Run, "dataset", lambda self: run.dataset())
    assert states(_verify.verify(path, run=run))["drop from fp32"] == "ok"
    assert states(_verify.verify(path))["drop from fp32"] == "not run"
    known = np.eye(10)[run.dataset().test.targets]
    monkeypatch.setattr(_verify._cases, "right", lambda exported: lambda part: known[: len(part)])
    checks = _verify.verify(path, run=run)
    assert [(each.name, each.code) for each in checks if each.code and "parity" not in each.name] == [("drop from fp32", 8)]


def test_a_check_that_could_not_run_is_no_pass(
    exported: tuple[Path, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "dataset", AwayRun.dataset)
    path = shutil.copy(exported[0], tmp_path / "x.onnx")
    result = CliRunner().invoke(command, [str(path)])
    assert isinstance(result.exception, DisagreeError)
    assert "not verified (" in str(result.exception)
    assert "parity with PyTorch could not run: the run was not found; pass it with --run" in str(result.exception)
    assert CliRunner().invoke(command, [str(path), "--partial"]).exit_code == 0


def test_parity_on_noise_alone_is_no_pass(exported: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = exported
    for kind in (Run, type(run)):
        monkeypatch.setattr(kind, "dataset", AwayRun.dataset)
    (found,) = (each for each in _verify.verify(path, run=run) if each.name == "parity with PyTorch")
    assert found.state == "not run"
    assert "only on 64 images of noise (64/64 classes, max |difference| " in found.found
    assert "data was not found; pass it with --data-dir" in found.found


def test_accuracy_is_measured_where_the_runs_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file contains no path of its machine; the accuracy of the run is printed with that of the file."""
    torch.manual_seed(0)
    run, asked = run_of(Tiny(), tmp_path, env={}), []
    path = zoo.export.onnx(run).path

    def dataset(self: Run) -> object:
        asked.append(self.recipe.data.dir)
        return run.dataset()

    monkeypatch.setattr(Run, "dataset", dataset)
    data = msgspec.structs.replace(run.recipe.data, dir="pictures")
    test = {"epoch": 1, "split": "test", "loss": 1.0, "accuracy": 0.35, "n": 64}
    placed = dataclasses.replace(
        run, recipe=msgspec.structs.replace(run.recipe, data=data), metrics=[test], env={"precision": "bf16"}
    )
    checks = {check.name: check for check in _verify.verify(path, run=placed)}
    assert set(asked) == {"pictures"}
    assert "(the run: 35.00 % of 64 in bf16)" in checks["accuracy"].claimed
    assert "(the run: 35.00 % of 64 in bf16)" in zoo.export.onnx(placed, tmp_path / "y.onnx").line()


@pytest.mark.parametrize(
    ("key", "value"), [("parity", "3"), ("parity", '{"n": 0}'), ("test", '{"n": "many"}'), ("test", "["), ("recipe", "[[")]
)
def test_a_receipt_with_wrong_facts_and_right_digests(exported: tuple[Path, Run], tmp_path: Path, key: str, value: str) -> None:
    _onnx.save(onnx.load(exported[0]), tmp_path / "x.onnx", facts(exported[0]) | {key: value})
    with pytest.raises(ZooError):
        _verify.verify(tmp_path / "x.onnx")


def test_no_receipt(exported: tuple[Path, Run], tmp_path: Path) -> None:
    model = onnx.load(exported[0])
    _onnx.save(model, tmp_path / "x.onnx", {"classes": "[]"})
    with pytest.raises(FileError, match="no zoo metadata in the model"):
        _verify.verify(tmp_path / "x.onnx")


def test_a_file_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(reads_onnx.net().SerializeToString())
    with pytest.raises(
        FileError, match=r"no zoo receipt in the model \(.*x\.onnx\); name a file written by: zoo export --onnx"
    ):
        _verify.verify(tmp_path / "x.onnx")


def test_the_advice_is_that_of_verify(exported: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Run) -> None:
        raise DataError("no data (synthetic); pass it with --data FILE.npz")

    monkeypatch.setattr(Run, "dataset", away)
    found = {check.name: check.found for check in _verify.verify(exported[0])}
    assert found["accuracy"] == "the data was not found (no data (synthetic)); pass it with --data-dir"


def test_digests_do_not_depend_on_each_other() -> None:
    assert _wire.receipt_sha256({"a": "b", "receipt_sha256": "x"}) == _wire.receipt_sha256({"a": "b"})
    assert _wire.receipt_sha256({"a": "bc"}) != _wire.receipt_sha256({"ab": "c"})
    assert issubclass(DisagreeError, Exception)
