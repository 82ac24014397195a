"""The text of augmentations, such as ``crop:4`` or ``v2:NAME``, without torch; :mod:`zoo.data._augment` applies them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from zoo.errors import UsageError, did_you_mean

NUMBER = {"crop": 4, "rcrop": 0, "flip": 0, "altflip": 0, "colour": 40, "cutout": 8, "trivial": 0}
"""Ops with the default of their number, 0 for none."""


def check(ops: Sequence[str]) -> None:
    """UsageError for an unknown or malformed op; called before training starts."""
    for text in ops:
        parse(text)


def parse(text: str) -> tuple[str, str]:
    """An op and its number or transform, ``("crop", "4")``; UsageError if it is unknown or malformed."""
    name, colon, argument = text.partition(":")
    if name == "v2" and argument:
        transform_of(argument)
        return name, argument
    if name not in NUMBER or (colon and not (argument.isdecimal() and int(argument) > 0)):
        known = [*NUMBER, "v2:NAME"]
        raise UsageError(
            f"no augmentation {text[:40]!r}{did_you_mean(name, known)}; use {', '.join(known)}, or crop:4; for none: []"
        )
    return name, argument or str(NUMBER[name])


@cache
def transform_of(text: str) -> Callable[[Any], Any]:
    """``RandomRotation(degrees=15)`` as a transform; only names and literal keywords, no code is evaluated."""
    from torchvision.transforms import v2

    try:
        node = ast.parse(text, mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("write NAME or NAME(key=value)")
        kind = getattr(v2, call.func.id, None)
        if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
            raise ValueError("torchvision.transforms.v2 has no such transform")
        return kind(**{str(word.arg): ast.literal_eval(word.value) for word in call.keywords})
    except (SyntaxError, TypeError, ValueError) as error:
        raise UsageError(f"no augmentation 'v2:{text[:40]}' ({str(error)[:80]}); e.g. v2:RandomRotation(degrees=15)") from error
