"""Find models, losses, data sets and export targets by name: one folder a kind, one file a family.

Each file ends in ``SPECS = {"name": SomeSpec(...)}``. :func:`table` reads these literals from the source text, so listing
costs no import of torch; :func:`find` imports the one file that is asked for.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import Any

from zoo.errors import UsageError, did_you_mean

_READERS = {".csv": "list", ".tsv": "list", ".parquet": "list", ".pq": "list", ".npz": "npz"}
"""The data set that reads a file with this ending."""
_SINGULAR = {"models": "model", "losses": "loss", "data": "data set"}


@cache
def table(kind: str) -> dict[str, dict[str, Any]]:
    """All entries of a kind ("models", "losses", "data"), sorted by name.

    Each entry is a dict of the literal fields of its spec, plus ``module``, the file it stands in. Fields that are not
    literals (functions) are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((Path(__file__).parent / kind).glob("[a-z]*.py")):
        for name, fields in _specs(ast.parse(path.read_text(encoding="utf-8"))).items():
            if name in found:
                raise ValueError(f"{kind}: {name!r} stands in both {found[name]['module']} and {path.stem}")
            found[name] = fields | {"module": path.stem}
    return dict(sorted(found.items()))


def names(kind: str) -> list[str]:
    """Names of all entries of a kind."""
    return list(table(kind))


def entry(kind: str, name: str) -> dict[str, Any]:
    """The literal fields of one entry, or UsageError with the nearest names; what follows a colon is for its ``build``."""
    known = table(kind)
    name = name.partition(":")[0]
    if name not in known:
        what = _SINGULAR[kind]
        listing = "data" if kind == "data" else kind
        raise UsageError(f"no {what} {name!r}{did_you_mean(name, known)}; list them with: zoo {listing}")
    return known[name]


def find(kind: str, name: str) -> Any:
    """The spec of one entry, its file imported; UsageError with the nearest names if there is none."""
    module = importlib.import_module(f"zoo.{kind}.{entry(kind, name)['module']}")
    return module.SPECS[name.partition(":")[0]]


def data_source(text: str) -> tuple[str, str]:
    """The data set and the folder or file that ``--data TEXT`` stands for: a name, a folder of images, a list or arrays.

    >>> data_source("pets/labels.csv")
    ('list', 'pets/labels.csv')
    """
    if text.partition(":")[0] in table("data"):
        return text, ""
    if reader := _READERS.get(Path(text).suffix.lower()):
        return reader, text
    return ("folder", text) if Path(text).is_dir() or "/" in text else (text, "")


@cache
def formats() -> dict[str, dict[str, Any]]:
    """Export formats beside ONNX: the literal fields of each ``TARGET`` in ``zoo/export`` that names one, plus ``module``."""
    found = {}
    for path in sorted((Path(__file__).parent / "export").glob("[a-z]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.targets[0]) == "TARGET":
                fields = _fields(node.value, {})
                if "format" in fields:
                    found[fields["format"]] = fields | {"module": path.stem}
    return dict(sorted(found.items()))


def _specs(tree: ast.Module) -> dict[str, dict[str, Any]]:
    constants: dict[str, Any] = {}
    specs: dict[str, dict[str, Any]] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        value = getattr(node, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            continue
        if target.id == "SPECS" and isinstance(value, ast.Dict):
            for key, call in zip(value.keys, value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str) and isinstance(call, ast.Call):
                    specs[key.value] = _fields(call, constants)
        else:
            constants.update(_literal(target.id, value, constants))
    return specs


def _fields(call: ast.Call, constants: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg:
            fields.update(_literal(keyword.arg, keyword.value, constants))
    return fields


def _literal(name: str, node: ast.expr, constants: dict[str, Any]) -> dict[str, Any]:
    if isinstance(node, ast.Name):
        return {name: constants[node.id]} if node.id in constants else {}
    try:
        return {name: ast.literal_eval(node)}
    except ValueError:
        return {}
