"""Print each choice of a run in one line, and write all of them to ``env.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import machine, model_files, ops, registry, sampling
from zoo.console import first_ten, print_line, print_lines
from zoo.files import publish_text
from zoo.recipe import Recipe
from zoo.spec import Given
from zoo.training import build, freezing
from zoo.training.session import Session


def choices(recipe: Recipe, made: Session, place: build.Place) -> dict[str, Any]:
    """The settings and choices of a run, as plain values for :func:`announce` and ``env.json``."""
    entry = registry.entry("losses", recipe.loss.name)
    weighted = f" · class weights {recipe.loss.class_weights}" if recipe.loss.class_weights != "none" else ""
    weighted += f" after {recipe.loss.drw_epoch} epochs" if weighted and recipe.loss.drw_epoch else ""
    return {
        "precision": place.precision,
        **({"qat_bits": place.qat_bits} if recipe.qat else {}),
        "layout": "channels_last",
        "compiled": recipe.compile,
        "allocator": place.allocator,
        "kernel": ops.kernel() if entry.get("fused") else "PyTorch",
        "model": recipe.model,
        "loss": f"{recipe.loss.name}{weighted}",
        "imbalance": recipe.data.imbalance,
        "sampler": recipe.sampler.name,
        "select_on": recipe.select_on,
        "data_dir": str(Path(recipe.data.dir).absolute()) if recipe.data.own else "",
        "counts": sampling.class_counts(made.data.train.targets[made.batches.index], len(made.data.classes)).tolist(),
    }


def objects(given: Given) -> dict[str, str]:
    """Facts of ``env.json`` about objects given in Python instead of those that the recipe names."""
    name = "" if given.loss is None else given.loss._get_name()
    fused = {f"zoo.losses.{each['module']}" for each in registry.table("losses").values() if each.get("fused")}
    kernel = ops.kernel() if type(given.loss).__module__ in fused else "PyTorch"
    of_model = {} if given.model is None else {"model_given": model_files.object_name(given.model)}
    of_loss = {"loss": name, "loss_given": name, "kernel": kernel} if name else {}
    return of_model | ({} if given.data is None else {"data_given": given.data.name, "data_dir": ""}) | of_loss


def announce(session: Session, choices: Mapping[str, Any], findings: Sequence[str], command: str) -> None:
    """Print the choices and the findings of the linter, and write them to ``env.json``."""
    env = _facts(session, choices, findings, command)
    publish_text(session.folder / "env.json", json.dumps(env, indent=1) + "\n")
    print_line(_data(session, env))
    spec = session.spec
    macs = f" · {spec.macs / 1e6:,.3g} MMAC at {'x'.join(map(str, spec.input))}" if spec.macs else ""
    print_line(f"model    {env['model']} · {env['parameters']:,} parameters{macs}")
    print_line(f"loss     {env['loss']} · {env['kernel']}")
    if session.sampler:
        bounds = f"easy from p_t {sampling.EASY}, hard below {sampling.HARD}"
        draws = f"{len(session.sampler.index):,} draws with replacement per epoch"
        print_line(f"sampler  {env['sampler']}, {draws} · {bounds}")
    if env["select_on"] == "test":
        print_line("warning  the epoch to keep is selected on the test images: the test result is optimistic and is marked")
    together = f"{session.team.size} processes, each " if session.team.size > 1 else ""
    compiled = " · compiled in the first steps" if env["compiled"] else ""
    threads = f"{env['threads']} thread{'s' if env['threads'] > 1 else ''}"
    print_line(
        f"run      {together}{session.step.device} · {threads} · {env['precision']} · {env['layout']}{compiled} · "
        f"memory: {env['allocator']} · {session.folder}"
    )
    print_lines(f"warning  {finding}" for finding in findings)
    print_lines(freezing.lines(session.frozen, session.plan))


def _facts(session: Session, choices: Mapping[str, Any], findings: Sequence[str], command: str) -> dict[str, Any]:
    data = session.data
    return {
        **machine.facts(session.step.device),
        **choices,
        "data": data.name,
        "data_digest": data.digest,
        "data_train": len(session.batches.index),
        "data_val": len(data.val),
        "data_test": len(data.test),
        "parameters": sum(parameter.numel() for parameter in session.model.parameters()),
        "processes": session.team.size,
        "command": command,
        "lint": list(findings),
    }


def _data(session: Session, env: Mapping[str, Any]) -> str:
    data, imbalance = session.data, env["imbalance"]
    tail = f" · long tail {imbalance} ({first_ten(env['counts'])})" if imbalance != "none" else ""
    return (
        f"data     {data.name} · {env['data_train']:,} train · {env['data_val']:,} val · {env['data_test']:,} test · "
        f"{len(data.classes)} classes{tail}"
    )
