"""Freezing: selection by role, the plan of unfreezing, the table, the digests that verify it."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType

import torch
from torch import nn

from zoo.errors import DisagreeError, UsageError, did_you_mean
from zoo.spec import ModelSpec

ROLES = ("conv", "fc", "fc:all", "backbone", "bn")
"""Values of ``freeze=`` besides ``stage<=N``, ``none`` and globs; see :func:`freeze`."""


@dataclass(frozen=True)
class FreezeTable:
    """Result of :func:`freeze`."""

    selector: str
    names: tuple[str, ...]
    """Frozen parameters and buffers, by name."""
    rows: tuple[tuple[str, int, int, int, int], ...]
    """For each part of the model: frozen parameters, trained parameters, BatchNorms in eval mode, BatchNorms that update."""

    @property
    def frozen(self) -> int:
        """Number of frozen parameters (not tensors)."""
        return sum(row[1] for row in self.rows)

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(row[2] for row in self.rows)

    @property
    def held(self) -> int:
        """Number of BatchNorm layers in eval mode."""
        return sum(row[3] for row in self.rows)


def freeze(model: nn.Module, selector: str, spec: ModelSpec, *, fresh: Collection[str] = ()) -> FreezeTable:
    """Freeze parameters and buffers by role; call it before :func:`zoo.training.optim.make`, which skips frozen parameters.

    Selectors: ``conv`` freezes all but the classifier layers, ``fc`` the classifier layers except the new head, ``fc:all``
    every classifier layer, ``backbone`` all but the new head, ``bn`` every BatchNorm, ``stage<=N`` the stages 0
    to N, ``none``, or a glob over names (``layer[1-3].*``); ``+`` joins selectors (``stage<=2+bn``). A BatchNorm whose statistics are frozen stays in eval mode
    through every later ``model.train()``: requires_grad=False alone would not stop their updates. ``fresh`` names randomly
    initialised tensors, which may not be frozen.

    Raises:
        UsageError: unknown selector, nothing frozen, nothing left to train, or random weights frozen.
    """
    names = _selected(model, selector, spec)
    frozen = set(names)
    if not any(parameter.requires_grad and name not in frozen for name, parameter in model.named_parameters()):
        raise UsageError(f"freeze={selector} leaves nothing to train; {_roles_line(model, spec)}")
    if random := [name for name in names if name in set(fresh)]:
        raise UsageError(
            f"freeze={selector} would keep {len(random)} random tensors ({random[0]}, ...); start from weights=default or a file that has them"
        )
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
    for name, module in _norms(model):
        if frozen & {f"{name}.{buffer}" for buffer, _ in module.named_buffers()}:
            module.eval()
            # a bound method, so that copy.deepcopy binds the copy's to the copy
            module.train = MethodType(_stay, module)  # type: ignore[method-assign]
    return FreezeTable(selector, tuple(names), tuple(_rows(model)))


def unfreeze(model: nn.Module, table: FreezeTable, selector: str, spec: ModelSpec) -> FreezeTable:
    """Release tensors frozen by :func:`freeze` (``table``) that ``selector`` does not freeze; their BatchNorms update again."""
    names = _selected(model, selector, spec)
    released = set(table.names) - set(names)
    for name, parameter in model.named_parameters():
        if name in released:
            parameter.requires_grad_(True)
    for name, module in _norms(model):
        if released & {f"{name}.{buffer}" for buffer, _ in module.named_buffers()}:
            del module.train
    return FreezeTable(selector, tuple(names), tuple(_rows(model)))


def plan(model: nn.Module, spec: ModelSpec, selector: str, unfreeze: Sequence[str], epochs: int) -> list[tuple[int, str]]:
    """Frozen layers by epoch: ``selector`` from epoch 0, then each of ``unfreeze``, written ``EPOCH:SELECTOR``.

    ``["2:stage<=3", "4:none"]`` is gradual unfreezing (Howard and Ruder 2018, section 3.3), ``["1:none"]`` is fastai's
    fine_tune. An epoch is the number of completed epochs.

    Raises:
        UsageError: malformed, not in order, past the end, or not a subset of the layers that were frozen before.
    """
    found, before = [(0, selector)], set(_selected(model, selector, spec))
    for text in unfreeze:
        number, colon, kept = text.partition(":")
        if not (colon and number.isdecimal() and kept):
            raise UsageError(f"unfreeze = {text[:40]!r} is not EPOCH:SELECTOR; write e.g. unfreeze=['2:stage<=2','4:none']")
        if not found[-1][0] < int(number) < epochs:
            raise UsageError(f"unfreeze {text}: epochs must increase and be within 1 to {epochs - 1} (epochs = {epochs})")
        names = set(_selected(model, kept, spec))
        if not names < before:
            raise UsageError(f"unfreeze {text} must freeze fewer layers than {found[-1][1]}; {_roles_line(model, spec)}")
        found.append((int(number), kept))
        before = names
    return found


def roles(model: nn.Module, spec: ModelSpec) -> list[str]:
    """Selectors that freeze some, but not all, parameters of this model."""
    parameters = {name for name, _ in model.named_parameters()}
    wanted = [*ROLES, *(f"stage<={number}" for number in range(len(spec.stages)))]
    found = {role: set(_role(model, role, spec)) for role in wanted}
    return [role for role, names in found.items() if names and parameters - names]


def lines(table: FreezeTable, plan: Sequence[tuple[int, str]] = ()) -> list[str]:
    """Frozen layers part by part, one line each; empty if nothing is or was frozen."""
    first = next((epoch for epoch, selector in plan if selector == table.selector), 0)
    if not table.names and not first:
        return []
    since = f" from epoch {first + 1} on" if first else ""
    found = [
        f"freeze   {table.selector}{since}: {table.frozen:,} parameters frozen, {table.trained:,} trained, "
        f"{table.held} BatchNorms fixed"
    ]
    for name, frozen, trained, held, moving in table.rows:
        norms = f" · BatchNorms {held} fixed, {moving} updating" if held or moving else ""
        found.append(f"freeze     {name:16} {frozen:>12,} frozen {trained:>12,} trained{norms}")
    return found


def in_force(plan: Sequence[tuple[int, str]], epochs: int) -> str:
    """The selector of a :func:`plan` that applies once ``epochs`` epochs are done."""
    return [selector for first, selector in plan if first <= epochs][-1]


def check_unchanged(model: nn.Module, digests: Mapping[str, str]) -> None:
    """DisagreeError naming the first tensor that differs from its digest before training (:func:`frozen_digest`)."""
    after = frozen_digest(model, digests)
    if changed := [name for name, digest in digests.items() if after[name] != digest]:
        raise DisagreeError(
            f"frozen tensors changed in training ({len(changed)}, {changed[0]} first); report this as a bug in zoo"
        )


def frozen_digest(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """sha256 of the values of each named parameter or buffer."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    raw = {name: tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8) for name in names}
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in raw.items()}


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _selected(model: nn.Module, selector: str, spec: ModelSpec) -> list[str]:
    if selector == "none":
        return []
    if "+" in selector:
        chosen = {name for part in selector.split("+") for name in _selected(model, part, spec)}
        return [name for name in _names(model) if name in chosen]
    is_role = selector in ROLES or re.fullmatch(r"stage<=\d+", selector)
    # a role is never read as a name: the head of ResNet-50 is called fc, but freeze=fc must not freeze it
    if found := _role(model, selector, spec) if is_role else _glob(model, selector):
        return found
    what = (
        f"freeze={selector} freezes nothing in this model"
        if is_role
        else f"no role or layer {selector!r}{did_you_mean(selector, ROLES)}"
    )
    raise UsageError(f"{what}; {_roles_line(model, spec)}")


