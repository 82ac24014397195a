"""A user's model: one in a Python file, given as ``FILE.py:NAME``, or an object in Python, which recipes name ``object:NAME``.

A file is searched without running it, and imported only if it is trusted.

``NAME`` is a key of the file's ``SPECS`` (as in ``zoo/models``), or a class derived from ``nn.Module`` whose constructor takes the
number of classes, or has no parameter and a fixed number; its ``input``, (3, 32, 32) unless the class has the attribute, is the
size of its images.

A file runs only if the user named it, once, on the command line or in a call: its sha256 is then kept in the cache folder.
Any other file, such as the copy in the folder of someone else's run, needs ``--trust`` (``ZOO_TRUST=1``). What runs is the text with
that sha256: bytecode in ``__pycache__``, which may be that of another text, is neither read nor written.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import hashlib
import inspect
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zoo import registry
from zoo.console import print_line
from zoo.errors import DiskError, FileError, UsageError, did_you_mean
from zoo.files import cache_folder, expanded, publish_text

if TYPE_CHECKING:
    from torch import nn

    from zoo.spec import ModelSpec

COPY = "model.py"
"""The copy of the file in a run folder."""
OBJECT = "object:"
"""Begins the name of a model that was passed to :func:`zoo.train` as an object, which no file has."""
TRIED = 10
"""Number of classes in the trial of a model that takes any."""
UNSURE = {"derived": "from an imported class"}
"""Stands for the fields of a class that may be no module."""
_LOADED: dict[str, Any] = {}
_NAMED: set[str] = set()
"""Digests of the files that this process was given."""


def is_file(name: str) -> bool:
    """Whether a model's name is ``FILE.py`` or ``FILE.py:NAME``."""
    return re.search(r"\.py(:\w*)?$", name) is not None


def named(what: str) -> str:
    """``FILE.py`` or ``FILE.py:NAME`` as an absolute path with its name; the file counts as trusted from now on.

    Raises:
        UsageError: no such file, a file that is not Python, or without that name or any model.
    """
    path, _, wanted = what.partition(".py:") if ".py:" in what else (what.removesuffix(".py"), "", "")
    file = expanded(f"{path}.py").absolute()
    models = _models(file)
    # a class with an imported base may be a module: it is taken if it is named, or if the file has nothing else
    names = [name for name, fields in models.items() if fields is not UNSURE] or list(models)
    if wanted in models:
        names = [wanted]
    if not names:
        raise UsageError(f"no model in {file}; write a class derived from nn.Module, or SPECS = {{'name': ModelSpec(...)}}")
    if wanted and wanted not in names:
        raise UsageError(f"no model {wanted!r} in {file}{did_you_mean(wanted, names)}; it has {_listed(names)}")
    if not wanted and len(names) > 1:
        raise UsageError(f"several models in {file} ({_listed(names)}); name one, e.g. {file.name}:{names[-1]}")
    _remember(_digest(file))
    return f"{file}:{wanted or names[0]}"


def _listed(names: list[str]) -> str:
    """Up to six names; the last is among them."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 6} more to {names[-1]}"


def is_own(name: str) -> bool:
    """Whether a model's name is that of a user's file or object."""
    return name.startswith(OBJECT) or is_file(name)


def entry(name: str) -> dict[str, Any]:
    """The literal fields of a model in the file; empty for a class or object, or if a run's file is missing or has changed."""
    if name.startswith(OBJECT):
        return {}
    file, model = _split(name)
    with contextlib.suppress(UsageError):
        fields = _models(file).get(model, {})
        return {} if fields is UNSURE else fields
    return {}


def spec(name: str, stored: Path | None = None) -> ModelSpec:
    """The model's spec, its file imported: that of ``name`` or, for a run, the copy in the folder ``stored``.

    Raises:
        UsageError: code that is not trusted, or does not make such a model. FileError: a missing file without a copy.
    """
    file, model = _split(name)
    copy = stored / COPY if stored else None
    if copy is not None and copy.is_file():
        if not file.is_file() or _digest(file) != _digest(copy):
            what = "has changed" if file.is_file() else "is gone"
            print_line(f"code     {file} {what} since the run began; the copy in the run folder is used ({copy})")
        file = copy
    if not file.is_file():
        raise FileError(f"model file is missing ({file}); restore it, or use a run that has a copy, {COPY}")
    text = file.read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest not in _NAMED | _remembered() and os.environ.get("ZOO_TRUST", "0") != "1":
        raise UsageError(f"untrusted model code is not run ({file}, sha256 {digest[:12]}); read it, then repeat with --trust")
    found = _imported(file, text, digest)
    if model in getattr(found, "SPECS", {}):
        made: ModelSpec = found.SPECS[model]
        _checked(made.input, name)
        return made
    return _of_class(getattr(found, model, None), name)


