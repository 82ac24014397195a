"""Read weights files: the content, not the name, determines the format, and no code in it is run."""

from __future__ import annotations

import collections
import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from zoo import file_kinds, tensor_files
from zoo.errors import FileError

FOLDER_FILES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
"""The weights in a folder: a run of zoo, or a model of the Hugging Face hub."""
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""First number in a file of torch before version 1.6 (torch.serialization.MAGIC_NUMBER)."""
STATE_DICT = "torch.save(model.state_dict(), 'net.pth')"


class OfZoo(dict[str, Any]):
    """The tensors of a file that zoo wrote."""


def place(path: Path) -> Path:
    """The weights file at ``path``, or in the folder ``path``."""
    if not path.is_dir():
        return path
    return next((path / name for name in FOLDER_FILES if (path / name).is_file()), path / FOLDER_FILES[0])


def read_objects(path: Path) -> Any:
    """Content of the file: tensors by name, perhaps in nested dicts and with other objects.

    Raises:
        FileError: not a weights file, damaged, compressed, or with objects that are neither tensors nor plain values.
    """
    with path.open("rb") as file:
        first = file.read(file_kinds.FIRST)
    if first[8:9] == b"{" and path.stat().st_size >= 16:
        return _safetensors(path)
    if zipfile.is_zipfile(path):
        _check_zip(path)
        return _pickled(path, _torch)
    if first[:1] == b"\x80" or first[:4] in (b"(dp0", b"ccol"):
        return _pickled(path, _torch if _begins_as_torch(path) else _plain)
    raise _refusal(path, first)


def _refusal(path: Path, first: bytes) -> FileError:
    if known := file_kinds.kind(first):
        return FileError(f"not a weights file ({path} is {known[0]}); {known[1]}")
    if first[:1] == b"P":
        return FileError(f"cannot read weights ({path}, a zip file that is cut off); copy it again")
    return FileError(f"not a weights file ({path}, first bytes {first[:8]!r}); write one with {STATE_DICT}")


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            by_zoo = "zoo" in (file.metadata() or {})
        if not by_zoo:
            return load_file(path)
    except Exception as error:  # the parser raises many types, some without a text
        raise FileError(f"cannot read weights ({path}, {type(error).__name__}); the file is damaged, copy it again") from error
    return OfZoo(tensor_files.load_tensors(path)[0])  # checks the digest of each tensor


def _check_zip(path: Path) -> None:
    """FileError unless every record is uncompressed: torch.save does not compress, so a compressed record may be a bomb."""
    try:
        with zipfile.ZipFile(path) as file:
            records = file.infolist()
    except Exception as error:  # one boundary around the parser
        raise FileError(f"cannot read weights ({path}, {type(error).__name__}); the file is damaged, copy it again") from error
    size, expanded = path.stat().st_size, sum(record.file_size for record in records)
    names = [record.filename for record in records]
    if any("/code/" in name for name in names):
        raise FileError(f"weights are a TorchScript program ({path}); write the state dict: {STATE_DICT}")
    if expanded > size or any(record.compress_type for record in records):
        raise FileError(
            f"weights are compressed ({path}, {size:,} bytes expand to {expanded:,}); torch.save does not compress: "
            f"write the file again with {STATE_DICT}"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise FileError(f"not a weights file ({path}, a zip file with {', '.join(names[:2])}); write one with {STATE_DICT}")


def _begins_as_torch(path: Path) -> bool:
    """Whether a pickle begins with torch's magic number (pickle's LONG1 and ten bytes)."""
    with path.open("rb") as file:
        return struct.pack("<QH", TORCH_MAGIC & (1 << 64) - 1, TORCH_MAGIC >> 64) in file.read(32)


def _pickled(path: Path, read: Any) -> Any:
    try:
        found = read(path)
    except Exception as error:  # the parser raises a dozen types for damaged files
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise FileError(
                f"weights file has code ({path}, {code[1][:60]}); in the program that wrote it, save only tensors: {STATE_DICT}"
            ) from error
        raise FileError(
            f"cannot read weights ({path}, {type(error).__name__}); it is damaged or has more than tensors: write {STATE_DICT}"
        ) from error
    return found


def _torch(path: Path) -> Any:
    stand_ins = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings(), path.open("rb") as file:  # type: ignore[arg-type]
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)  # a file object: torch would judge by the file extension


def _plain(path: Path) -> Any:
    return _Unpickler(io.BytesIO(path.read_bytes())).load()


class _Unpickler(pickle.Unpickler):
    """A pickle of plain values and NumPy arrays; anything else is rejected before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in STAND_INS:
            return STAND_INS[full]
        if full == "collections.OrderedDict":
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"GLOBAL {full}")


class Inert:
    """Replaces objects that weights do not need: accepts any state and does nothing."""

    def __new__(cls, *values: Any, **named: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *values: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class Entries:
    """Replaces dict types by a plain dict."""

    def __new__(cls, *values: Any) -> Any:
        return {}


class Dtype:
    """Replaces numpy.dtype: accepts only fixed-size numbers in native byte order."""

    def __new__(cls, name: str = "", *flags: Any) -> Dtype:
        made = object.__new__(cls)
        if not re.fullmatch(r"[<=|]?[fiub][1248]", str(name)):
            raise pickle.UnpicklingError(f"an array of type {str(name)[:20]}")
        made.name = name
        return made

    name: str

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            raise pickle.UnpicklingError("an array in another byte order")


class Array:
    """Replaces numpy.ndarray: holds shape, type and values from the file, checked when it is read."""

    values: np.ndarray

    def __new__(cls, *given: Any) -> Array:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array of objects")
        flat = np.frombuffer(raw, dtype.name)
        self.values = flat.reshape(tuple(shape), order="F" if fortran else "C").copy()


def scalar(dtype: Any, raw: Any = b"") -> float:
    """Replaces numpy's function for one number."""
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(dtype, Dtype) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("a number of another type")
    return float(np.frombuffer(raw, dtype.name)[0])


def encode(text: Any, codec: Any = "latin1") -> bytes:
    """Replaces codecs.encode, with which old pickles store bytes."""
    if not isinstance(text, str) or codec != "latin1":
        raise pickle.UnpicklingError("text in another encoding")
    return text.encode("latin1")


def _stand_ins() -> dict[str, Any]:
    found: dict[str, Any] = {"numpy.dtype": Dtype, "numpy.ndarray": Array, "_codecs.encode": encode}
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found |= {f"{core}.scalar": scalar, f"{core}._reconstruct": Array}
    inert = """argparse.Namespace types.SimpleNamespace pathlib.Path pathlib.PosixPath
        pathlib.PurePosixPath pathlib.WindowsPath pathlib._local.PosixPath pathlib._local.WindowsPath datetime.datetime datetime.timedelta
        omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata omegaconf.base.Metadata
        omegaconf.nodes.AnyNode typing.Any builtins.list builtins.dict builtins.int builtins.float builtins.str"""
    entries = """collections.defaultdict easydict.EasyDict pytorch_lightning.utilities.parsing.AttributeDict
        lightning.fabric.utilities.data.AttributeDict lightning_fabric.utilities.data.AttributeDict"""
    return found | dict.fromkeys(inert.split(), Inert) | dict.fromkeys(entries.split(), Entries)


STAND_INS: Mapping[str, Any] = _stand_ins()
"""Types that a file may name besides tensors, with their replacements: nothing that a file names is ever called."""
