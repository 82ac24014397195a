"""Read the data set of a recipe: the only place that maps names to readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.console import print_line
from zoo.data._folders import stored_side
from zoo.data._parts import UnreadableImages
from zoo.files import expanded
from zoo.spec import DataSet


def stored(name: str, size: int) -> int:
    """Side in pixels at which the images of a data set are stored, for an input of ``size``: that, or larger (then centre-cropped)."""
    return stored_side(size) if registry.entry("data", name).get("margin") else size


def read(
    name: str, folder: str | Path = "", *, size: int, val: float, seed: int, layout: str = "auto", skip_bad: bool = False
) -> DataSet:
    """The data set ``name`` in ``folder`` at ``size`` pixels.

    ``name`` is a registered one, or one with a variant, such as ``torchvision:MNIST``. With ``skip_bad`` images that cannot
    be read are skipped: one line reports their number, and ``skipped`` their errors.

    Raises:
        DataError: see the data set's own ``build``; UnreadableImages unless ``skip_bad``. UsageError: no such name.
    """
    spec = registry.find("data", name)
    known = {"layout": layout, "variant": name.partition(":")[2]}
    options: dict[str, Any] = {key: known[key] for key in spec.options}
    place = expanded(folder) if folder else None
    try:
        data: DataSet = spec.build(place, size=size, val=val, seed=seed, **options)
    except UnreadableImages as error:
        if not skip_bad:
            raise
        print_line(f"warning  {str(error).rpartition(';')[0]}: skipped")
        return replace(error.data, skipped=tuple(error.bad))
    return data
