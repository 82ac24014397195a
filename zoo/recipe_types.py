"""Conversion of settings between msgspec's annotated types, which check them, and :class:`zoo.spec.Option`, which describes them."""

from __future__ import annotations

import threading
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from zoo.errors import UsageError
from zoo.spec import Option

MOST = 1_000_000
"""Upper bound of counts, to catch typing errors."""
HUGE = 1e6
"""Upper bound of factors."""
BOUNDS = ("gt", "ge", "lt", "le")
T = TypeVar("T")
_LOCK = threading.Lock()


def converted(value: Any, kind: type[T]) -> T:
    """``msgspec.convert``, by one thread at a time: the first two conversions to a struct, if concurrent, crash the process.

    Raises:
        msgspec.ValidationError: a value of another type or out of range.
    """
    with _LOCK:
        return msgspec.convert(value, kind)


def about(text: str, **bounds: Any) -> msgspec.Meta:
    """Description of a setting in ``zoo recipes --keys`` and ``zoo train --help``, and the bounds of its value."""
    return msgspec.Meta(description=text, **bounds)


def option_type(option: Option) -> Any:
    """The type that msgspec checks a declared option with."""
    if option.choices:
        return Literal[option.choices]
    base, _, item = option.type.partition("[")
    kind: Any = {"float": float, "int": int, "bool": bool, "str": str}[item.strip("]") or base]
    bounds = {name: end for name in BOUNDS if (end := getattr(option, name)) is not None}
    kind = Annotated[kind, msgspec.Meta(**bounds)] if bounds else kind
    return list[kind] if item else kind


def declared(struct: type[msgspec.Struct], others: Mapping[str, Mapping[str, Option]], table: str = "") -> dict[str, Option]:
    """The settings of a struct and its tables by dotted key; ``others`` replaces a field, e.g. ``loss.options``, by its content."""
    found: dict[str, Option] = {}
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        kind, key = hints[field.name], table + field.name
        if key in others:
            found |= {table + name: option for name, option in others[key].items()}
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            found |= declared(kind, others, f"{key}.")
        else:
            default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            found[key] = _option(kind, default)
    return found


def _option(kind: Any, default: Any) -> Option:
    base, *metas = typing.get_args(kind)
    choices, item = (), None
    if typing.get_origin(base) is Literal:
        values: Any = typing.get_args(base)
        choices, base = values, type(values[0])
    elif typing.get_origin(base) is list:
        (item,) = typing.get_args(base)
        if typing.get_origin(item) is Annotated:
            item, *inner = typing.get_args(item)
            metas += inner
    text = next(meta.description for meta in metas if meta.description)
    bounds = {name: end for name in BOUNDS for meta in metas if (end := getattr(meta, name)) is not None}
    name = f"list[{item.__name__}]" if item else base.__name__
    return Option(name, default, text, **bounds, choices=choices)


def not_allowed(key: str, value: Any, place: str, error: Exception, option: Option | None) -> UsageError:
    """The error of msgspec for a value, with the whole range if it names only the violated bound."""
    expected = str(error).partition(" - at ")[0].replace("`", "").replace("Expected", "expected")
    if option and option.choices and "Invalid enum" in expected:
        expected = f"expected {option.range}"
    elif option and option.range and any(sign in expected for sign in "<>"):
        expected = f"expected {option.type.replace('list[', '').rstrip(']')} {option.range}"
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    return UsageError(f"{key} = {shown}{place} is not allowed: {expected}")
