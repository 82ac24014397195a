"""publish: the old content or the new, never a partial file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest

from zoo import files, run_folders
from zoo.cli._shared import UserPath
from zoo.errors import DiskError, FileError, ZooError
from zoo.files import as_disk_error


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EBUSY])
def test_a_full_disk_is_reported_even_when_hidden_in_a_context(tmp_path: Path, number: int) -> None:
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
        child.stdout.readline()  # it has started, which takes a while on a busy machine
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 3_000_000
            assert content == content[:1] * 3_000_000
    assert path.exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_a_file_in_place_of_a_folder_and_a_name_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.csv", tmp_path / ("a" * 300)):
        with pytest.raises(DiskError, match="cannot write"):
            files.publish(path, lambda temporary: temporary.write_text(""))


def test_another_place_for_the_cache_is_not_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").touch()
    for path, advice in (
        (tmp_path / "cache" / "data" / "a.bin", "set ZOO_CACHE to another folder"),
        (tmp_path / "a", "; choose another --out$"),
        (tmp_path / "runs", "; choose another --out, or set ZOO_RUNS to another folder$"),
        (tmp_path / "runs" / "a", "; choose another --out, or set ZOO_RUNS to another folder$"),
        (tmp_path / "run", "; change its permissions$"),
        (tmp_path / "run" / "report.html", "; change its permissions$"),
        (tmp_path / "run" / "last" / "a.bin", "; change its permissions$"),
        (tmp_path / "run" / "model.onnx", "; choose another --out$"),
    ):
        with pytest.raises(DiskError, match=advice), as_disk_error(path):
            raise OSError(errno.EACCES, "no")
    with pytest.raises(DiskError, match="free some space$"), as_disk_error(tmp_path / "run" / "report.html"):
        raise OSError(errno.ENOSPC, "no")


def test_a_run_folder_that_takes_no_lock_is_not_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    (tmp_path / run_folders.LOCK).touch()
    for number, message in ((errno.EROFS, "cannot write .*Read-only"), (errno.ENOLCK, "cannot lock the run folder")):
        fails = OSError(number, os.strerror(number))
        monkeypatch.setattr(filelock.FileLock, "acquire", lambda *_, fails=fails, **__: (_ for _ in ()).throw(fails))
        with pytest.raises(ZooError, match=message):
            run_folders.check_free(tmp_path)


def test_a_folder_that_takes_no_new_files() -> None:
    with pytest.raises(DiskError, match=r"cannot write \(/proc/x.onnx, "):
        files.check_writable(Path("/proc/x.onnx"))


def test_a_folder_in_which_no_folder_can_be_made() -> None:
    with pytest.raises(DiskError, match=r"cannot write \(/proc/nope/a/b\.txt, No such file"):
        files.publish_text(Path("/proc/nope/a/b.txt"), "x")


def test_a_missing_input_of_a_writer_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.publish(tmp_path / "a.txt", lambda _: (tmp_path / "gone").read_bytes())


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


def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record the operations on files from now on, in order."""
    found: list[tuple[str, str]] = []
    replace, sync = Path.replace, os.fsync

    def fsync(handle: int) -> None:
        found.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name))
        sync(handle)

    def renamed(self: Path, target: Path) -> Path:
        found.append(("replace", target.name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
def test_the_file_is_on_disk_before_it_is_renamed_and_the_name_before_publish_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the first fsync, a power failure leaves an empty file under the name; without the second, the old one."""
    seen: list[bytes] = []
    found = calls(monkeypatch)
    files.publish(tmp_path / "a.txt", lambda t: t.write_text("new"), verify=lambda t: seen.append(t.read_bytes()))
    assert seen == [b"new"]
    assert [(what, ".zoo-tmp" in name) for what, name in found] == [("fsync", True), ("replace", False), ("fsync", False)]
    assert [name for _, name in found[1:]] == ["a.txt", tmp_path.name]


@pytest.mark.parametrize("at", [0, 1])
def test_a_disk_that_fails_to_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    files.publish_text(tmp_path / "a.txt", "old")
    numbers = iter(range(2))

    def fsync(handle: int) -> None:
        if next(numbers) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskError, match="cannot write"):
        files.publish_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == ("old" if at == 0 else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_save_takes_no_more_space_than_it_states(tmp_path: Path) -> None:
    """Preallocated space is released: a writer that creates its own file would otherwise need it twice."""
    blocks: list[int] = []
    files.publish(tmp_path / "a.bin", lambda t: (blocks.append(t.stat().st_blocks), t.write_bytes(b"x")), size=1 << 20)
    assert blocks == [0]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_disk_that_is_too_small_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskError, match=r"no space left .*need 3.0 MB, \d+.\d MB free"):
        files.publish(tmp_path / "a.txt", lambda t: pytest.fail("written"), size=3_000_000)
    assert not list(tmp_path.iterdir())


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a.txt").symlink_to(tmp_path / "theirs")
    files.publish_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "a.txt").is_symlink()
    (tmp_path / "last").symlink_to(tmp_path)
    with pytest.raises(DiskError, match=r"cannot write \(.*last, a link to .*\); remove the link"):
        files.own_folder(tmp_path / "last")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_facts_that_are_damaged(tmp_path: Path, text: str) -> None:
    assert files.read_facts(tmp_path / "env.json") == {}
    (tmp_path / "env.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match="damaged file"):
        files.read_facts(tmp_path / "env.json")


def test_only_strays_of_zoo_are_removed(tmp_path: Path) -> None:
    for name in (f".a.12345678{files.TEMPORARY}.bin", ".mine", "a.zoo-tmp-notes", "b.txt"):
        (tmp_path / name).touch()
    files.remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "a.zoo-tmp-notes", "b.txt"]


def test_a_folder_without_room(tmp_path: Path) -> None:
    files.check_room(tmp_path / "new", 1)
    with pytest.raises(DiskError, match=r"no space left .*need 1000000000000.0 MB"):
        files.check_room(tmp_path / "new", 10**18)


def test_the_lock_of_a_folder_leaves_no_file_and_needs_no_fcntl(tmp_path: Path) -> None:
    with files.alone(tmp_path / "a.onnx"):
        assert [path.name for path in tmp_path.iterdir()] == [files.LOCK]
        with pytest.raises(TimeoutError), files.held(tmp_path / files.LOCK, wait=False):
            pass
    assert not list(tmp_path.iterdir())
    for module in (files, run_folders):
        assert "import fcntl" not in Path(module.__file__).read_text(encoding="utf-8"), "Windows has none"


def test_a_tilde_that_the_shell_left_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    out = click.Option(["--out"], type=UserPath())
    command = click.Command("x", params=[out], callback=lambda out: out)
    assert command.main(["--out=~/y.onnx"], standalone_mode=False) == tmp_path / "y.onnx"
    assert files.expanded("~no_such_user/y") == Path("~no_such_user/y")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").touch()
    assert run_folders.find("~/run") == tmp_path / "run"


def test_a_run_is_found_by_its_beginning_next_to_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "pets-cnn_small-s0"
    run.mkdir(parents=True)
    (run / "recipe.toml").touch()
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    assert run_folders.find("pets").resolve() == run, "not the folder of images"
    for name in ("./pets", ""):
        with pytest.raises(FileError, match="not a run folder"):
            run_folders.find(name)


def test_a_user_without_a_home_folder_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def missing() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", missing)
    with pytest.raises(DiskError, match="no home folder for the cache; set ZOO_CACHE"):
        files.cache_folder()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
