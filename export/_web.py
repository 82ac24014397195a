"""``zoo export --web DIR``: a static page that classifies images in the browser, by onnxruntime-web and the exported file."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from zoo import files
from zoo.console import print_line
from zoo.errors import BusyError, FileError, UsageError
from zoo.export import Receipt, onnx

VERSION = "1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
"""SHA-256 of the npm package's archive."""
WASM = "ort-wasm-simd-threaded.asyncify"
RUNTIME = ("ort.webgpu.min.mjs", f"{WASM}.mjs", f"{WASM}.wasm")
"""Files of the package that the page needs: WebGPU and WebAssembly."""
PAGE = ("index.html", "classify.mjs")


def write(model: Any, folder: Path, *, force: bool = False, **options: Any) -> Receipt:
    """A static folder: page, runtime, class names and file; the page resizes like the predictor.

    onnxruntime-web has no float64, which preprocess "full" needs for pixel positions.

    Args:
        options: those of :func:`zoo.export.onnx`, except ``preprocess`` and ``softmax``.

    Raises:
        As :func:`zoo.export.onnx`; UsageError if the runtime is not in the cache and cannot be fetched by npm.
    """
    check_free(folder, force=force)
    with tempfile.TemporaryDirectory() as name:
        unpacked = _unpacked(_archive(), Path(name))
        with files.as_disk_error(folder):
            (folder / "ort").mkdir(parents=True, exist_ok=True)
        receipt = onnx(model, folder / "model.onnx", preprocess="normalize", softmax=True, force=force, **options)
        for part in RUNTIME:
            files.publish(folder / "ort" / part, partial(shutil.copyfile, unpacked / part))
    files.publish_text(folder / "model.json", json.dumps(_facts(receipt.path), ensure_ascii=False))
    for part in PAGE:
        files.publish(folder / part, partial(shutil.copyfile, Path(__file__).parent / "web" / part))
    print_line(f"web      serve it with: python -m http.server --directory {folder}")
    return receipt


def check_free(folder: Path, *, force: bool) -> None:
    """UsageError if ``folder`` is a file, BusyError if it is not empty and must not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output is a file ({folder.absolute()}); name a folder")
    if any(not path.is_dir() for path in folder.rglob("*")) and not force:  # an export that failed leaves empty folders
        raise BusyError(f"output folder is not empty ({folder}); use --force to replace its files, or another folder")


def _facts(path: Path) -> dict[str, Any]:
    """Metadata for the page: class names, and sizes for resizing and cropping."""
    from zoo.export import _guard, _wire

    found = _wire.metadata(memoryview(_guard.read(path)))
    steps = json.loads(found["preprocessing"])
    return {"classes": json.loads(found["classes"]), "resize": steps["resize"], "size": steps["size"]}


def _archive() -> Path:
    """The npm package's archive from the cache, downloaded by npm on first use."""
    path = files.cache_folder() / "web" / f"onnxruntime-web-{VERSION}.tgz"
    if not path.is_file():
        with files.as_disk_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        print_line(f"web      downloading onnxruntime-web {VERSION} with npm")
        try:
            done = subprocess.run(
                ["npm", "pack", f"onnxruntime-web@{VERSION}", "--silent", "--pack-destination", str(path.parent)],
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            why = (done.stderr.strip().splitlines() or ["npm failed"])[-1][:80]
        except (OSError, subprocess.TimeoutExpired) as error:
            why = type(error).__name__
        if not path.is_file():
            raise UsageError(
                f"cannot download onnxruntime-web {VERSION} ({why}); install npm, or save the package's archive as {path}"
            )
    if (found := files.digest(path)) != SHA256:
        raise FileError(
            f"archive is damaged or another version ({path}, sha256 {found[:12]}, expected {SHA256[:12]}); remove it"
        )
    return path


def _unpacked(archive: Path, folder: Path) -> Path:
    """The needed files of the archive, in ``folder``."""
    with tarfile.open(archive) as tar:
        for part in RUNTIME:
            try:
                source = tar.extractfile(f"package/dist/{part}")
            except KeyError as error:
                raise FileError(f"file missing in the archive ({archive}, {part}); remove the archive") from error
            if source is None:
                raise FileError(f"archive entry is not a file ({archive}, {part}); remove the archive")
            with source, (folder / part).open("wb") as target:
                shutil.copyfileobj(source, target)
    return folder
