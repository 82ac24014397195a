"""Check a model file from an unknown source before onnxruntime opens it: files that it reads, and cost of a run.

onnxruntime ignores a wrong checksum of external data and reads through a hard link, and 106 bytes can allocate 2 GiB:
external data is therefore checked here, and a first run happens in a child process with limits.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import stat
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from zoo import file_kinds
from zoo.errors import FileError
from zoo.export import _child, _wire
from zoo.files import exists

LIMIT = 2**31 - 1
"""Size limit of protobuf in bytes."""
IR_VERSION = b"\x08"
"""First byte of an ONNX file: the field of its version."""
TIMEOUT = 60.0
"""Time limit of a first run in seconds."""
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16} | {
    **dict.fromkeys((17, 18, 19, 20, 24), 8), **dict.fromkeys((21, 22, 23), 4), **dict.fromkeys((25, 26), 2),
}  # fmt: skip
"""Size of an element by TensorProto.DataType; strings (8) cannot be external."""


def is_onnx(path: str | Path) -> bool:
    """Whether a target names an ONNX file, by its ending or, without any, by the first field of its content."""
    path = Path(path)
    if path.suffix or not exists(path) or not path.is_file():
        return path.suffix.lower() == ".onnx"
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(1) == IR_VERSION
    return False


def check(path: Path) -> int:
    """Size in bytes of the model with its external data, which must be regular files inside the model's folder.

    Raises:
        FileError: no file, not ONNX, or external data that leaves the folder (``..``, absolute, symbolic or hard link),
            is not a regular file, has a wrong size, or a wrong checksum.
    """
    raw = read(path)
    try:
        found = _wire.tensors(memoryview(raw))
        _wire.metadata(memoryview(raw))  # readable for later readers
    except ValueError as error:
        raise _refusal(path, raw[: file_kinds.FIRST], str(error)) from error
    sums: dict[Path, str] = {}
    files: dict[Path, int] = {}
    for tensor in found:
        if tensor.external:
            try:
                file = _external(path.parent, tensor, sums)
            except ValueError as error:
                where = f"{path}, tensor {_shown(tensor.name)}, {_shown(tensor.external.get('location', ''))}"
                advice = "copy the file that it names there" if str(error) == "symbolic link" else "download the model again"
                raise FileError(f"external data rejected ({where}: {error}); {advice}") from error
            files[file] = file.stat().st_size
    return len(raw) + sum(files.values())


def read(path: Path) -> bytes:
    """The bytes of a model file; FileError if it is missing, not a regular file, empty or larger than ONNX permits."""
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        raise FileError(f"no model file ({path.absolute()}); make one with: zoo export --onnx") from error
    if not stat.S_ISREG(state.st_mode):
        raise FileError(f"no model file ({path.absolute()}, not a regular file); make one with: zoo export --onnx")
    if not state.st_size:
        raise _refusal(path, b"", "")
    if state.st_size > LIMIT:
        raise FileError(f"not an ONNX model ({path}, {state.st_size:,} bytes); a larger one keeps its weights in a second file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read the model ({path}, {error.strerror}); change its permissions") from error


def _refusal(path: Path, first: bytes, why: str) -> FileError:
    """The error of a file that is no ONNX model, by its first bytes if they are known, else by what is wrong."""
    if known := file_kinds.kind(first):
        return FileError(f"not an ONNX model ({path} is {known[0]}); {known[1]}")
    if first[8:9] == b"{" or first[:2] == b"PK" or first[:1] == b"\x80":
        advice = "export the network: zoo export FILE.py:NAME --weights FILE"
        return FileError(f"not an ONNX model ({path} is a checkpoint: weights without a graph); {advice}")
    return FileError(f"not an ONNX model ({path}, {why}); copy or export it again")


@dataclass(frozen=True)
class Trial:
    """Result of a first run: the only accepted batch size (0: any), and seconds per image."""

    batch: int
    seconds: float


def trial(path: Path, *, size: int = 0, max_memory: int = 0, timeout: float = TIMEOUT) -> Trial:
    """:func:`check`, then open the file and run it on noise in a child process.

    Args:
        size: pixels of a height and width that the file leaves open (0: 224).
        max_memory: MB that the child may use (0: 1,024 and four times the file). timeout: seconds that it may take.

    Raises:
        FileError: it does not run within the limits, or its outputs are not finite or not repeatable.
    """
    budget = memory(check(path), max_memory)
    found = [*_child.lines("zoo.export._trial", {"model": str(path), "size": size}, path, max_memory=budget, timeout=timeout)]
    return Trial(found[-1]["batch"], found[-1]["seconds"] / found[-1]["images"])


def check_receipt(path: Path) -> None:
    """FileError if the digests recorded in a file do not match: it is damaged or was changed."""
    raw = memoryview(read(path))
    facts = _wire.metadata(raw)
    if not {"content_sha256", "receipt_sha256"} & facts.keys():
        return
    found = {"content_sha256": _wire.content_sha256(raw), "receipt_sha256": _wire.receipt_sha256(facts)}
    if changed := [key for key, value in found.items() if facts.get(key) != value]:
        raise FileError(
            f"file is damaged or was changed ({path}, {changed[0]} differs); export it again: zoo export --onnx --force"
        )


def memory(size: int, max_memory: int) -> int:
    """Memory limit in bytes of a child for a model of ``size`` bytes; ``max_memory`` in MB (0: chosen by size)."""
    return max_memory * 10**6 if max_memory else 2**30 + 4 * size


def _external(folder: Path, tensor: _wire.Tensor, sums: dict[Path, str]) -> Path:
    location = tensor.external.get("location", "")
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location:
        raise ValueError("no location")
    if location.startswith(("/", "\\")) or PureWindowsPath(location).drive:
        raise ValueError("absolute path")
    if ".." in parts:
        raise ValueError("leaves the model's folder")
    path = folder
    state = folder.stat()
    for part in parts:
        path = path / part
        try:
            state = path.lstat()
        except OSError as error:
            raise ValueError("missing") from error
        if stat.S_ISLNK(state.st_mode):
            raise ValueError("symbolic link")
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("not a regular file")
    if state.st_nlink > 1:
        raise ValueError("hard link to another file")
    _check_bytes(tensor, state.st_size)
    if wanted := tensor.external.get("checksum"):
        if path not in sums:
            with path.open("rb") as file:
                sums[path] = hashlib.file_digest(file, "sha1").hexdigest()  # required by the ONNX specification
        if sums[path] != wanted.lower():
            raise ValueError("checksum differs")
    return path


def _check_bytes(tensor: _wire.Tensor, size: int) -> None:
    offset = _number(tensor.external.get("offset", "0"), "offset")
    length = _number(tensor.external.get("length", str(max(size - offset, 0))), "length")
    if offset + length > size:
        raise ValueError(f"{offset + length:,} bytes expected, the file has {size:,}")
    if tensor.kind not in BITS:
        raise ValueError(f"data type {tensor.kind}")
    needed = math.ceil(math.prod(tensor.dims) * BITS[tensor.kind] / 8)
    if length != needed:
        raise ValueError(f"length {length:,}, expected {needed:,} for its shape")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"{what} {_shown(text)}")
    return int(text)


def _shown(text: str) -> str:
    return (text if text.isprintable() else text.encode("unicode_escape").decode("ascii"))[:60]