def _role(model: nn.Module, role: str, spec: ModelSpec) -> list[str]:
    """Names that a role selects."""
    names, head, new = list(_names(model)), tuple(spec.head.split()), new_head(spec)
    if stage := re.fullmatch(r"stage<=(\d+)", role):
        if int(stage[1]) >= len(spec.stages):
            return []
        modules = tuple(prefix for part in spec.stages[: int(stage[1]) + 1] for prefix in part)
        return [name for name in names if inside(name, modules)]
    if role == "bn":
        norms = tuple(name for name, _ in _norms(model))
        return [name for name in names if inside(name, norms)]
    choose = {
        "conv": lambda name: not inside(name, head),
        "fc": lambda name: inside(name, head) and not inside(name, new),
        "fc:all": lambda name: inside(name, head),
        "backbone": lambda name: not inside(name, new),
    }
    return [name for name in names if choose[role](name)]


def _glob(model: nn.Module, pattern: str) -> list[str]:
    """Names that match, or that are inside a matching module."""
    found = []
    for name in _names(model):
        parts = name.split(".")
        if any(fnmatch.fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1)):
            found.append(name)
    return found


def _roles_line(model: nn.Module, spec: ModelSpec) -> str:
    known = [role for role in roles(model, spec) if not role.startswith("stage")]
    stages = [f"stage<=0 to {len(spec.stages) - 1}"] if spec.stages else []
    return f"roles of this model: {', '.join([*known, *stages, 'none'])}, or a glob over layers"


def _names(model: nn.Module) -> Iterator[str]:
    yield from (name for name, _ in model.named_parameters())
    yield from (name for name, _ in model.named_buffers())


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def new_head(spec: ModelSpec) -> tuple[str, ...]:
    return tuple((spec.new_head or spec.head).split())


def zero_head(model: nn.Module, spec: ModelSpec, fresh: Collection[str]) -> None:
    """Set the parameters of the new head that are in ``fresh`` to zero (Dosovitskiy et al. 2021, section 3.2).

    The first steps then depend on the features only: large random weights of a head cost accuracy with few images.
    """
    for name, parameter in model.named_parameters():
        if name in fresh and inside(name, new_head(spec)):
            nn.init.zeros_(parameter)


def inside(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _rows(model: nn.Module) -> Iterator[tuple[str, int, int, int, int]]:
    """A row per child of the model with parameters, and per direct parameter."""
    for part in dict.fromkeys(name.partition(".")[0] for name, _ in model.named_parameters()):
        own = [parameter for name, parameter in model.named_parameters() if inside(name, [part])]
        norms = [getattr(module.train, "__func__", None) is _stay for name, module in _norms(model) if inside(name, [part])]
        still = sum(parameter.numel() for parameter in own if not parameter.requires_grad)
        yield part, still, sum(parameter.numel() for parameter in own) - still, sum(norms), len(norms) - sum(norms)
