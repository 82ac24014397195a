"""Download an archive: stored as ``.part`` until its published checksum matches, and resumed after an interruption."""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zoo.console import SILENT_SECONDS, clock, print_line
from zoo.data._image import shown
from zoo.errors import DataError, UsageError, ZooError
from zoo.files import as_disk_error, digest, held

PATIENCE = 20.0
"""Seconds without data after which a download fails."""
BLOCK = 1 << 20


class _SameSite(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the site over https only; other targets could return anything, including a local file."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme not in ("https", before.scheme) or _site(before.hostname) != _site(after.hostname):
            raise _elsewhere(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _elsewhere(url: str, target: str) -> UsageError:
    return UsageError(
        f"redirected to another site ({url} -> {shown(target)[:80]}); download the file yourself and pass it with --data-dir"
    )


def _site(host: str | None) -> str:
    """``www.cs.toronto.edu`` and ``cs.toronto.edu`` are one site, toronto.edu; an address in numbers is its own."""
    name = host or ""
    return name if name.replace(".", "").isdigit() else ".".join(name.split(".")[-2:])


def fetch(url: str, path: Path, sha256: str) -> None:
    """Download ``url`` to ``path`` unless a file with that checksum exists; an interrupted download resumes from ``path.part``.

    Raises:
        DataError: no answer, an incomplete file, a web page instead of the file, or a different checksum. UsageError: a
            redirect to another
            site or out of https. DiskError: no space.
    """
    if path.is_file() and digest(path) == sha256:
        return
    part = path.with_name(path.name + ".part")
    with as_disk_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with as_disk_error(path), _only(path):
        if path.is_file() and digest(path) == sha256:
            return
        try:
            _continue(url, part)
        except (ZooError, FileNotFoundError):
            raise
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            why = shown(str(getattr(error, "reason", "") or error).partition("\n")[0] or type(error).__name__)[:60]
            kept = f", {part.stat().st_size / 1e6:.1f} MB are kept" if part.is_file() else ""
            raise DataError(
                f"cannot download {url} ({why}{kept}); try again, or save it as {path}, or pass the data with --data-dir"
            ) from error
        found = digest(part)
        if found != sha256:
            part.unlink()
            raise DataError(
                f"download has sha256 {found[:16]}..., expected is {sha256[:16]}... ({url}); removed unopened, run it again"
            )
        part.replace(path)


@contextlib.contextmanager
def _only(path: Path) -> Iterator[None]:
    """Wait until no other process downloads ``path``."""
    lock = path.with_name(f".{path.name}.lock")
    with held(lock, on_wait=lambda: print_line(f"data     another process downloads {path}: waiting for it")):
        try:
            yield
        finally:  # as in :func:`zoo.files.alone`
            with contextlib.suppress(OSError):
                lock.unlink()


def _continue(url: str, part: Path) -> None:
    """Append the missing bytes to ``part``; restart if the server does not support ranges."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    opener = urllib.request.build_opener(_SameSite)
    try:
        answer = opener.open(request, timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # complete; the checksum decides
        if 300 <= error.code < 400:  # urllib rejects other schemes
            raise _elsewhere(url, error.headers.get("Location", "")) from error
        raise
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise DataError(
                f"received a web page instead of the file ({url}); check the connection, or save the file as {part.with_suffix('')}"
            )
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else 0
        printed = began = time.monotonic()
        at = have
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                at += len(block)
                if (now := time.monotonic()) - printed > SILENT_SECONDS:
                    printed = now
                    left = (
                        f" of {total / 1e6:.0f} MB · left {clock((total - at) * (now - began) / (at - have))}"
                        if total
                        else " MB"
                    )
                    print_line(f"data     downloaded {at / 1e6:.0f}{left}")
        if at < total:
            raise http.client.IncompleteRead(b"", total - at)
