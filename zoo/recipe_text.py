"""The text of a recipe file: TOML, YAML or JSON to flat dotted keys and values, with the line of each key for messages.

YAML is read as data: no tags, anchors, aliases or second document, and a key twice is an error. ``1e-3`` is a number, and
``yes``, ``no``, ``on`` and ``off`` are text, as in YAML 1.2 (PyYAML resolves the scalars of YAML 1.1). The layout of a
training course, ``Train:``, ``network:``, ``data:``, ``loss:``, is translated (:data:`COURSE`).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import UsageError

SUFFIXES = (".toml", ".yaml", ".yml", ".json")
MAX_BYTES = 1 << 20
MAX_DEPTH = 20
"""Levels of nesting in YAML; a recipe has three."""
_EXAMPLE = "for one that works see: zoo recipes demo --show"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Written:
    """Content of a recipe file: ``values`` by dotted key."""

    path: Path
    text: str
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    """Line of each key if the reader reports it; otherwise it is searched in the text."""

    def place(self, key: str) -> str:
        """`` (path, line 3)``, or an empty string for a key that is not in the file."""
        line = self.lines.get(key) or (_toml_line(self.text, key) if self.path.suffix == ".toml" else 0)
        return f" ({self.path}, line {line})" if line else ""


class _Refused(Exception):
    """The error in the text, with its position."""


def read(path: Path) -> Written:
    """The text and the values of a recipe file.

    Raises:
        UsageError: no such file, not a regular file, more than :data:`MAX_BYTES`, or text that is not TOML, YAML or JSON.
    """
    kind = {".toml": "TOML", ".json": "JSON"}.get(path.suffix, "YAML")
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"recipe is not a file ({path}); name a TOML file, or one of: zoo recipes")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"recipe is too large ({path}, {path.stat().st_size:,} bytes); a recipe is a few lines of text")
        text = path.read_text(encoding="utf-8-sig")  # Windows editors begin a file with a byte order mark
        if kind == "TOML":
            return Written(path, text, flatten(tomllib.loads(text)))
        tree, lines = _json(text) if kind == "JSON" else _yaml(text)
        if not isinstance(tree, dict):
            raise _Refused("no keys at the top")
    except FileNotFoundError as error:
        raise UsageError(f"no recipe file ({path.absolute()}); list the included recipes: zoo recipes") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read recipe ({path}, {error}); it must be a {kind} text file") from error
    except RecursionError as error:
        raise UsageError(f"recipe is nested too deeply ({path}); a recipe has three levels") from error
    except tomllib.TOMLDecodeError as error:
        place = _twice(text, str(error)).replace("at end of document", f"at line {len(text.splitlines())}")
        raise UsageError(f"not a TOML recipe ({path}, {place}); {_EXAMPLE}") from error
    except (_Refused, ValueError) as error:
        raise UsageError(f"not a {kind} recipe ({path}, {str(error)[:90]}); {_EXAMPLE}") from error
    if any(isinstance(tree.get(key), dict) for key in ("Train", "network")):
        return _course(path, text, flatten(tree), lines)
    return Written(path, text, flatten(tree), lines)


def value(text: str) -> Any:
    """``0.1``, ``[3, 5]``, ``true`` or ``"text"`` as TOML writes them; anything else is text.

    Raises:
        UsageError: brackets nested too deeply, or a number with thousands of digits.
    """
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    except (RecursionError, ValueError) as error:
        raise UsageError(
            f"cannot read the value {text[:20]!r}... ({len(text):,} characters); give a number, text or a list"
        ) from error


def listed(text: str) -> list[str]:
    """The parts between commas outside of brackets."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def plain(value: Any) -> Any:
    """A path, a device, or a number, array or tensor of NumPy or PyTorch, as the type that a recipe has for it."""
    if isinstance(value, Path) or type(value).__name__ == "device":
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted key."""
    flat: dict[str, Any] = {}
    for key, entry in tree.items():
        if isinstance(entry, dict):
            flat |= flatten(entry, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = entry
    return flat


def _json(text: str) -> tuple[Any, dict[str, int]]:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in found]
        for key in keys:
            if keys.count(key) > 1:
                at = [number for number, line in enumerate(text.splitlines(), 1) if json.dumps(key) in line]
                raise _Refused(f"{key} is given twice, lines {' and '.join(map(str, at))}")
        return dict(found)

    tree = json.loads(text, object_pairs_hook=pairs)
    leaves = flatten(tree) if isinstance(tree, dict) else {}
    lines: dict[str, int] = {}
    for key in leaves:
        at = [n for n, line in enumerate(text.splitlines(), 1) if json.dumps(key.rpartition(".")[2]) in line]
        lines |= {key: at[0]} if len(at) == 1 else {}
    return tree, lines


def _yaml(text: str) -> tuple[Any, dict[str, int]]:
    """The tree of a YAML text and the line of each of its dotted keys."""
    import yaml

    lines: dict[str, int] = {}
    try:
        events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                tree = _node(next(events), events, "", lines, 0)
                if not isinstance(next(events, None), yaml.DocumentEndEvent) or isinstance(
                    next(events), yaml.DocumentStartEvent
                ):
                    raise _Refused("a second document")
                return tree, lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable"
        raise _Refused(f"{what}, line {mark.line + 1}" if mark else str(what)) from error
    return {}, lines


def _node(event: Any, events: Iterator[Any], key: str, lines: dict[str, int], depth: int) -> Any:
    """The value that begins with an event of PyYAML's parser; constructs that a recipe does not need are errors."""
    import yaml

    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent) or event.anchor:
        raise _Refused(f"an anchor or alias, line {line}")
    if event.tag is not None:
        raise _Refused(f"a tag {event.tag[:40]}, line {line}")
    if depth > MAX_DEPTH:
        raise _Refused(f"more than {MAX_DEPTH} levels, line {line}")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value, line) if event.style is None else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        found = []
        while not isinstance(each := next(events), yaml.SequenceEndEvent):
            found.append(_node(each, events, key, lines, depth + 1))
        return found
    tree: dict[str, Any] = {}
    while not isinstance(name := next(events), yaml.MappingEndEvent):
        if not isinstance(name, yaml.ScalarEvent):
            raise _Refused(f"a key that is not text, line {line}")
        line, full = name.start_mark.line + 1, f"{key}.{name.value}".lstrip(".")
        if name.value in tree:
            raise _Refused(f"{full} is given twice, lines {lines[full]} and {line}")
        lines[full] = line
        tree[name.value] = _node(next(events), events, full, lines, depth + 1)
    return tree


