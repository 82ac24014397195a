"""In a child process: open a model and run it once (``python -m zoo.export._trial``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import FileError
from zoo.export import _child, _session

KINDS = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_,
}  # fmt: skip
FREE = 32
"""Pixels of a free height or width."""


def answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Nothing, if the model runs on one noise image within the limits."""
    path = Path(request["model"])
    session = _session.open_session(path)
    rng = np.random.default_rng(0)
    feed: dict[str, np.ndarray] = {}
    for each in session.get_inputs():
        shape = [
            size if isinstance(size, int) and size > 0 else 1 if axis == 0 else FREE for axis, size in enumerate(each.shape)
        ]
        if each.type not in KINDS:
            raise FileError(f"model takes {each.type} ({path}), which zoo cannot give it")
        feed[each.name] = (rng.random(shape) * 100).astype(KINDS[each.type])
    try:
        session.run(None, feed)
    except Exception as error:  # one boundary around the runtime: it raises many types
        raise FileError(f"model does not run ({path}, {_session.reason(error)}); export it again") from error
    yield from ()


if __name__ == "__main__":
    _child.serve(answers)
