"""Find models, losses, data sets and export targets by name: one folder per kind, one file per family.

Each file ends in ``SPECS = {"name": SomeSpec(...)}``. :func:`table` reads these literals from the source text, so listing
costs no import of torch; :func:`find` imports only the requested file.

An installed package adds entries with entry points of the groups ``zoo.models``, ``zoo.losses``, ``zoo.data`` and
``zoo.export``, each naming a module of the same form. It is located and read, not imported, until one of
its entries is used. A module with an error is skipped with one warning.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from zoo.console import print_line
from zoo.errors import UsageError, did_you_mean
from zoo.files import exists
from zoo.recipe_types import converted
from zoo.spec import DataSpec, LossSpec, ModelSpec, Option

READERS = {".csv": "list", ".tsv": "list", ".parquet": "list", ".pq": "list", ".npz": "npz"}
"""The data set that reads a file with this ending."""
_SINGULAR = {"models": "model", "losses": "loss", "data": "data set"}
_REQUIRED = {
    "models": ("input", "params", "macs", "paper", "head", "data"),
    "losses": ("paper",),
    "data": ("classes", "shape", "mean", "std", "counts", "source"),
}
"""Fields that must be literals, as listings and recipes are made from them."""
_SPECS = {"models": ModelSpec, "losses": LossSpec, "data": DataSpec}


@dataclass(frozen=True)
class _Source:
    """A file with entries: of zoo itself, or of the installed package ``plugin``."""

    path: Path
    module: str
    plugin: str = ""

    def fields(self) -> dict[str, str]:
        return {"module": self.module} | ({"plugin": self.plugin} if self.plugin else {})


@cache
def table(kind: str) -> dict[str, dict[str, Any]]:
    """All entries of a kind ("models", "losses", "data"), sorted by name.

    Each entry is a dict of the literal fields of its spec, plus ``module``, the file that defines it, and ``plugin``, the
    package, for those that zoo does not define itself. Fields that are not literals (functions) are omitted.
    """
    found: dict[str, dict[str, Any]] = {}
    for source in _sources(kind):
        try:
            specs = specs_in(ast.parse(source.path.read_text(encoding="utf-8")))
            _check(kind, specs, found, source)
        except (OSError, ValueError, SyntaxError, RecursionError) as error:
            if not source.plugin:
                raise
            _left_out(kind, source.plugin, error)
            continue
        found |= {name: fields | source.fields() for name, fields in specs.items()}
    return dict(sorted(found.items()))


def names(kind: str) -> list[str]:
    """Names of all entries of a kind."""
    return list(table(kind))


def entry(kind: str, name: str) -> dict[str, Any]:
    """The literal fields of one entry, or UsageError with the nearest names; the text after a colon is passed to its ``build``."""
    known = table(kind)
    name = name.partition(":")[0]
    if name not in known:
        what, near = _SINGULAR[kind], [*known]
        if kind == "data":
            what, near = "data set, folder or file", [*known, *(path.name for path in Path().iterdir())]
        raise UsageError(f"no {what} {name!r}{did_you_mean(name, near)}; list them with: zoo {kind}")
    return known[name]


def find(kind: str, name: str) -> Any:
    """The spec of one entry, its file imported; UsageError with the nearest names if there is none."""
    return imported(kind, entry(kind, name)).SPECS[name.partition(":")[0]]


def imported(kind: str, fields: dict[str, Any]) -> Any:
    """The module of an entry; UsageError if the module of a plug-in cannot be imported."""
    if "plugin" not in fields:
        return importlib.import_module(f"zoo.{kind}.{fields['module']}")
    try:
        return importlib.import_module(fields["module"])
    except (Exception, SystemExit) as error:  # a plug-in's module may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"plug-in cannot be imported ({fields['plugin']}, module {fields['module']}, {reason}); update or uninstall it"
        ) from error


def takers(option: str) -> list[str]:
    """Names of the losses that take an option."""
    return [name for name, fields in table("losses").items() if option in fields["options"]]


def data_source(text: str) -> tuple[str, str]:
    """The data set and the folder or file for ``--data TEXT``: a name, a folder of images, a list or arrays.

    Raises:
        UsageError: a URL.

    >>> data_source("pets/labels.csv")
    ('list', 'pets/labels.csv')
    """
    if text.partition(":")[0] in table("data"):
        return text, ""
    if "://" in text:
        raise UsageError(f"cannot fetch data from {text}; download it and name the folder or file")
    if reader := READERS.get(Path(text).suffix.lower()):
        return reader, text
    return ("folder", text) if exists(text) or "/" in text else (text, "")


def placed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the folder or file that ``data.name`` may name moved to ``data.dir``; UsageError for a URL."""
    name, place = data_source(str(settings.get("data.name", "")))
    return {**settings, "data.name": name, "data.dir": place} if place else dict(settings)


def check_place(text: str, folder: str | Path) -> None:
    """UsageError if ``--data TEXT`` is a folder or file already and ``--data-dir`` names another."""
    _, place = data_source(text)
    if place and folder and Path(place).absolute() != Path(folder).absolute():
        raise UsageError(f"data is the folder or file {place}, so data-dir {folder} has no effect; give one of them")