def _scalar(text: str, line: int) -> Any:
    """A plain scalar: true or false, an integer, a float (``1e-3``, ``.inf``), else text."""
    if text in ("", "~", "null", "Null", "NULL"):
        raise _Refused(f"no value, line {line}")
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in (".nan", ".inf", "+.inf", "-.inf"):
        return float(text.replace(".", "", 1))
    if not _NUMBER.fullmatch(text):
        return text
    return float(text) if re.search(r"[.eE]", text) else int(text)


COURSE = {
    "Train.batch_size": "batch_size",
    "Train.learning_rate": "optim.lr",
    "Train.lr": "optim.lr",
    "Train.reg": "optim.weight_decay",
    "Train.momentum": "optim.momentum",
    "Train.epochs": "epochs",
    "Train.steps": "schedule.steps",
    "Train.warmup": "schedule.warmup",
    "Train.seed": "seed",
    "network.model": "model",
    "data.imbalance": "data.imbalance",
    "loss.loss_type": "loss.name",
    "loss.beta": "loss.beta",
    "loss.gamma": "loss.focal_gamma",
}
"""Keys of the course's layout and the settings they map to; ``data.save_best`` is zoo's default behaviour."""
_COURSE_VALUES = {
    "model": {
        "ResNet-32": "resnet32", "MyModel": "s1_cnn", "my_model": "s1_cnn", "VanillaCNN": "vanilla_cnn", "TwoLayerNet": "two_layer_net",
    },
    "data.imbalance": {"regular": "none", "imbalance": "exp:0.01"},
    "loss.name": {"CE": "cross_entropy", "Focal": "focal"},
}  # fmt: skip


def _course(path: Path, text: str, written: dict[str, Any], lines: dict[str, int]) -> Written:
    """The course's layout as a recipe: SGD without Nesterov, the rate times 0.1 at each of ``steps``, crops and flips."""
    values: dict[str, Any] = {
        "data.name": "cifar10", "data.val": 0.0, "data.augment": ["crop", "flip"], "optim.name": "sgd", "optim.nesterov": False,
        "schedule.name": "multistep", "schedule.lr_gamma": 0.1,
    }  # fmt: skip
    places = {}
    for key, entry in written.items():
        name = COURSE.get(key, key)
        values[name] = _COURSE_VALUES.get(name, {}).get(entry, entry) if isinstance(entry, str) else entry
        places[name] = lines.get(key, 0)
    focal, reweight = values.get("loss.name") == "focal", values.pop("loss.reweight", True)
    values.pop("data.save_best", None)
    if focal and reweight and "loss.beta" in values:
        values["loss.class_weights"] = "effective"
    for key in () if focal else ("loss.focal_gamma", "loss.beta"):  # the course sets them with CE too, without effect
        values.pop(key, None)
    return Written(path, text, values, places)


def _twice(text: str, message: str) -> str:
    """TOML's message for a key or a table that is given twice, with both lines."""
    found = re.match(r"Cannot (?:overwrite a value|declare \('.*'\,?\) twice) \(at line (\d+)", message)
    if not found:
        return message
    written = [line.partition("=")[0].strip() for line in text.splitlines()]
    second = int(found[1])
    key = written[second - 1]
    first = next((n for n in range(second - 1, 0, -1) if written[n - 1] == key), second)
    return f"{key} is given twice, lines {first} and {second}"


def _toml_line(text: str, key: str) -> int:
    """The line of a dotted key in a TOML text, 0 if it is missing."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            table = header[1].strip() + "."
            if key.startswith(table) and table.count(".") > 1:
                return number
        elif (found := re.match(r"\s*[\"']?([\w.\-]+)[\"']?\s*=", line)) and table + found[1] == key:
            return number
    return 0
