"""Progress lines: a bar on a terminal, one line per ten seconds elsewhere, at most 80 columns, nothing on stdout."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import __main__ as cli
from zoo import console, tables

ROOT = Path(__file__).resolve().parent.parent
ROW = {"images_per_s": 12345.6, "loss": 0.1234, "accuracy": 0.999, "seconds": 61}
RUN = """
from zoo.console import Progress, print_line
row = {"images_per_s": 12345.6, "loss": 0.1234, "accuracy": 0.999, "seconds": 61}
with Progress(200, 4, 10_000) as progress:
    for epoch in (100, 101):
        for done in range(1, 5):
            progress.step(epoch, done, 0.5)
        progress.epoch(epoch, row, row)
    print_line("run      saved")
"""


class Clock:
    """A clock that the tests set."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    hand = Clock()
    monkeypatch.setattr(console, "time", hand)
    return hand


def test_progress_is_printed_every_three_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in console.counted(range(5), 1234, "data     decoded", 256):
        clock.now += 2
    assert capsys.readouterr().err.splitlines() == [
        "data     decoded 512 of 1,234 · left 0:06",
        "data     decoded 1,024 of 1,234 · left 0:02",
    ]


def test_counted_things_of_different_sizes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The time left is by size: two small batches are a tenth of the work."""
    for size in console.counted([30, 30, 30, 3, 7], 100, "parity   exported file", lambda size: size):
        clock.now += size
    assert capsys.readouterr().err.splitlines() == [
        "parity   exported file 30 of 100 · left 1:10",
        "parity   exported file 60 of 100 · left 0:40",
        "parity   exported file 90 of 100 · left 0:10",
    ]


def test_a_log_gets_a_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.Progress(2, 50, 5000) as progress:
        for done in range(1, 51):
            clock.now += 1
            progress.step(1, done, 2.0)
        progress.epoch(1, ROW, {"accuracy": 0.5})
        clock.now += 1
        progress.step(2, 1, 1.5)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert len(lines) == 6, "at 10, 20, 30, 40 and 50 seconds, and the epoch's own"
    assert lines[1] == "train    epoch 1/2 · 100 img/s · loss 2.000 · 0:19 · left 1:20"
    assert lines[5] == "train    epoch 1/2 · 12,346 img/s · loss 0.123 · train 99.9 % · val 50.0 % · 1:01"


def test_speed_is_of_this_epoch(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.Progress(2, 10, 1000) as progress:
        for epoch, seconds in ((1, 1), (2, 11)):
            for done in range(1, 11):
                clock.now += seconds
                progress.step(epoch, done, 1.0)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "9 img/s" in last, "100 images in 11 seconds, however fast the first epoch was"
    assert last.endswith("left 0:00")


def test_without_validation(capsys: pytest.CaptureFixture[str]) -> None:
    console.Progress(3, 1, 1).epoch(3, ROW, None)
    assert capsys.readouterr().err == "train    epoch 3/3 · 12,346 img/s · loss 0.123 · train 99.9 % · 1:01\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (7380, "2:03:00")])
def test_clock(seconds: float, text: str) -> None:
    assert console.clock(seconds) == text


def test_fit_leaves_out_the_least_wanted() -> None:
    parts = [(0, "epoch 1/6"), (3, "900 img/s"), (1, "loss 2"), (2, ""), (0, "left 1:00")]
    assert console.fit(parts, 99) == "epoch 1/6 · 900 img/s · loss 2 · left 1:00"
    assert console.fit(parts, 30) == "epoch 1/6 · loss 2 · left 1:00"
    assert console.fit(parts, 1) in ("epoch 1/6", "left 1:00"), "one part stays, however narrow"


def on_a_terminal(**environment: str) -> str:
    """Output of the run above on a terminal of 80 columns."""
    near, far = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "LINES": "24", "TERM": "xterm", **environment}
    with subprocess.Popen([sys.executable, "-c", RUN], stderr=far, stdout=subprocess.PIPE, env=env) as process:
        os.close(far)
        written = b""
        try:
            while block := os.read(near, 65536):
                written += block
        except OSError:
            pass  # Linux ends a terminal whose other side is closed with EIO
        assert process.stdout is not None
        assert process.stdout.read() == b""
    os.close(near)
    assert process.returncode == 0
    return written.decode()


def test_a_terminal_of_80_columns_gets_a_bar() -> None:
    text = on_a_terminal()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain)]
    assert "\x1b[2K" in text, "the bar redraws itself"
    assert "train    epoch 101/200 · 12,346 img/s · loss 0.123 · train 99.9 % · val 99.9 %" in lines
    assert "run      saved" in lines
    bars = [line for line in lines if "━" in line]
    assert any("epoch 101/200" in line and "left" in line for line in bars)
    assert max(map(len, lines)) <= 80


def test_no_color() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*[39][0-9][0-9;]*m")
    assert not colour.search(on_a_terminal(NO_COLOR="1"))
    assert colour.search(on_a_terminal(NO_COLOR="")), "or the check sees nothing"


def test_a_dumb_terminal_gets_lines() -> None:
    text = on_a_terminal(TERM="dumb")
    assert "\x1b" not in text
    assert "epoch 101/200" in text


def test_a_note_that_is_a_warning_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("data", "3 files are no images")
    console.note("data", "warning: 2 test images are also training images")
    assert capsys.readouterr().err.splitlines() == [
        "data     3 files are no images",
        "warning  2 test images are also training images",
    ]


ESCAPES = "a\x1b[2Jb\x07\r\n\u202ec"


def test_escape_sequences_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control characters in names of files, classes and options, wherever a command prints them."""
    monkeypatch.chdir(tmp_path)
    console.print_line(f"run      {ESCAPES}")
    tables.out().print(tables.make((ESCAPES,), [(ESCAPES,), ("[red]x[/red] :smile:",)], title=ESCAPES))
    for words in (["verify", f"{ESCAPES}.onnx"], ["bench", f"{ESCAPES}.onnx"], ["models", f"--{ESCAPES}"], [f"{ESCAPES}"]):
        assert cli.run(words) in (2, 4)
    found = capsys.readouterr()
    for text in (found.out, found.err):
        assert text.count("a\\x1b[2Jb\\x07\\r\\n\\u202ec") >= 3
        assert not {character for character in text if not character.isprintable()} - {"\n"}
    assert "[red]x[/red] :smile:" in found.out