def keep(name: str, folder: Path) -> None:
    """Copy the model's file into a run folder, unless it exists there."""
    if is_file(name) and (file := _split(name)[0]).is_file() and not (folder / COPY).exists():
        publish_text(folder / COPY, file.read_text(encoding="utf-8"))


def _split(name: str) -> tuple[Path, str]:
    path, _, model = name.rpartition(":")
    return Path(path), model


def _models(file: Path) -> dict[str, dict[str, Any]]:
    """What a file defines, by name: its SPECS, else its classes derived from ``Module``, and those with another imported base."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no model file ({file}); name a Python file, e.g. my_net.py:Net") from error
    except (OSError, ValueError, SyntaxError, RecursionError) as error:
        raise UsageError(f"cannot read the model file ({file}, {str(error)[:80]}); it must be Python text") from error
    if specs := registry.specs_in(tree):
        try:
            for name, fields in specs.items():
                registry.check_types("models", name, fields)
        except ValueError as error:
            raise UsageError(f"cannot use SPECS of the model file ({file}, {error}); correct them") from error
        return specs
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    here = {node.name for node in classes}
    found: dict[str, dict[str, Any]] = {}
    for node in classes:  # a base stands above what is derived from it
        bases = [ast.unparse(base) for base in node.bases]
        if any(base.rpartition(".")[2] == "Module" or found.get(base) == {} for base in bases):
            found[node.name] = {}
        elif any(base not in here and not hasattr(builtins, base) for base in bases):
            found[node.name] = UNSURE
    return found


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_text(encoding="utf-8").encode()).hexdigest()


def _record() -> Path:
    return cache_folder() / "trusted_code.txt"


def _remembered() -> set[str]:
    try:
        return set(_record().read_text(encoding="utf-8").split())
    except (OSError, DiskError):
        return set()


def _remember(digest: str) -> None:
    """Trust a file from now on; only in this process if the record cannot be written, as in a container with a read-only home."""
    _NAMED.add(digest)
    if digest in (known := _remembered()):
        return
    try:
        publish_text(_record(), "\n".join([*sorted(known), digest]) + "\n")
    except DiskError as error:
        print_line(f"code     trusted in this process only ({str(error).partition(';')[0]}); to keep a record, set ZOO_CACHE")


def _imported(file: Path, text: str, digest: str) -> Any:
    """The module made from ``text``, which has this digest; a loader would run bytecode next to the file instead."""
    if digest in _LOADED:
        return _LOADED[digest]
    print_line(f"code     runs {file} (sha256 {digest[:12]})")
    module = ModuleType(f"zoo_model_{digest[:12]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    try:
        exec(compile(text, str(file), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        del sys.modules[module.__name__]
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise UsageError(
            f"model file cannot be imported ({file}, {reason}); it must be importable on its own, with the installed packages"
        ) from error
    _LOADED[digest] = module
    return module


def _checked(size: Any, name: str) -> tuple[int, int, int]:
    """The size of a model's images; UsageError unless it is (3, S, S), as all images are square and in colour."""
    if not (isinstance(size, (tuple, list)) and len(size) == 3 and size[0] == 3 and size[1] == size[2]):
        raise UsageError(f"{name.rpartition('/')[2]} has input = {size!r}; images are square and in colour: give (3, S, S)")
    return (3, size[1], size[2])


def _of_class(made: Any, name: str) -> ModelSpec:
    """The spec of a class or function whose argument is the number of classes, or which has none and a fixed number."""
    advice = "its constructor takes the number of classes, its attribute input is (3, S, S)"
    return _of_callable(made, name.rpartition("/")[2], _checked(getattr(made, "input", (3, 32, 32)), name), advice)


def _of_callable(made: Any, name: str, size: tuple[int, int, int], advice: str) -> ModelSpec:
    if not _takes_argument(made):
        return _fixed(_tried(lambda _: made(), name, size, advice), name)
    found = _tried(made, name, size, advice, classes=TRIED)
    return found if found.classes == TRIED else _fixed(found, name)