@cache
def targets() -> dict[tuple[str, str], dict[str, Any]]:
    """All export targets by (format, precision): the literal fields of each ``TARGET`` in ``zoo/export``, plus ``module``."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for source in _sources("export"):
        try:
            fields = _target(source.path)
            if not fields:
                continue
            key = fields["format"], fields["precision"]
            if key in found:
                raise ValueError(f"{' '.join(key)} is already defined in {found[key]['module']}")
            found[key] = fields | source.fields()
        except (OSError, ValueError, SyntaxError) as error:
            if not source.plugin:
                raise
            _left_out("export", source.plugin, error)
    return dict(sorted(found.items()))


def _target(path: Path) -> dict[str, Any]:
    """The literal fields of the ``TARGET`` of a file, or nothing."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.targets[0]) == "TARGET":
            return {"precision": "fp32"} | _fields(node.value, {})
    return {}


def find_target(fmt: str, precision: str) -> Any:
    """The module of one export target; UsageError with the available names if it is unknown."""
    known = targets()
    formats = sorted({each for each, _ in known})
    if fmt not in formats:
        raise UsageError(f"no format {fmt!r}{did_you_mean(fmt, formats)}; use one of {', '.join(formats)}")
    precisions = [each for name, each in known if name == fmt]
    if precision not in precisions:
        near = did_you_mean(precision, precisions)
        raise UsageError(f"no precision {precision!r} of {fmt}{near}; use one of {', '.join(precisions)}")
    return imported("export", known[fmt, precision])


def _sources(kind: str) -> Iterator[_Source]:
    """The files of zoo, then those of plug-ins, which cannot replace names of zoo."""
    for path in sorted((Path(__file__).parent / kind).glob("[a-z]*.py")):
        yield _Source(path, path.stem)
    for point in sorted(_entry_points().select(group=f"zoo.{kind}"), key=lambda point: (point.name, point.value)):
        plugin = f"{point.dist.name} {point.dist.version}, {point.name}" if point.dist else point.name
        file = _located(point)
        if file is None:
            _left_out(kind, plugin, f"module {point.module} not found")
        else:
            yield _Source(file, point.module, plugin)


@cache
def _entry_points() -> Any:
    from importlib import metadata

    return metadata.entry_points()


def _located(point: Any) -> Path | None:
    """The file of an entry point's module, found without importing the packages around it."""
    parts = point.module.split(".")
    roots = [Path(str(point.dist.locate_file("")))] if point.dist else []
    try:
        top = importlib.util.find_spec(parts[0])  # for a top-level name: imports nothing
    except (ImportError, ValueError):
        top = None
    if top is not None:  # an editable install keeps its files elsewhere
        roots += [Path(place).parent for place in top.submodule_search_locations or ()]
        roots += [Path(top.origin).parent] if top.origin and top.submodule_search_locations is None else []
    for root in roots:
        base = root.joinpath(*parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def _left_out(kind: str, plugin: str, error: object) -> None:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    print_line(f"warning  plug-in skipped (zoo.{kind}, {plugin}): {reason}; update or uninstall it")


def _check(kind: str, specs: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]], source: _Source) -> None:
    """ValueError for a duplicate name, and for fields that cannot be read without importing the file."""
    if not specs and source.plugin:
        raise ValueError(f'{source.path.name} has no SPECS = {{"name": ...}}')
    for name, fields in specs.items():
        if name in found:
            raise ValueError(f"{name!r} is already defined in {found[name]['module']}")
        if missing := [field for field in _REQUIRED[kind] if field not in fields]:
            raise ValueError(f"{name!r} must give {', '.join(missing)} as literals")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ValueError(f"{name!r} is not a name; use letters, digits, '_', '-' and '.'")
        check_types(kind, name, fields)
        if kind == "losses":
            options = fields.setdefault("options", {})
            if not isinstance(options, dict) or not all(isinstance(each, Option) for each in options.values()):
                raise ValueError(f"{name!r} must give its options as literals, {{'name': Option(...)}}")


@cache
def _types(kind: str) -> dict[str, Any]:
    """The declared type of each field that may be a literal."""
    return {name: hint for name, hint in get_type_hints(_SPECS[kind]).items() if get_origin(hint) in (None, tuple, dict)}


def check_types(kind: str, name: str, fields: Mapping[str, Any]) -> None:
    """ValueError for a literal field of another type than its declaration in :mod:`zoo.spec`."""
    for field, hint in _types(kind).items():
        if field not in fields:
            continue
        try:
            converted(fields[field], hint)
        except ValueError as error:  # msgspec.ValidationError is one
            reason = str(error).replace("`", "").replace("Expected", "expected")
            raise ValueError(f"{name!r} has {field} = {str(fields[field])[:40]!r}: {reason}") from error


def specs_in(tree: ast.Module) -> dict[str, dict[str, Any]]:
    """The literal fields of each entry of the ``SPECS`` of a file."""
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
    """``{name: value}``, or empty for anything that is not a literal."""
    try:
        return {name: _value(node, constants)}
    except (ValueError, TypeError, KeyError, SyntaxError):
        return {"options": None} if name == "options" else {}  # unreadable options must not be taken for no options


def _value(node: ast.expr | None, constants: dict[str, Any]) -> Any:
    """The value of a literal that may contain earlier constants and ``Option(...)``; an exception for anything else."""
    if isinstance(node, ast.Name):
        return constants[node.id]
    if isinstance(node, ast.Dict):
        return {_value(key, constants): _value(value, constants) for key, value in zip(node.keys, node.values)}
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Option":
        named = {word.arg or "": _value(word.value, constants) for word in node.keywords}
        return Option(*(_value(each, constants) for each in node.args), **named)
    return ast.literal_eval(node or "")
