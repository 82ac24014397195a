"""What a file is that is not of the expected format, by its first bytes."""

from __future__ import annotations

FIRST = 64
"""Bytes that :func:`kind` needs."""
KINDS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow)", "use the PyTorch or ONNX version"),
    (b"\x1f\x8b", "compressed with gzip", "decompress it first: gunzip"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "fetch the file: git lfs pull"),
    (b"\x93NUMPY", "one NumPy array", "name another file"),
    (b"<", "a web page or XML", "the download failed, repeat it"),
)
"""First bytes, description, remedy."""


def kind(first: bytes) -> tuple[str, str] | None:
    """The description and remedy of a file by its first bytes; None if it is not known."""
    if not first:
        return "empty", "copy it again"
    if first[4:8] == b"TFL3":
        return "a TensorFlow Lite model", "use the ONNX version"
    return next(((what, advice) for magic, what, advice in KINDS if first.lstrip().startswith(magic)), None)
