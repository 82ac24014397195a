"""States and weights: complete or rejected, with any damage reported."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoo import run_folders, tensor_files
from zoo.errors import DiskError, DivergedError, FileError
from zoo.training import checkpoint

STATE = {
    "epoch": 0, "skip": 0, "best": -1.0, "best_epoch": 0, "seconds": 0.0, "totals": [0.0, 0, 0], "optim": {"0.step": 3.0},
    "data_digest": "", "frozen": {},
}  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        checkpoint.save_state(
            tmp_path, step, {"model.w": torch.full((50,), float(step)), "n": torch.tensor(step)}, STATE | {"epoch": step}
        )
    return tmp_path


def test_round_trip_and_only_two_kept(saved: Path) -> None:
    tensors, meta, warnings = checkpoint.load_state(saved)
    assert meta.epoch == 3
    assert tensors["model.w"].eq(3).all()
    assert tensors["n"].shape == ()
    assert warnings == []
    assert len(checkpoint.states(saved)) == 2


def test_a_damaged_newest_state_falls_back_with_a_warning(saved: Path) -> None:
    newest = checkpoint.states(saved)[0]
    newest.write_bytes(newest.read_bytes()[:-40])
    _, meta, warnings = checkpoint.load_state(saved)
    assert meta.epoch == 2
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
    monkeypatch.setattr(tensor_files, "FORMAT", 99)
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


ROWS = [
    {"epoch": epoch, "split": split, "loss": 1.25, "accuracy": 0.5}
    for epoch in (1, 2)
    for split in ("train", "val")
]  # fmt: skip


def with_rows(folder: Path) -> Path:
    checkpoint.append_rows(folder, ROWS[:2])
    checkpoint.append_rows(folder, ROWS[2:])
    return folder / "metrics.jsonl"


def test_a_row_cut_off_by_a_crash_is_left_out_and_replaced(tmp_path: Path) -> None:
    path = with_rows(tmp_path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last + 1, len(whole) - 2):
        path.write_bytes(whole[:end])
        assert checkpoint.read_rows(tmp_path) == ROWS[:3]
    checkpoint.append_rows(tmp_path, ROWS[3:])
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1])  # all but the end of the line
    assert checkpoint.read_rows(tmp_path) == ROWS
    checkpoint.append_rows(tmp_path, ROWS[3:])
    assert checkpoint.read_rows(tmp_path) == [*ROWS, ROWS[3]]


def test_every_changed_byte_of_the_rows_is_noticed(tmp_path: Path) -> None:
    path = with_rows(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (0, 3, 5):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(FileError, match="damaged file"):
                checkpoint.read_rows(tmp_path)
    lines = whole.splitlines(keepends=True)
    for number in range(len(lines) - 1):
        path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
        with pytest.raises(FileError, match=rf"line {number + 1}: checksum differs"):
            checkpoint.read_rows(tmp_path)
    plain = [json.dumps(row).encode() + b"\n" for row in ROWS]
    for number in range(1, len(lines)):
        path.write_bytes(b"".join([*lines[:number], plain[number], *lines[number + 1 :]]))
        with pytest.raises(FileError, match=rf"line {number + 1}: no checksum"):
            checkpoint.read_rows(tmp_path)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"7", "line 1: Expected `object`, got `int`"), (b"\xff\xfe", "line 1"), (b"{}", "missing required field"),
        (b'{"epoch": -1, "split": "val", "loss": 1, "accuracy": 1}', ">= 0"),
        (b'{"epoch": 1, "split": "val", "loss": "low", "accuracy": 1}', "Expected `float`, got `str`"),
        (b'{"epoch": 1, "split": "val", "accuracy": 1}', "`loss`"), (b"[" * 100_000, "nested too deeply"),
        (b'{"epoch": 1, "split": "val", "loss": 1, "accuracy": 1, "lr": "fast"}', "text instead of a number"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_is_refused(tmp_path: Path, line: bytes, why: str) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n")
    for use in (checkpoint.read_rows, lambda folder: checkpoint.append_rows(folder, ROWS[:1])):
        with pytest.raises(FileError, match="damaged file") as caught:
            use(tmp_path)
        assert why in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == line + b"\n"


def test_rows_of_an_older_zoo_are_read_and_continued(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS[:2])
    (tmp_path / "metrics.jsonl").write_text(text)
    checkpoint.append_rows(tmp_path, ROWS[2:])
    assert checkpoint.read_rows(tmp_path) == ROWS
    checkpoint.keep_rows(tmp_path, 1)
    assert checkpoint.read_rows(tmp_path) == ROWS[:2]


def test_rows_and_states_are_not_written_through_a_link(tmp_path: Path) -> None:
    theirs, place = tmp_path / "theirs", tmp_path / "run"
    for folder in (theirs, place):
        folder.mkdir()
    (theirs / "notes").write_text("mine\n")
    (place / "metrics.jsonl").symlink_to(theirs / "notes")
    (place / "last").symlink_to(theirs)
    with pytest.raises(DiskError, match="a link to"):
        checkpoint.append_rows(place, [])
    with pytest.raises(DiskError, match="a link to"):
        checkpoint.save_state(place, 1, {"n": torch.zeros(1)}, {})
    assert [path.name for path in theirs.iterdir()] == ["notes"]
    assert (theirs / "notes").read_text() == "mine\n"


WEIGHTS = {"model": "resnet20", "classes": ["a", "b"], "input": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}


@pytest.mark.parametrize("shift", [8, 0])
def test_every_changed_byte_of_a_header_is_noticed(tmp_path: Path, shift: int) -> None:
    """A bit of the header's length, too; except for the spaces that pad the header."""
    path = tmp_path / "w.safetensors"
    tensor_files.save_tensors(path, {"a": torch.zeros(2, 3), "b": torch.zeros(6)}, WEIGHTS)
    whole = path.read_bytes()
    end = 8 + len(whole[8 : 8 + int.from_bytes(whole[:8], "little")].rstrip())
    for at in range(shift, end if shift else 8):
        for bit in (0, 2, 5):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(FileError):
                tensor_files.load_weights(path)


