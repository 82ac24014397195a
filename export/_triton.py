"""``zoo export --triton DIR``: a model repository for NVIDIA Triton, with a configuration generated from the exported file.

The fields are those of ModelConfig in Triton's ``model_config.proto``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from zoo import files, model_files
from zoo.console import print_line
from zoo.errors import UsageError
from zoo.export import Receipt, _guard, _session, _web, _wire, onnx

KINDS = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8"}
MOST, DELAY_US = 64, 1000
"""Largest batch of the server, and the longest delay of a query in microseconds."""


def write(model: Any, folder: Path, *, name: str = "", force: bool = False, **options: Any) -> Receipt:
    """``FOLDER/NAME/config.pbtxt``, ``labels.txt`` and ``1/model.onnx``, which Triton serves with dynamic batching.

    Args:
        name: of the model (default: its architecture's). options: those of :func:`zoo.export.onnx`.

    Raises:
        As :func:`zoo.export.onnx`; UsageError for a file with images of any size: a batch needs one size.
    """
    if options.get("preprocess") == "full":
        raise UsageError("preprocess full accepts images of any size, which Triton cannot batch; use normalize or none")
    own = name or _name(model.recipe.model if hasattr(model, "recipe") else type(model).__name__)
    place = folder / own
    _web.check_free(place, force=force)
    with files.as_disk_error(place):
        (place / "1").mkdir(parents=True, exist_ok=True)
    receipt = onnx(model, place / "1" / "model.onnx", force=force, **options)
    classes = json.loads(_wire.metadata(memoryview(_guard.read(receipt.path)))["classes"])
    files.publish_text(place / "labels.txt", "".join(f"{' '.join(str(each).split())}\n" for each in classes))
    files.publish_text(place / "config.pbtxt", config(receipt.path, own))
    print_line(f"triton   serve it with: tritonserver --model-repository={folder.absolute()}")
    return receipt


def _name(model: str) -> str:
    """A model's name in characters that folders and addresses permit; of a model in a Python file its name in that file."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", model.rpartition(":")[2] if model_files.is_file(model) else model)


def config(path: Path, name: str) -> str:
    """The ModelConfig of an ONNX file as protobuf text."""
    session = _session.open_session(path)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()

    def tensor(each: Any, labels: str = "") -> str:
        dims = ", ".join(str(axis) for axis in each.shape[1:])
        return f"  {{\n    name: {json.dumps(each.name)}\n    data_type: {KINDS[each.type]}\n    dims: [ {dims} ]\n{labels}  }}"

    labels = '    label_filename: "labels.txt"\n'
    return (
        f'name: {json.dumps(name)}\nplatform: "onnxruntime_onnx"\nmax_batch_size: {MOST}\n'
        f"input [\n{tensor(taken)}\n]\noutput [\n{tensor(given, labels)}\n]\n"
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {DELAY_US}\n}}\n"
    )
