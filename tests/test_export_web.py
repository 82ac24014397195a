"""The web page gives the same results in a browser as onnxruntime in Python."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import Tiny, images, run_of

from zoo import predictor
from zoo.errors import BusyError, FileError, UsageError
from zoo.export import _web

pytest.importorskip("onnxruntime")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHECK = """<!doctype html><script type="module">
import { load } from "./classify.mjs";
const send = (what) => fetch("/answers", { method: "POST", body: JSON.stringify(what) });
try {
  const model = await load(new URL("./", location), ["wasm"]);
  const found = [];
  for (let number = 0; number < COUNT; number++) {
    const image = new Image();
    image.src = `image${number}.png`;
    await image.decode();
    found.push(await model.classify(image));
  }
  await send({ classes: model.classes, provider: model.provider, found });
} catch (error) { await send({ error: String(error) }); }
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and stores what the page posts."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def do_POST(self) -> None:
        self.server.answers = json.loads(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()
        self.server.done.set()  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.slow
def test_the_browser_answers_as_python_does(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    torch.manual_seed(0)
    folder = tmp_path / "web"
    try:
        _web.write(run_of(Tiny(), tmp_path), folder)
    except UsageError as error:
        pytest.skip(str(error))
    pixels, count = images(32).test.images, 50
    for number in range(count):
        side = 20 + number
        Image.fromarray(pixels[number % len(pixels)]).resize((side, side + 7)).save(folder / f"image{number}.png")
    (folder / "check.html").write_text(CHECK.replace("COUNT", str(count)))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        server.done = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        address = f"http://127.0.0.1:{server.server_port}/check.html"
        with subprocess.Popen([CHROMIUM, *options, "--remote-debugging-port=0", address], stderr=subprocess.DEVNULL) as browser:
            posted = server.done.wait(300)  # type: ignore[attr-defined]
            browser.terminate()
        server.shutdown()
        assert posted, "the page said nothing"
        answers = server.answers  # type: ignore[attr-defined]
    assert "error" not in answers, answers
    assert answers["provider"] == "wasm"
    opened = predictor.load(folder / "model.onnx")
    assert tuple(answers["classes"]) == opened.classes
    wanted = np.array([opened.probabilities(np.asarray(Image.open(folder / f"image{number}.png"))) for number in range(count)])
    found = np.array(answers["found"])
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found.argmax(1), wanted.argmax(1))
    assert np.abs(found - wanted).max() < 1e-3


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    (tmp_path / "begun" / "1").mkdir(parents=True)
    _web.check_free(tmp_path / "begun", force=False)  # an export that failed leaves empty folders
    with pytest.raises(BusyError, match="output folder is not empty"):
        _web.write(None, tmp_path)
    with pytest.raises(UsageError, match="output is a file"):
        _web.write(None, tmp_path / "mine")


def test_without_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UsageError, match=r"cannot download onnxruntime-web .* \(FileNotFoundError\); install npm, or save"
    ) as caught:
        _web.write(None, tmp_path / "web")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "web").exists()
    archive = tmp_path / "cache" / "web" / f"onnxruntime-web-{_web.VERSION}.tgz"
    archive.write_bytes(b"half")
    with pytest.raises(FileError, match="archive is damaged or another version"):
        _web.write(None, tmp_path / "web")