@pytest.mark.parametrize(("old", "new"), [(b'"F32"', b'"I32"'), (b"[2,3]", b"[3,2]"), (b"[6]", b"[6,1]")])
def test_a_header_with_another_type_or_shape_of_the_same_bytes(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "w.safetensors"
    tensor_files.save_tensors(path, {"a": torch.zeros(2, 3), "b": torch.zeros(6)}, WEIGHTS)
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + size].replace(old, new)
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + size :])
    with pytest.raises(FileError, match="checksum differs in the header"):
        tensor_files.load_tensors(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": None}, "Expected `str`, got `null`"), ({"classes": "ab"}, "Expected `array`"), ({"classes": [1, 2]}, "Expected `str`, got `int`"),
        ({"classes": []}, "names must be distinct"), ({"classes": ["a", "a"]}, "names must be distinct"), ({"input": [3, 32]}, "length 3"),
        ({"input": [3, 0, 32]}, ">= 1"), ({"input": [3, 32, 10**12]}, "<= 1048576"), ({"mean": [0.1]}, "length 3"),
        ({"mean": [float("nan")] * 3}, "finite"), ({"std": [0, 1, 1]}, "std above 0"), ({"digests": 3}, "Expected `object`"),
        ({"format": "two"}, "Expected `int`, got `str`"), ({"epoch": "last"}, "Expected `int`, got `str`"), ({"frozen": []}, "Expected `object`"),
    ],
)  # fmt: skip
def test_a_header_with_wrong_facts_and_right_checksums_is_refused(tmp_path: Path, change: dict[str, object], why: str) -> None:
    path = tmp_path / "w.safetensors"
    tensor_files.save_tensors(path, {"a": torch.zeros(2)}, WEIGHTS | change)
    with pytest.raises(FileError, match="header cannot be used") as caught:
        tensor_files.load_weights(path)
    assert why in str(caught.value)
    for name in WEIGHTS:
        tensor_files.save_tensors(path, {"a": torch.zeros(2)}, {key: value for key, value in WEIGHTS.items() if key != name})
        with pytest.raises(FileError, match=f"missing required field `{name}`"):
            tensor_files.load_weights(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"epoch": -1}, ">= 0"), ({"epoch": "3"}, "Expected `int`, got `str`"), ({"skip": None}, "Expected `int`"),
        ({"totals": [0.0]}, "length 3"), ({"totals": 3}, "Expected `array`"), ({"optim": [1]}, "Expected `object`"),
        ({"optim": {"0.step": [1]}}, "got `array`"), ({"frozen": {"a": 1}}, "Expected `str`"), ({"threads": "two"}, "got `str`"),
        ({"best": "high"}, "Expected `float`, got `str`"), ({"seconds": -1.0}, ">= 0"), ({"scaler": [2]}, "got `array`"),
    ],
)  # fmt: skip
def test_a_state_with_wrong_facts_and_right_checksums_is_skipped(saved: Path, change: dict[str, object], why: str) -> None:
    checkpoint.save_state(saved, 4, {"n": torch.tensor(4)}, STATE | change)
    _, header, warnings = checkpoint.load_state(saved)
    assert header.epoch == 3
    assert "state-000000004.safetensors" in warnings[0]
    assert why in warnings[0]


