"""The command that makes an engine of a file with NVIDIA's trtexec; zoo does not run it."""

from __future__ import annotations

import shlex

from zoo.export import Receipt

BATCHES = (1, 8, 64)
"""Smallest, usual and largest batch that the engine is built for."""


def command(receipt: Receipt, size: int) -> str:
    """What to type for a file whose images are ``size`` pixels wide and high, or nothing if TensorRT cannot take it.

    It quantises symmetrically to signed bytes, zoo's int8 files hold unsigned ones; and images of any size as bytes
    (``full``) are resized by arithmetic in float64, which it lacks. Types are those of the graph (``--stronglyTyped``, which
    TensorRT 11 does in any case): a float16 file stays in float16, a float32 one is not rounded to TF32 (``--noTF32``).
    """
    if receipt.format != "onnx" or receipt.precision == "int8" or receipt.preprocess == "full":
        return ""
    shapes = [f"--{name}Shapes=image:{batch}x3x{size}x{size}" for name, batch in zip(("min", "opt", "max"), BATCHES)]
    files = [f"--onnx={receipt.path}", f"--saveEngine={receipt.path.with_suffix('.engine')}"]
    return shlex.join(["trtexec", *files, *shapes, "--stronglyTyped", "--noTF32"])
