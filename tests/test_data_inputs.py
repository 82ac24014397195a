"""Arguments of ``zoo predict`` (folders, patterns, standard input, URLs) and its output."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from data_cases import noise, tree
from PIL import Image

from zoo import tables
from zoo.__main__ import run as zoo
from zoo.data._inputs import gathered
from zoo.errors import DataError, UsageError


def names(*words: str) -> list[str]:
    with gathered(words) as found:
        assert all(path.exists() for _, path in found)
        return [name for name, _ in found]


def given(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_folder_stands_for_the_images_in_and_below_it(tmp_path: Path) -> None:
    root = tree(tmp_path / "a", splits=("x",), n=2)
    (root / "notes.txt").write_text("x")
    (root / ".hidden").mkdir()
    Image.fromarray(noise(0)).save(root / ".hidden" / "a.png")
    Image.fromarray(noise(0)).save(root / "no_ending", "PNG")
    found = names(str(root))
    assert [str(Path(name).relative_to(root)) for name in found] == [
        "no_ending", "x/cat/0.png", "x/cat/1.png", "x/dog/0.png", "x/dog/1.png",
    ]  # fmt: skip


def test_patterns_that_the_shell_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "a", splits=("x",), n=2)
    monkeypatch.chdir(tmp_path)
    assert names("a/x/cat/*.png") == ["a/x/cat/0.png", "a/x/cat/1.png"]
    assert len(names("a/**/*.png", str(tmp_path / "a/x/*/0.png"))) == 6
    Path("a[1].png").write_bytes(Path("a/x/cat/0.png").read_bytes())
    assert names("a[1].png") == ["a[1].png"], "a file of that very name"


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("https://example.org//cat%20a.jpg", UsageError, r"cannot fetch https://example\.org//cat%20a\.jpg; download it"),
        ("none*.png", DataError, r"no file matches 'none\*\.png'"),
        ("empty", DataError, "no images in the folder"),
    ],
)
def test_what_stands_for_nothing(
    word: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(error, match=message):
        names(word)


def test_standard_input_is_an_image_or_a_list_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree(tmp_path / "a", splits=("x",), n=1) / "x" / "cat" / "0.png"
    given(monkeypatch, path.read_bytes())
    with gathered(["-"]) as [(name, copy)]:
        assert (name, copy.read_bytes()) == ("-", path.read_bytes())
    assert not copy.exists()
    given(monkeypatch, f"{path}\n\n{path}\n".encode())
    assert names("-") == [str(path)] * 2
    given(monkeypatch, b"")
    with pytest.raises(DataError, match="standard input is empty"):
        names("-")


def test_names_are_text_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ``LC_ALL=C`` Python represents each byte of a name as a surrogate."""
    monkeypatch.chdir(tmp_path)
    path = tree(tmp_path / "a", splits=("x",), n=1) / "x" / "cat" / "0.png"
    escaped = "chat\u00f4n.png".encode().decode("ascii", "surrogateescape")
    path.rename(tmp_path / "chat\u00f4n.png")
    monkeypatch.setattr("zoo.data._inputs._of", lambda word, folder: [(word, tmp_path / "chat\u00f4n.png")])
    assert names(escaped) == ["chat\u00f4n.png"]


def test_the_command(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "a", splits=("x",), n=1)
    (root / "x" / "cat" / "=1.png").write_bytes(b"torn")
    assert zoo(["predict", "--run", str(small_run), str(root), "--csv", "--top", "2"]) == 3
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["rank"] for row in rows] == ["1", "2"] * 2
    assert float(rows[0]["probability"]) >= float(rows[1]["probability"])
    assert "=1.png: error: not an image" in err
    assert zoo(["predict", "--run", str(small_run), "http://a.org//b.png"]) == 2
    assert "http://a.org//b.png" in capsys.readouterr().err
    assert zoo(["predict", str(root), "--csv", "--json"]) == 2
    assert zoo(["predict", str(root), "--run", str(small_run), "--onnx", "m.onnx"]) == 2
    assert "--run and --onnx are mutually exclusive" in capsys.readouterr().err


def test_no_cell_of_the_csv_is_a_formula(capsys: pytest.CaptureFixture[str]) -> None:
    answers: list[Any] = [{"file": "=a.png", "top": [("@b", 0.5), ("+c", 0.25), ("-d", 0.25)]}]
    tables.predictions(answers, as_json=False, as_csv=True)
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[1:] == [["'=a.png", "1", "'@b", "0.5"], ["'=a.png", "2", "'+c", "0.25"], ["'=a.png", "3", "'-d", "0.25"]]


def test_csv_is_written_as_images_are_classified(tmp_path: Path) -> None:
    """What an interrupt would leave in a file: the rows of all images before it, outside of any buffer."""
    code = "import os\nfrom zoo import tables\n" \
        "def answers():\n    yield {'file': 'a.png', 'top': [('cat', 0.5)]}\n    os._exit(0)\n" \
        "tables.predictions(answers(), as_json=False, as_csv=True)\n"  # fmt: skip
    with (tmp_path / "rows.csv").open("wb") as file:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
        subprocess.run([sys.executable, "-c", code], stdout=file, env=env, check=True)
    assert (tmp_path / "rows.csv").read_text().splitlines() == ["file,rank,class,probability", "a.png,1,cat,0.5"]


def test_an_interrupt_leaves_the_answers_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    def answers() -> Iterator[dict[str, Any]]:
        yield {"file": "a.png", "top": [("cat", 0.5)]}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tables.predictions(answers(), as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"file": "a.png", "top": [["cat", 0.5]]}]
    with pytest.raises(KeyboardInterrupt):
        tables.predictions(answers(), as_json=False)
    assert "a.png" in capsys.readouterr().out