def test_a_state_lacks_no_fact(saved: Path) -> None:
    for name in STATE:
        checkpoint.save_state(saved, 4, {"n": torch.tensor(4)}, {key: value for key, value in STATE.items() if key != name})
        assert f"missing required field `{name}`" in checkpoint.load_state(saved)[2][0]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        tensor_files.save_tensors(tmp_path / "w.safetensors", {"a": torch.tensor([1, value])}, WEIGHTS)
        with pytest.raises(FileError, match=r"not finite \(.*, tensor a\)"):
            tensor_files.load_weights(tmp_path / "w.safetensors")


def test_a_file_of_format_1_is_read(tmp_path: Path) -> None:
    values = {"a": torch.zeros(2)}
    meta = {"format": 1, "version": "0.1.0", "digests": {"a": tensor_files.digest(values["a"])}, **WEIGHTS}
    save_file(values, tmp_path / "w.safetensors", {"zoo": json.dumps(meta)})
    assert tensor_files.load_weights(tmp_path / "w.safetensors")[1].classes == ("a", "b")


def test_rows_that_a_full_disk_does_not_take_leave_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_rows(tmp_path)
    whole = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="no space left"):
        checkpoint.append_rows(tmp_path, ROWS[:1])
    assert path.read_bytes() == whole


def test_a_state_that_is_not_finite_is_not_saved(saved: Path) -> None:
    before = checkpoint.states(saved)
    with pytest.raises(DivergedError, match=r"model\.w is not finite"):
        checkpoint.save_state(saved, 4, {"model.w": torch.tensor([1.0, float("nan")])}, {})
    assert checkpoint.states(saved) == before


def test_force_does_not_empty_the_folder_that_a_link_leads_to(tmp_path: Path) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "run"
    for place in (theirs, folder):
        place.mkdir()
    (theirs / "notes").touch()
    for name in ("last", "tensorboard"):
        (folder / name).symlink_to(theirs)
    run_folders.clear(folder)
    assert (theirs / "notes").exists()
    assert not list(folder.iterdir())


EVENTS = [{"epoch": 3, "split": "train", "loss": 0.5, "lr": 0.1}, {"epoch": 3, "split": "val", "accuracy": 0.75}]


def test_tensorboard_reads_the_events_and_a_repeated_epoch_replaces_its_own(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    checkpoint.write_tensorboard(tmp_path, [{"epoch": 2, "split": "train", "loss": 1.5}])
    for _ in range(2):  # the second time after a resume
        checkpoint.write_tensorboard(tmp_path, EVENTS)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    read = {name: [(each.step, round(each.value, 6)) for each in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert read == {"train/loss": [(2, 1.5), (3, 0.5)], "train/lr": [(3, 0.1)], "val/accuracy": [(3, 0.75)]}


def test_a_full_disk_under_tensorboard_leaves_no_partial_file_and_no_traceback_of_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", crashed.append)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limit[1]))
    try:
        with pytest.raises(DiskError):
            checkpoint.write_tensorboard(tmp_path, EVENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not crashed and not list((tmp_path / "tensorboard").iterdir())