def _takes_argument(made: Any) -> bool:
    try:
        return bool(inspect.signature(made).parameters)
    except (TypeError, ValueError):
        return True


def _fixed(found: ModelSpec, name: str) -> ModelSpec:
    """The spec of a model with a fixed number of outputs; its ``build`` raises UsageError for another number of classes."""
    made = found.build

    def build(classes: int) -> nn.Module:
        if classes != found.classes:
            raise UsageError(
                f"{name} returns {found.classes} logits, but the data has {classes} classes; give it {classes} outputs"
            )
        model: nn.Module = made(classes)
        return model

    return replace(found, build=build)


def object_name(model: Any) -> str:
    """``object:Net`` of a module ``Net(...)``, a class ``Net``, or a function ``Net``."""
    return OBJECT + str(getattr(model, "__name__", type(model).__name__))


def object_spec(model: Any, size: int = 0) -> ModelSpec:
    """The spec of a module, or of a class or function as in :func:`_of_class`, on images of ``size`` pixels (0: its ``input``).

    Raises:
        UsageError: it does not return logits (N, classes) for such images. A copy of a module is trained, so that one with another
            number of outputs than the data has classes is an error too, when it is built.
    """
    from torch import nn

    name = object_name(model).removeprefix(OBJECT)
    shape = (3, size, size) if size else _checked(getattr(model, "input", (3, 32, 32)), name)
    if not isinstance(model, nn.Module):
        return _of_callable(model, name, shape, "it takes the number of classes; its attribute input is (3, S, S)")
    copied = _tried(
        lambda _: copy.deepcopy(model).cpu(), name, shape, "its attribute input, or data.size, is the size of its images"
    )
    return _fixed(copied, name)


def _bounded(outputs: Any) -> bool:
    return bool(outputs.numel() and outputs.min() >= 0 and outputs.max() <= 1)


def _tried(made: Any, name: str, size: tuple[int, int, int], advice: str, classes: int = 0) -> ModelSpec:
    """The spec of ``made(classes)``: parameters are counted, the head is its last linear layer, one trial checks the outputs.

    The spec's number of classes is what the trial returns; ``classes`` 0 is no argument.
    """
    import torch
    from torch import nn

    from zoo.spec import ModelSpec

    call = f"{name}({classes})" if classes else name
    try:
        model = made(classes).eval()
        lazy = [path for path, module in model.named_modules() if hasattr(module, "has_uninitialized_params")]
        with torch.inference_mode():
            outputs = loud = model(torch.zeros(2, *size))
            if isinstance(outputs, torch.Tensor) and _bounded(outputs):  # logits are large for images of a large variance
                loud = model(30 * torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))
            shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else ()
    except Exception as error:  # a user's class may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:90]
        raise UsageError(f"{call} fails on images {size} ({reason}); {advice}") from error
    if not isinstance(outputs, torch.Tensor):
        raise UsageError(f"{call} returns {type(outputs).__name__}; expected one tensor: logits (N, classes)")
    if len(shape) != 2 or shape[0] != 2:
        wanted = f"(2, {classes or 'classes'})"
        raise UsageError(f"{call} returns {shape} for 2 images; expected logits (N, classes): {wanted}")
    if lazy:
        raise UsageError(f"{name} has a lazy layer ({lazy[0]}); give its number of inputs, e.g. nn.Linear(64, classes)")
    layers = {path: module for path, module in model.named_modules() if path and not list(module.children())}
    linear = [path for path, module in layers.items() if isinstance(module, nn.Linear)] or [
        path for path, module in layers.items() if list(module.parameters())
    ]
    if outputs.is_floating_point() and outputs.min() >= 0 and (outputs.sum(1) - 1).abs().max() < 1e-3:
        print_line(f"warning  {name} returns probabilities, but the losses take logits; to train it, remove its last softmax")
    elif outputs.is_floating_point() and _bounded(loud):
        print_line(
            f"warning  {name} returns numbers from 0 to 1, as a sigmoid does, but logits are expected; remove its last activation"
        )
    params = sum(parameter.numel() for parameter in model.parameters())
    if not params:
        raise UsageError(f"{name} has no parameters; there is nothing to train or to export")
    head = linear[-1] if linear else ""  # none: all parameters are the model's own
    return ModelSpec(build=made, input=size, params=params, macs=0, paper=name, head=head, data=(), classes=shape[1])
