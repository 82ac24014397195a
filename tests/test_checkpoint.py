"""States and weights: whole or refused, and every damage is named."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from zoo import tensor_files
from zoo.errors import FileError
from zoo.training import checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        checkpoint.save_state(
            tmp_path, step, {"model.w": torch.full((50,), float(step)), "n": torch.tensor(step)}, {"epoch": step}
        )
    return tmp_path


def test_round_trip_and_only_two_kept(saved: Path) -> None:
    tensors, meta, warnings = checkpoint.load_state(saved)
    assert meta["epoch"] == 3
    assert tensors["model.w"].eq(3).all()
    assert tensors["n"].shape == ()
    assert warnings == []
    assert len(checkpoint.states(saved)) == 2


def test_a_damaged_newest_state_falls_back_with_a_warning(saved: Path) -> None:
    newest = checkpoint.states(saved)[0]
    newest.write_bytes(newest.read_bytes()[:-40])
    _, meta, warnings = checkpoint.load_state(saved)
    assert meta["epoch"] == 2
    assert newest.name in warnings[0]
    for path in checkpoint.states(saved):
        path.write_bytes(b"")
    with pytest.raises(FileError, match="no state can be read"):
        checkpoint.load_state(saved)


def test_one_flipped_bit_names_the_tensor(saved: Path) -> None:
    path = checkpoint.states(saved)[0]
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FileError, match=r"checksum differs in tensor (model\.w|n) "):
        tensor_files.load_tensors(path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("content", [b"", b"<html>", json.dumps({"a": 1}).encode(), pickle.dumps(Evil()), b"\xff" * 64])
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match="not a zoo checkpoint"):
        tensor_files.load_tensors(path)
    assert not (tmp_path / "pwned").exists()


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    tensor_files.save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)}, {})
    monkeypatch.undo()
    with pytest.raises(FileError, match="newer zoo"):
        tensor_files.load_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_state_round_trip(name: str) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        kind = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
        return model, kind(model.parameters(), **({"lr": 0.1, "momentum": 0.9} if name == "sgd" else {"lr": 0.1}))

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer)
    tensors, scalars = checkpoint.pack_optimizer(optimizer)
    tensors = {key: value.clone() for key, value in tensors.items()}
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    step(model, optimizer)
    again, other = make()
    again.load_state_dict(weights)
    checkpoint.unpack_optimizer(other, tensors, json.loads(json.dumps(scalars)))
    step(again, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_a_row_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    checkpoint.append_rows(tmp_path, [{"epoch": 1, "split": "train"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "spl')
    assert checkpoint.read_rows(tmp_path) == [{"epoch": 1, "split": "train"}]
