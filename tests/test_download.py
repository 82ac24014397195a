"""Downloads from a faulty local server; verification of a data set; evaluation that skips bad images."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests_support import resolve

from zoo import training
from zoo.__main__ import run as zoo
from zoo.data import _download
from zoo.errors import DataError, UsageError

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


started, resumed = threading.Event(), threading.Event()
"""A slow download has begun, and may go on."""


class Server(BaseHTTPRequestHandler):
    """Responds by the path: the whole file, half of it, no ranges, a page, a redirect."""

    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        what, wanted = self.path.strip("/"), self.headers.get("Range", "")
        self.asked.append((what, wanted))
        if what in ("elsewhere", "file"):
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd" if what == "file" else "https://example.org/x")
            self.end_headers()
            return
        if what == "near":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
            return
        start = int(wanted[6:-1]) if wanted and what != "ranges" else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if what == "page" else "application/gzip")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        body = BODY[start:] if what != "wrong" else bytes(len(BODY))
        if what == "slow":
            self.wfile.write(body[:1000])
            started.set()
            resumed.wait(10)
            body = body[1000:]
        self.wfile.write(body[:100_000] if what == "cut" else body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def test_a_whole_file_is_fetched_once(server: str, tmp_path: Path) -> None:
    for name in ("whole", "near"):
        _download.fetch(f"{server}/{name}", tmp_path / name / "a.tar", SHA256)
        assert (tmp_path / name / "a.tar").read_bytes() == BODY
    before = len(Server.asked)
    _download.fetch(f"{server}/whole", tmp_path / "whole" / "a.tar", SHA256)
    assert len(Server.asked) == before


def test_56_a_download_that_broke_off_goes_on(server: str, tmp_path: Path) -> None:
    path, part = tmp_path / "a.tar", tmp_path / "a.tar.part"
    with pytest.raises(DataError, match=r"cannot download .*0\.1 MB are kept.*--data-dir"):
        _download.fetch(f"{server}/cut", path, SHA256)
    assert part.read_bytes() == BODY[:100_000]
    assert not path.exists()
    _download.fetch(f"{server}/whole", path, SHA256)
    assert Server.asked[-1] == ("whole", "bytes=100000-")
    assert path.read_bytes() == BODY
    assert not part.exists()


def test_56_a_server_without_ranges_starts_again_and_a_whole_part_is_enough(server: str, tmp_path: Path) -> None:
    for name, start in (("ranges", BODY[:5]), ("whole", BODY)):
        (tmp_path / "a.tar.part").write_bytes(start)
        _download.fetch(f"{server}/{name}", tmp_path / "a.tar", SHA256)
        assert (tmp_path / "a.tar").read_bytes() == BODY
        (tmp_path / "a.tar").unlink()


def test_56_a_wrong_checksum_and_a_web_page_are_never_a_file(server: str, tmp_path: Path) -> None:
    wrong = hashlib.sha256(bytes(len(BODY))).hexdigest()
    with pytest.raises(DataError, match=f"sha256 {wrong[:16]}..., expected is {SHA256[:16]}"):
        _download.fetch(f"{server}/wrong", tmp_path / "a.tar", SHA256)
    with pytest.raises(DataError, match="received a web page instead of the file"):
        _download.fetch(f"{server}/page", tmp_path / "a.tar", SHA256)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["elsewhere", "file"])
def test_57_a_redirect_leaves_neither_the_site_nor_the_web(server: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="redirected to another site"):
        _download.fetch(f"{server}/{name}", tmp_path / "a.tar", SHA256)
    assert not list(tmp_path.iterdir())


def test_two_processes_that_need_a_file_download_it_once(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, lines = tmp_path / "x.zip", []
    first = threading.Thread(target=_download.fetch, args=(f"{server}/slow", path, SHA256))
    first.start()
    assert started.wait(10)
    second = threading.Thread(target=_download.fetch, args=(f"{server}/whole", path, SHA256))
    second.start()
    deadline = time.monotonic() + 10
    while "another process downloads" not in "".join(lines) and time.monotonic() < deadline:
        lines.append(capsys.readouterr().err)
        time.sleep(0.01)
    resumed.set()
    first.join()
    second.join()
    assert f"another process downloads {path}: waiting for it" in "".join(lines)
    assert path.read_bytes() == BODY
    assert [what for what, _ in Server.asked] == ["slow"]
    assert [each.name for each in tmp_path.iterdir()] == ["x.zip"]


def test_sites() -> None:
    assert _download._site("www.cs.toronto.edu") == _download._site("cs.toronto.edu") == "toronto.edu"
    assert _download._site("10.0.0.1") != _download._site("20.1.0.1")


# --- zoo data verify, zoo eval --skip-bad ---


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes; all images differ."""
    for number, place in enumerate(f"{s}/{c}" for s in ("train", "test") for c in ("cat", "dog")):
        folder = tmp_path / "pets" / place
        folder.mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(100 * number + i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pets"


def spoil(pets: Path) -> list[str]:
    """Five bad files in two splits."""
    (pets / "train" / "cat" / "3.png").write_bytes(b"")
    (pets / "train" / "dog" / "4.png").write_text("<html></html>")
    (pets / "train" / "dog" / "9.png").unlink()
    (pets / "train" / "dog" / "9.png").symlink_to("gone.png")
    cut = pets / "test" / "cat" / "7.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (pets / "test" / "dog" / "folder.png").mkdir()
    return ["train/cat/3.png", "train/dog/4.png", "train/dog/9.png", "test/cat/7.png", "test/dog/folder.png"]


def test_58_verify_names_every_bad_file_in_one_run(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(["data", "verify", str(pets), "--json"]) == 0
    fine = json.loads(capsys.readouterr().out)
    assert (fine["train"], fine["test"], fine["bad"]) == (20, 20, [])
    bad = spoil(pets)
    assert zoo(["data", "verify", str(pets)]) == 3
    out, err = capsys.readouterr()
    assert all(str(pets / name) in out for name in bad)
    assert "zoo data: 5 of 41 images cannot be read" in err
    assert zoo(["data", "verify", str(pets), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["train"], found["test"], len(found["bad"])) == (17, 19, 5)
    assert found["digest"] != fine["digest"]


def test_verify_counts_the_validation_images(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pets / "val").mkdir()
    for name in ("cat", "dog"):
        (pets / "train" / name / "0.png").rename((pets / "val" / name).with_suffix(".png"))
        (pets / "val" / name).mkdir()
        (pets / "val" / f"{name}.png").rename(pets / "val" / name / "0.png")
    assert zoo(["data", "verify", str(pets), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["train"], found["val"], found["test"]) == (18, 2, 20)
    assert zoo(["data", "verify", str(pets)]) == 0
    assert ["val", "2", "2"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_verify_tells_what_is_no_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(["data", "verify", "cifar11"]) == 2
    assert "did you mean cifar10" in capsys.readouterr().err
    for words in (["data"], ["data", "cifar"], ["data", "list", "cifar"], ["data", "--json"]):
        assert zoo(words) == 0
        assert "cifar100" in capsys.readouterr().out


def test_42_eval_leaves_bad_images_out_only_where_asked(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["epochs=1", "data.val=0.5", "batch_size=5", "precision=fp32", "data.augment=[]", f"data.dir={pets}"]
    folder = training.train(resolve("two_layer_net", "data.name=folder", "data.imbalance=none", *words), out=tmp_path / "run")
    whole = json.loads((folder / "result.json").read_text())
    spoil(pets)
    capsys.readouterr()
    assert zoo(["eval", str(folder)]) == 3
    assert "5 of 41 images cannot be read" in capsys.readouterr().err
    assert zoo(["eval", str(folder), "--skip-bad", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["skipped"], found["n"], whole["n"]) == (5, 19, 20)
    # validation images are split from the training images, so that fewer images give another split
    assert zoo(["eval", str(folder), "--skip-bad", "--split", "val"]) == 3
    shutil.rmtree(pets)
    assert zoo(["eval", str(folder), "--skip-bad"]) == 3
