"""``hf:owner/name``: a repository of the hub as a run and as weights, from a stand-in server and from the cache alone."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import TINY, zoo_command
from PIL import Image

from zoo import __main__, hub, predictor, recipe, run, run_folders, tensor_files
from zoo.errors import FileError, UsageError

library = pytest.importorskip("huggingface_hub")
pytest.importorskip("onnxruntime")
COMMIT, OLDER = "a" * 40, "b" * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """The parts of the hub's API that a download uses; each folder in ``server.folder`` is the repository ``zoo/<its name>``."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        path = unquote(self.path.partition("?")[0])
        if found := re.fullmatch(r"/api/models/zoo/([\w-]+)/(revision|tree)/(\w+)", path):
            self._about(*found.groups())
        elif found := re.fullmatch(r"/zoo/([\w-]+)/resolve/\w+/([\w.]+)", path):
            file = self.server.folder / found[1] / found[2]  # type: ignore[attr-defined]
            self._answer(200, file.read_bytes())
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _about(self, name: str, what: str, revision: str) -> None:
        place = self.server.folder / name  # type: ignore[attr-defined]
        if not place.is_dir():
            return self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if (place / "gated").exists():
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if revision not in ("main", "v1", COMMIT, OLDER):
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            sha = OLDER if revision == "v1" else COMMIT
            return self._json({"id": f"zoo/{name}", "modelId": f"zoo/{name}", "sha": sha, "private": False, "tags": [], "downloads": 0, "likes": 0, "siblings": []})  # fmt: skip
        return self._json([{"type": "file", "path": each.name, "size": each.stat().st_size, "oid": _oid(each)} for each in place.iterdir()])  # fmt: skip

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode())

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        tag = hashlib.sha1(body).hexdigest()
        commit = found[1] if (found := re.search(r"/resolve/(\w+)/", self.path)) else COMMIT
        named = {
            "Content-Length": str(len(body)),
            "ETag": f'"{tag}"',
            "X-Repo-Commit": commit,
            "Content-Type": "application/json",
        }
        for key, value in (named | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def written(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repositories: ``small`` by ``zoo export --hub``, and others that lack something."""
    from zoo.export import _hub

    folder = tmp_path_factory.mktemp("repositories")
    trained = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(small_run, trained)
    loaded, _ = run.calibrate(run.load(trained))
    _hub.write(loaded, folder / "small")
    for name in ("partial", "foreign", "code", "pickled", "gated"):
        shutil.copytree(folder / "small", folder / name)
    (folder / "partial" / "recipe.toml").unlink()
    (folder / "foreign" / "config.json").write_text('{"library_name": "timm"}')
    (folder / "code" / "recipe.toml").write_text('model = "/srv/other/net.py:Net"\n')
    (folder / "pickled" / "model.safetensors").rename(folder / "pickled" / "pytorch_model.bin")
    (folder / "gated" / "gated").write_text("")
    return folder


@pytest.fixture(scope="module")
def server(written: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.folder, found.seen = written, []  # type: ignore[attr-defined]
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def place(server: http.server.ThreadingHTTPServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user whose hub is the stand-in."""
    home = tmp_path_factory.mktemp("home")
    return {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home / "hf"), "ZOO_CACHE": str(home / "zoo"),
        "HF_HUB_DISABLE_TELEMETRY": "1", "ZOO_RUNS": str(home / "runs"), "no_proxy": "127.0.0.1",
    }  # fmt: skip


@pytest.fixture
def patched(place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's hub is the stand-in, its caches are empty and its folder is ``tmp_path``."""
    theirs = partial(library.snapshot_download, endpoint=place["HF_ENDPOINT"], cache_dir=tmp_path / "hf")
    monkeypatch.setattr(library, "snapshot_download", theirs)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)


def test_a_run_of_the_hub(written: Path, place: dict[str, str], tmp_path: Path, server: Any) -> None:
    """It classifies as the run that was uploaded; without a connection what was fetched remains."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "x.png")
    first = zoo_command("predict", "--run", "hf:zoo/small", "x.png", "--json", cwd=tmp_path, **place)
    assert first.returncode == 0, first.stderr
    assert f"zoo/small, revision {COMMIT[:12]}" in first.stderr
    copied = Path(place["ZOO_CACHE"]) / "hub" / f"zoo--small@{COMMIT[:12]}"
    assert {path.name for path in copied.iterdir()} == {"calibration.json", "recipe.toml", "weights.safetensors"}
    assert (copied / "weights.safetensors").read_bytes() == (written / "small" / "model.safetensors").read_bytes()
    assert not any("onnx" in path for path in server.seen), "only what is used is downloaded"
    # the uploaded model.onnx has the temperature in it
    wanted = predictor.predict(written / "small" / "model.onnx", [tmp_path / "x.png"])[0]["top"]
    found = json.loads(first.stdout)[0]["top"]
    assert [name for name, _ in found] == [name for name, _ in wanted]
    assert [share for _, share in found] == pytest.approx([share for _, share in wanted], abs=1e-4)
    closed = place | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    shown = zoo_command("train", "hf:zoo/small", "--dry-run", cwd=tmp_path, **closed)
    assert f'weights = "hf:zoo/small@{COMMIT}"' in shown.stdout, shown.stderr
    refused = zoo_command("eval", "hf:zoo/small@v1", cwd=tmp_path, **closed)
    assert (refused.returncode, refused.stderr.count("\n")) == (4, 1)
    assert "the hub cannot be reached and its cache does not have hf:zoo/small@v1; repeat with a connection" in refused.stderr


def test_eval_and_export(written: Path, patched: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.run(["eval", f"hf:zoo/small@{COMMIT}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    header = tensor_files.load_weights(written / "small" / "model.safetensors")[1]
    card = library.ModelCard.load(written / "small" / "README.md")
    assert set(found["classes"]) == set(header.classes)
    assert found["accuracy"] == pytest.approx(card.data.eval_results[0].metric_value, abs=0.02)
    assert found["temperature"] != 1
    assert __main__.run(["export", "hf:zoo/small"]) == 0
    assert (tmp_path / "model.onnx").is_file(), "in the current folder, not in the cache"
    assert [path.name for path in (tmp_path / "zoo" / "hub").rglob("*.onnx")] == []


def test_train_from_the_hub(patched: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commit is stored with the run, so that it does not change with the repository."""
    assert __main__.run(["train", "hf:zoo/small@v1", *TINY, "--out", "run"]) == 0
    stored = recipe.read(tmp_path / "run" / "recipe.toml")
    assert (stored.model, stored.weights) == ("cnn_small", f"hf:zoo/small@{OLDER}")
    assert re.search(rf"weights  hf:zoo/small@{OLDER}: (\d+) of \1 tensors", capsys.readouterr().err)
    assert recipe.resolve("cnn_small", {"weights": "hf:zoo/partial"}).weights == f"hf:zoo/partial@{COMMIT}", (
        "needs no recipe.toml"
    )


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["eval", "hf:zoo/absent"], 2, "no repository 'zoo/absent' on the hub, or it is private; check its name, or log in: hf auth login"),
        (["train", "hf:zoo/absent"], 2, "no repository 'zoo/absent' on the hub, or it is private"),
        (["eval", "hf:zoo/small@v9"], 2, "no revision 'v9' of zoo/small; name a branch, a tag or a commit"),
        (["eval", "hf:zoo/gated"], 2, "access to zoo/gated is restricted; accept its terms on its page and log in"),
        (["eval", "hf:zoo/partial"], 4, "hf:zoo/partial has no recipe.toml; name a repository that zoo export --hub wrote"),
        (["eval", "hf:zoo/pickled"], 4, "hf:zoo/pickled has no model.safetensors"),
        (["train", "cnn_small", "--weights", "hf:zoo/pickled"], 4, "has no model.safetensors; name a repository with safetensors"),
        (["export", "hf:zoo/foreign"], 4, 'not written by zoo (config.json, library_name "timm"); use its weights only: zoo train MODEL'),
        (["train", "hf:zoo/code"], 2, "the model of hf:zoo/code is code (net.py:Net), which zoo does not fetch"),
        (["predict", "--run", "hf:zoo/code", "x.png"], 2, "the model of hf:zoo/code is code (net.py:Net), which zoo does not fetch"),
        (["eval", "hf:zoo"], 2, "'hf:zoo' does not name a repository; write hf:owner/name or hf:owner/name@revision"),
        (["eval", "hf:zoo/.."], 2, "'hf:zoo/..' does not name a repository"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(
    words: list[str], code: int, message: str, patched: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    assert __main__.run(words) == code
    told = capsys.readouterr().err
    assert message in told.splitlines()[-1], told
    assert "Traceback" not in told
    assert not (tmp_path / "zoo" / "trusted_code.txt").exists(), "a name in a repository trusts no file"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="huggingface_hub is not installed; install it: pip install huggingface_hub"):
        run_folders.find("hf:zoo/small")


def test_an_unknown_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk\nfull")

    monkeypatch.setattr(library, "snapshot_download", fail)
    with pytest.raises(FileError, match=r"cannot download hf:a/b \(OSError: disk full\); repeat later"):
        hub.fetch("hf:a/b")


def test_a_folder_with_the_layout_of_the_hub(written: Path, patched: None, tmp_path: Path) -> None:
    """It is used as the repository is: through a copy in the cache folder."""
    found = run.load(written / "small")
    assert found.path.parent == tmp_path / "zoo" / "hub"
    assert found.temperature != 1
    assert run.load(written / "small").path == found.path
    again = tmp_path / "again" / "small"
    shutil.copytree(written / "small", again)
    (again / "calibration.json").unlink()
    assert run.load(again).temperature == 1, "its calibration is its own"
    with pytest.raises(FileError, match=r"not a run folder \(.*partial, no recipe\.toml"):
        run.load(written / "partial")
    with pytest.raises(FileError, match=r"foreign was not written by zoo \(config\.json, library_name \"timm\"\)"):
        run.load(written / "foreign")


@pytest.mark.parametrize("options", [{}, {"preprocess": "full", "softmax": True}])
def test_the_card_says_what_the_file_takes_and_returns(small_run: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    from zoo.export import _hub

    loaded = run.load(small_run)
    _hub.write(loaded, tmp_path / "folder", **options)
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    takes, returns = (
        ("uint8 (N, any height, any width, 3) RGB", "probabilities")
        if options
        else ("float32 (N, 3, H, W) RGB in 0..1", "logits")
    )
    assert f"`model.onnx` takes {takes}" in card
    assert f", and returns {returns};" in card
    assert ", ".join(loaded.classes) in card
