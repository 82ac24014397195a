"""publish: the old content or the new, never half of one."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zoo import files, run_folders
from zoo.errors import DiskError


def test_publish_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.txt"
    files.publish_text(path, "one")
    files.publish_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failing_writer_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.publish_text(path, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        files.publish(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failing_check_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.publish_text(path, "old")
    with pytest.raises(ValueError, match="no good"):
        files.publish(path, lambda t: t.write_text("new"), verify=lambda t: (_ for _ in ()).throw(ValueError("no good")))
    assert path.read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_is_told_even_when_hidden_in_a_context(tmp_path: Path, number: int) -> None:
    def write(temporary: Path) -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 - as torch.save does

    with pytest.raises(DiskError) as caught:
        files.publish(tmp_path / "a.txt", write)
    assert caught.value.code == 6
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_kill_9_never_leaves_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    code = (
        "import sys; from pathlib import Path; from zoo.files import publish\n"
        "print(flush=True)\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    publish(Path(sys.argv[1]), lambda t: t.write_bytes(bytes([n % 251]) * 3_000_000))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parent.parent)}
    for pause in (0.15, 0.22, 0.31, 0.4):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], env=env, stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()  # it has started, which a busy machine takes its time for
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 3_000_000
            assert content == content[:1] * 3_000_000
    assert path.exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_a_folder_that_takes_no_new_files() -> None:
    with pytest.raises(DiskError, match=r"cannot write \(/proc/x.onnx, "):
        files.check_writable(Path("/proc/x.onnx"))


def test_what_another_process_is_writing_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    stray = tmp_path / f".a.12345678{files.TEMPORARY}.onnx"
    stray.touch()
    thread = threading.Thread(target=files.check_writable, args=(path,))
    with files.alone(path):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert stray.is_file()
    thread.join(60)
    assert not stray.exists(), "nobody writes it now"


def test_to_ask_makes_no_folder(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "new" / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_folder_leaves_no_file_and_needs_no_fcntl(tmp_path: Path) -> None:
    with files.alone(tmp_path / "a.onnx"):
        assert [path.name for path in tmp_path.iterdir()] == [files.LOCK]
        with pytest.raises(TimeoutError), files.held(tmp_path / files.LOCK, wait=False):
            pass
    assert not list(tmp_path.iterdir())
    for module in (files, run_folders):
        assert "import fcntl" not in Path(module.__file__).read_text(encoding="utf-8"), "Windows has none"
