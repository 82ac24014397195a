"""The command that builds an engine from a file with NVIDIA's trtexec; zoo does not run it."""

from __future__ import annotations

import shlex

from zoo.export import Receipt

BATCHES = (1, 8, 64)
"""Smallest, usual and largest batch that the engine is built for."""


def command(receipt: Receipt, size: int) -> str:
    """The command for a file with images of ``size`` x ``size`` pixels, or an empty string if TensorRT cannot read it.

    It quantises symmetrically to signed bytes; zoo's int8 files use unsigned ones. ``full`` resizes by weights in float64,
    which its ONNX parser casts to float32 (onnx-tensorrt, docs/operators.md): not the arithmetic that parity was shown for.

    The options are those of samples/common/sampleOptions.cpp in TensorRT 10.8, 10.13 and 11.1, read and not run.
    ``--stronglyTyped`` keeps the graph's types, so that a float16 file stays in float16 (11 does so in any case and ignores
    it); ``--noTF32`` keeps float32 products from being rounded to 10 bits, which TensorRT allows itself by default.
    """
    if receipt.format != "onnx" or receipt.precision == "int8" or receipt.preprocess == "full":
        return ""
    shapes = [f"--{name}Shapes=image:{batch}x3x{size}x{size}" for name, batch in zip(("min", "opt", "max"), BATCHES)]
    files = [f"--onnx={receipt.path}", f"--saveEngine={receipt.path.with_suffix('.engine')}"]
    return shlex.join(["trtexec", *files, *shapes, "--stronglyTyped", "--noTF32"])
