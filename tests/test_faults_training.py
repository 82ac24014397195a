"""Faults by number (8 to 23) that end or disturb training: nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import digests, small

from zoo import files, registry, run_folders, tensor_files, training
from zoo.__main__ import run as zoo
from zoo.errors import BusyError, DataError, DiskError, DivergedError, UsageError
from zoo.training import build, checkpoint, lint, losses, session
from zoo.training.signals import Interrupted

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("one_thread")


def test_8_a_full_disk_is_reported_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 3_100_000))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match=r"no space left \(.*need \d+\.\d MB, 3\.1 MB free\)"):
        training.train(small(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_10_a_held_folder_names_its_holder_and_a_dead_one_is_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"from zoo import run_folders; import time, pathlib; h = run_folders.locked(pathlib.Path({str(tmp_path)!r})); h.__enter__(); print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(BusyError, match=f"in use .*pid {child.pid} on "):
        run_folders.check_free(tmp_path)
    assert zoo(["train", "demo", "--out", str(tmp_path)]) == 7
    assert f"pid {child.pid}" in capsys.readouterr().err
    assert zoo(["train", "--resume", "--out", str(tmp_path)]) == 7, "the other process has not written its recipe yet"
    assert f"pid {child.pid}" in capsys.readouterr().err
    child.kill()
    child.wait()
    with run_folders.locked(tmp_path):
        assert f"pid {child.pid}" in capsys.readouterr().err
    with run_folders.locked(tmp_path):
        assert capsys.readouterr().err == ""


def test_11_a_label_out_of_range_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = build.dataset

    def spoilt(*arguments: Any) -> Any:
        data = real(*arguments)
        data.train.targets[5] = 10
        return data

    monkeypatch.setattr(build, "dataset", spoilt)
    with pytest.raises(DataError, match=r"label out of range \(train\[\d+\], label 10, 10 classes\)"):
        training.train(small(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_12_an_empty_class_is_refused_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="no training image .*--allow-empty-class"):
        training.train(small("data.imbalance=exp:0.0001"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    folder = training.train(
        small("data.imbalance=exp:0.0001", "allow_empty_class=true", "class_weights=effective", "sampler=class_balanced"),
        out=tmp_path / "run",
    )
    assert "cannot be learned" in capsys.readouterr().err
    assert json.loads((folder / "env.json").read_text())["counts"][-3:] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["none", "effective", "inverse", "sqrt_inverse"])
@pytest.mark.parametrize("loss", registry.names("losses"))
def test_12_an_empty_class_leaves_every_loss_finite(loss: str, kind: str) -> None:
    counts = np.array([40, 3, 0, 1, 0])
    mine = small(f"loss={loss}", f"class_weights={kind}", "sampler=class_balanced", "allow_empty_class=true")
    lint.check(mine, counts)
    made, weight = losses.build(mine, counts)
    assert weight is None or (weight[[2, 4]].tolist(), round(weight.sum().item(), 5)) == ([0, 0], 3)
    logits = torch.randn(6, 5, requires_grad=True)
    value = made(logits, torch.tensor([0, 1, 3, 0, 3, 1]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_13_no_state_is_ever_not_finite(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path, 1, {"model.w": torch.ones(3)}, {})
    with pytest.raises(DivergedError, match=r"model\.w is not finite \(step 2\)"):
        checkpoint.save_state(tmp_path, 2, {"model.w": torch.tensor([1.0, float("nan")])}, {})
    assert [path.name for path in checkpoint.states(tmp_path)] == ["state-000000001.safetensors"]


def test_14_a_scaler_that_only_skips_has_diverged(tmp_path: Path) -> None:
    from zoo.training.loop import SKIPS, Step, _apply

    class Scaler:
        value = 2.0**60

        def scale(self, loss: Any) -> Any:
            return loss

        def unscale_(self, optimizer: Any) -> None: ...

        def step(self, optimizer: Any) -> None: ...

        def update(self) -> None:
            self.value /= 2

        def get_scale(self) -> float:
            return self.value

    model = torch.nn.Linear(1, 1)
    step = Step(torch.optim.SGD(model.parameters(), 0.1), lambda at: 0.1, torch.device("cpu"), scaler=Scaler())
    for _ in range(SKIPS):
        _apply(step)
    assert step.skipped[0] == SKIPS
    step.scaler.update = lambda: None
    _apply(step)
    assert step.skipped[0] == 0


def interrupt(monkeypatch: pytest.MonkeyPatch, number: int, at: int, *, where: str = "train_epoch") -> None:
    """Send this process a signal once, after ``at`` steps or, with ``predict``, evaluation batches."""
    real, left = getattr(session, where), iter(range(at, -1, -1))

    def counted(inner: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if next(left, -1) == 0:
                os.kill(os.getpid(), number)
            return inner(*arguments)

        return call

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if where == "predict":
            return real(*arguments, **options | {"poll": counted(options.get("poll", lambda: None))})
        return real(*arguments, **options | {"watch": counted(options["watch"])})

    monkeypatch.setattr(session, where, wrapped)


@pytest.mark.parametrize(
    ("number", "code", "where", "at"),
    [
        (signal.SIGTERM, 143, "train_epoch", 3),
        pytest.param(signal.SIGUSR1, 143, "train_epoch", 8, marks=pytest.mark.slow),
        (signal.SIGHUP, 143, "predict", 2),
        (signal.SIGINT, 130, "train_epoch", 0),
    ],
)
def test_15_16_a_signal_saves_and_the_resumed_run_has_the_same_bits(
    tmp_path: Path, small_plain: Path, number: int, code: int, where: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, number, at, where=where)
        with pytest.raises(Interrupted) as caught:
            training.train(small(), out=tmp_path / "run")
    assert (caught.value.code, caught.value.saved) == (code, True)
    training.train(small(), out=tmp_path / "run", resume=True)
    assert digests(tmp_path / "run") == digests(small_plain)


def test_15_a_signal_before_the_first_step_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "dataset", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        training.train(small(), out=tmp_path / "run")
    assert not caught.value.saved
    assert not (tmp_path / "run").exists()


def test_17_states_are_saved_every_so_many_steps_and_only_own_temporaries_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(checkpoint, "save_state", lambda folder, step, tensors, meta: kept.append(step))
    training.train(small("save_every=4"), out=tmp_path / "run")
    assert kept[:3] == [0, 4, 8]
    (tmp_path / ".mine.tmp.txt").write_text("mine")
    (tmp_path / f".weights.abc{files.TEMPORARY}.safetensors").write_text("torn")
    with run_folders.locked(tmp_path):
        assert (tmp_path / ".mine.tmp.txt").is_file()
        assert list(tmp_path.glob(f"*{files.TEMPORARY}*")) == []


def full_disk(monkeypatch: pytest.MonkeyPatch, calls: range) -> None:
    """The saves with these numbers fail with a full disk."""
    real, number = tensor_files.save_file, iter(range(1000))

    def write(tensors: Any, path: Path, header: Any) -> None:
        if next(number) in calls:
            path.write_bytes(b"half")
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path, header)

    monkeypatch.setattr(tensor_files, "save_file", write)


def test_18_a_full_disk_in_a_save_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        full_disk(patch, range(1, 100))
        with pytest.raises(DiskError, match=r"no space left \(.*need \d+\.\d MB, .* MB free\)"):
            training.train(small("save_every=2"), out=tmp_path / "run")
    assert checkpoint.load_state(tmp_path / "run")[1].skip == 0
    assert not list((tmp_path / "run").rglob(f"*{files.TEMPORARY}*"))


def test_18_training_goes_on_where_that_is_asked(
    tmp_path: Path, small_plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_disk(monkeypatch, range(1, 3))
    training.train(small("save_every=2", "on_full=keep-training"), out=tmp_path / "run")
    assert capsys.readouterr().err.count("not saved, training continues") == 2
    assert digests(tmp_path / "run") == digests(small_plain)


def test_20_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(session, "train_epoch", burst)
    with pytest.raises(DiskError, match=r"out of memory \(batch_size 50\).*--batch-size 25"):
        training.train(small(), out=tmp_path / "run")
    assert checkpoint.load_state(tmp_path / "run")[1].epoch == 0


def test_22_a_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = f"{sys.executable!r} -m zoo recipes --show | head -c 5"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode in (0, 141), ran.stderr) == (True, "")


def test_23_an_operation_without_a_deterministic_way_is_named_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(torch.nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
            return torch.nn.functional.cross_entropy(logits, target)

    monkeypatch.setattr(losses, "build", lambda *arguments: (Odd(), None))
    with pytest.raises(UsageError, match="put_ has no deterministic implementation"):
        training.train(small("deterministic=true"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not torch.are_deterministic_algorithms_enabled()
