"""A run first locks its folder, and is finished only once its own result is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests_support import small

from zoo import recipe, run_folders, training
from zoo import run as engine
from zoo.__main__ import run as zoo
from zoo.errors import BusyError, DiskError, FileError
from zoo.spec import Given
from zoo.training import build, checkpoint, session, signals
from zoo.training.signals import Interrupted

ROOT = Path(__file__).resolve().parent.parent


def test_a_resumed_run_is_finished_only_with_its_own_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = training.train(small("epochs=1"), out=tmp_path / "run")
    assert run_folders.is_finished(folder)
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "tested", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            training.train(small("epochs=2"), out=folder, resume=True)
    assert not run_folders.is_finished(folder), "the result is that of one epoch"
    assert engine.load(folder).unfinished == "epoch 2 of 2" and "is not finished (epoch 2 of 2)" in capsys.readouterr().err
    training.train(small("epochs=2"), out=folder, resume=True)
    assert run_folders.is_finished(folder) and not engine.load(folder).unfinished
    rows = checkpoint.read_rows(folder)
    assert [row["split"] for row in rows].count("test") == 1
    assert json.loads((folder / "result.json").read_text())["trained"] == {"epochs": 2, "patience": 0}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"trained": 3}', "\xff"])
def test_a_damaged_result_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("epochs = 1\n")
    (tmp_path / "result.json").write_bytes(text.encode("latin-1"))
    assert not run_folders.is_finished(tmp_path)


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    ready = threading.Barrier(4)
    names: list[str] = []

    def start() -> None:
        ready.wait()
        with run_folders.taken(small(), None) as folder:
            (folder / "recipe.toml").touch()
            names.append(folder.name)
            ready.wait()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 4
    again = run_folders.taken(small(), tmp_path / "one")
    with run_folders.taken(small(), tmp_path / "one"), pytest.raises(BusyError, match=r"in use .*held by pid \d+"):
        again.__enter__()
    assert not (tmp_path / "one").exists(), "nothing was written into it"


def test_a_folder_may_have_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = recipe.dump(small("epochs=1"))
    Path("r.toml").write_text(words)
    name = 'a\x1b[31m"\nseed = 7\n'
    assert zoo(["train", "r.toml", "--out", name]) == 0
    found = capsys.readouterr()
    files = [Path(name) / each for each in ("recipe.toml", "README.md", "report.html")]
    for text in (found.out, found.err, *(file.read_text() for file in files)):
        assert "\x1b" not in text
        assert "a\\x1b[31m" in text
    assert recipe.read(Path(name) / "recipe.toml") == small("epochs=1"), "the name sets nothing"
    assert run_folders.is_finished(Path(name))


def test_the_loser_of_a_race_knows_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom zoo.__main__ import run\n"
        f"code = run(['train', 'cnn_small', '--data', 'synthetic', '--out', {str(tmp_path)!r}])\n"
        "print(code, 'torch' in sys.modules)"
    )
    with run_folders.locked(tmp_path):
        ran = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
    assert ran.stdout.split() == ["7", "False"], ran.stderr


@pytest.mark.parametrize("name", ["last", "tensorboard"])
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "state-000000001.safetensors").write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).symlink_to(theirs)
    (folder / "recipe.toml").write_text("epochs = 1\n")
    with pytest.raises(DiskError, match=rf"{name}, a link to"):
        training.train(small(), out=folder, resume=True)
    training.train(small("epochs=1"), out=folder, force=True)
    assert (folder / name).is_dir() and not (folder / name).is_symlink()
    assert [path.name for path in theirs.iterdir()] == ["state-000000001.safetensors"]
    assert (theirs / "state-000000001.safetensors").read_text() == "precious"


def test_a_folder_without_a_recipe_says_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".lock").touch()
    assert zoo(["train", "--resume", "--out", str(tmp_path)]) == 4
    assert "its training was stopped before the first step); start it again: zoo train RECIPE" in capsys.readouterr().err
    with pytest.raises(FileError, match=r"elsewhere, no such folder\); check the name"):
        run_folders.stored_recipe(tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="not a run folder"):
        run_folders.stored_recipe(tmp_path / "empty")


def test_a_full_disk_under_tensorboard_loses_no_row_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer import record_writer

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_writer.RecordWriter, "write", full)
    folder = training.train(small("epochs=2", "on_full=keep-training"), out=tmp_path / "run")
    assert capsys.readouterr().err.count("warning  not saved, training continues: no space left") == 2
    found = [(row["epoch"], row["split"]) for row in checkpoint.read_rows(folder)]
    assert len(found) == len(set(found)) == 5
    with pytest.raises(DiskError):
        training.train(small("epochs=1"), out=tmp_path / "stopping")


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "nohup zoo train would end with its terminal"
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_resuming_with_more_epochs_says_what_the_schedule_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = training.train(small("epochs=1", "schedule=cosine", "warmup=0", "lr=0.01"), out=tmp_path / "run")
    capsys.readouterr()
    training.train(small("epochs=2", "schedule=cosine", "warmup=0", "lr=0.01"), out=folder, resume=True)
    err = capsys.readouterr().err
    assert "resume   schedule cosine now ends at epoch 2 (was 1): rate 0 -> 0.005 from epoch 2 on" in err
    assert "warning  the learning rate jumps to 0.005 on resuming" in err
    assert "Lookahead" not in err


def test_resuming_with_more_epochs_says_what_lookahead_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = training.train(small("epochs=1", "lookahead=0.9"), out=tmp_path / "run")
    training.train(small("epochs=2", "lookahead=0.9"), out=folder, resume=True)
    assert "warning  the slow weights of Lookahead are stretched from 1 to 2 epochs too" in capsys.readouterr().err


def test_epochs_are_handed_out_as_they_end_and_objects_replace_what_the_recipe_names(tmp_path: Path) -> None:
    recipe = small("epochs=2")
    data = build.dataset(recipe, 32)
    seen: list[list[dict[str, Any]]] = []

    class Scaled(build.nn.Module):
        def forward(self, logits: Any, target: Any) -> Any:
            return 0.5 * build.nn.functional.cross_entropy(logits, target)

    folder = training.train(recipe, out=tmp_path / "run", on_epoch=seen.append, given=Given(data=data, loss=Scaled()))
    assert [[row["split"] for row in rows] for rows in seen] == [["train", "val"]] * 2
    assert seen[0][0]["loss"] < 1.5, "half of log 10 and less"
    assert run_folders.is_finished(folder)


def test_a_checkpoint_of_another_model_is_a_fault_of_the_file(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(["train", "resnet20", "--data", "synthetic", "--resume", "--out", str(small_run)]) == 4
    assert "checkpoint belongs to another run" in capsys.readouterr().err


def test_a_signal_before_the_command_has_handlers_is_said() -> None:
    code = "import os, signal, sys\nfrom zoo import cli\nfrom zoo.__main__ import run\n"
    code += "cli.cli.main = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM)\nsys.exit(run(['train']))"
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (143, "zoo train: stopped by SIGTERM; there is nothing to resume, start it again\n")