def test_a_table_in_a_pipe_is_neither_wrapped_nor_cut(capsys: pytest.CaptureFixture[str]) -> None:
    name = "n" * 500
    tables.out().print(tables.make(("class", ">n"), [(name, 1), (name + " b", 2)]))
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["class", "n"], [name, "1"], [name, "b", "2"]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    ("shell", "code", "says"),
    [
        ("models > /dev/full", 141, "cannot write the output (No space left on device)"), ("models >&-", 0, ""), ("models 2>&-", 0, ""),
        ("models --json > /dev/full", 141, "cannot write the output"), ("nope 2> /dev/full", 2, ""), ("nope > /dev/full", 2, "no command"),
        ("models | false; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)  # fmt: skip
def test_output_that_nobody_can_read(shell: str, code: int, says: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(console.__file__).parent.parent)}
    command = ["bash", "-c", f"{shlex.quote(sys.executable)} -m zoo {shell}"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert ran.returncode == code
    assert says in ran.stderr
    assert len(ran.stderr.splitlines()) == bool(says)


def test_progress_that_nobody_can_read_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, open("/dev/full", "w")):  # noqa: SIM115, PTH123 - left to the collector, as a closed terminal is
        monkeypatch.setattr(sys, "stderr", stream)
        console.print_line("train    epoch 1")


def test_a_locale_without_the_letters_of_a_name(tmp_path: Path) -> None:
    code = "from zoo import __main__, tables; __main__._open_streams(); tables.out().print(tables.make(('klasse',), [('gr\\xfcn',)]))"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert (ran.stdout.split(), ran.stderr) == ([b"klasse", b"gr\\xfcn"], b"")
