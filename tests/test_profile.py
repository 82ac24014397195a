"""``zoo train --profile``: the times of the parts of a run, its operators, and the picture."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import TINY
from torch import nn

from zoo import csv_files, recipe, run_folders, tables, tensor_files, training
from zoo.cli import cli
from zoo.errors import DivergedError
from zoo.spec import Given
from zoo.training import profile
from zoo.training.batches import Batches

SMALL = recipe.resolve("demo", dict(recipe.parse_override(text) for text in TINY))


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder and what the command printed."""
    out = tmp_path_factory.mktemp("profiled") / "run"
    words = ["train", "demo", *TINY, "batch_size=100", "--profile", "--out", str(out)]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_parts_and_operators_are_listed(profiled: tuple[Path, str]) -> None:
    folder, printed = profiled
    rows = csv_files.read(folder / "profile.csv")
    parts = {row["name"]: row for row in rows if row["kind"] == "part"}
    assert {"load", "forward", "loss", "backward", "metrics", "update", "validate", "save", "other"} == set(parts)
    assert sum(float(row["share"]) for row in parts.values()) == pytest.approx(1, abs=1e-3)
    steps = int(parts["forward"]["calls"])
    assert {parts[name]["calls"] for name in ("load", "loss", "backward", "metrics", "update")} == {str(steps)}
    env = json.loads((folder / "env.json").read_text())
    assert steps == -(-sum(env["counts"]) // 100) - len(profile.TRACED), "traced steps are not counted"
    operators = {row["name"]: row for row in rows if row["kind"] == "operator"}
    convolutions = int(operators["aten::convolution_backward"]["calls"])
    assert convolutions % len(profile.TRACED) == 0
    assert convolutions > 0
    assert sum(float(row["share"]) for row in operators.values()) == pytest.approx(1, abs=1e-2)
    assert "aten::convolution_backward" in printed
    assert "time of training" in printed


def test_files_and_page(profiled: tuple[Path, str]) -> None:
    folder, printed = profiled
    assert "profile.png" in printed
    assert (folder / "profile.png").read_bytes().startswith(b"\x89PNG")
    trace = json.loads((folder / "profile_trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"zoo forward", "zoo backward", "aten::convolution_backward"} <= names
    assert "where the time of training went" in (folder / "report.html").read_text()


def test_a_run_without_a_profile_removes_the_old_one(profiled: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = profiled
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("profile.csv", "profile_trace.json", "profile.png", "recipe.toml"):
        (copy / name).write_bytes((folder / name).read_bytes())
    run_folders.clear(copy)
    assert not (copy / "profile.csv").exists()
    assert not (copy / "profile.png").exists(), "the page would show it"
    assert not (copy / "profile_trace.json").exists()


def test_slow_loading_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Batches.inputs

    def slow(self: Batches, chosen: np.ndarray, draws: np.ndarray) -> torch.Tensor:
        time.sleep(0.05 if self.augment is not None else 0)
        return inputs(self, chosen, draws)

    monkeypatch.setattr(Batches, "inputs", slow)
    folder = training.train(SMALL, out=tmp_path / "run", profile=True)
    (load,) = (row for row in csv_files.read(folder / "profile.csv") if row["name"] == "load")
    assert float(load["ms_per_call"]) >= 50


def test_the_same_weights_with_and_without(tmp_path: Path) -> None:
    weights = []
    for wanted in (False, True):
        folder = training.train(SMALL, out=tmp_path / str(wanted), profile=wanted)
        weights.append(tensor_files.load_weights(folder / "weights.safetensors")[0])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


class Broken(nn.Module):
    """A loss that is not finite from the fourth step on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(logits, targets) * (float("nan") if self.calls > 3 else 1)


def test_a_run_that_ends_early_has_its_profile(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        training.train(
            recipe.changed(SMALL, {"class_weights": "none"}), out=tmp_path / "run", profile=True, given=Given(loss=Broken())
        )
    parts = [row["name"] for row in csv_files.read(tmp_path / "run" / "profile.csv")]
    assert "forward" in parts
    assert not (tmp_path / "run" / "profile_trace.json").exists(), "it ended before the traced steps"


@pytest.mark.parametrize(("text", "shown"), [("1234.5", "1,234"), ("0.0123456", "0.0123"), ("12.345", "12.3"), ("0.0", "0")])
def test_amounts_are_short(text: str, shown: str) -> None:
    assert tables.amount(text) == shown
