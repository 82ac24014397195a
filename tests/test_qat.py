"""Quantisation-aware training: rounding and its gradients, a run that continues another, resuming with the same bits."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tests_support import digests, small, stopped
from torch import nn

from zoo import files, machine, run_folders, training
from zoo import recipe as recipes
from zoo.cli.train import command
from zoo.errors import UsageError
from zoo.training import build, qat
from zoo.training.processes import Team

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.train(
        small("schedule=step", "lr=0.2", "loss.class_weights=effective"), out=tmp_path_factory.mktemp("qat") / "run"
    )


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (7, 64)])
def test_weights_have_levels_per_output_channel(bits: int, most: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 300, 3, 3) * torch.tensor([1e-3, 1.0, 10.0, 0.0]).view(4, 1, 1, 1)
    found = qat.rounded_weight(weight, bits)
    scale = weight.flatten(1).abs().amax(1).view(4, 1, 1, 1) / most
    torch.testing.assert_close(found, (weight / scale.clamp_min(1e-30)).round() * scale)
    assert len(found[1].unique()) <= 2 * most + 1
    assert (found[3] == 0).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 3.0), (2.0, 5.0), (-5.0, -2.0), (0.0, 0.0)])
def test_inputs_have_256_levels_of_which_one_is_zero(low: float, high: float) -> None:
    inputs = torch.linspace(low, high, 5001)
    found = qat.rounded_inputs(inputs)
    step = (max(high, 0) - min(low, 0)) / 255
    assert (found - inputs).abs().max() <= step * 0.501 + 1e-6
    assert len(found.unique()) <= 256
    assert qat.rounded_inputs(torch.tensor([low, 0.0, high]))[1] == 0


def test_gradients_pass_the_rounding() -> None:
    weight, inputs = torch.randn(3, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    (qat.rounded_weight(weight) * 2).sum().backward()
    (qat.rounded_inputs(inputs) * 3).sum().backward()
    assert (weight.grad == 2).all()
    assert inputs.grad is not None
    assert (inputs.grad == 3).all()


class _Padded(nn.Conv2d):
    """A convolution with another forward, as timm's are."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(nn.functional.pad(inputs, (1, 1, 1, 1)), self.weight, self.bias)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Conv2d(3, 4, 3), (2, 3, 8, 8)), (_Padded(3, 4, 3), (2, 3, 8, 8)), (nn.Linear(6, 5), (2, 6))]
)
def test_layers_round_in_training_only(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(*shape)
    plain = copy.deepcopy(layer)
    net = copy.deepcopy(nn.Sequential(layer, nn.ReLU()))
    assert qat.round_layers(net) == 1
    rounded = copy.deepcopy(plain)
    rounded.weight.data = qat.rounded_weight(plain.weight).detach()
    torch.testing.assert_close(net(inputs), rounded(qat.rounded_inputs(inputs)).relu(), rtol=0, atol=0)
    assert not torch.equal(net(inputs), plain(inputs).relu())
    assert torch.equal(copy.deepcopy(net).eval()(inputs), plain(inputs).relu())
    assert torch.equal(net[0].weight, plain.weight), "the parameter is unrounded"
    assert list(net.state_dict()) == [f"0.{name}" for name in plain.state_dict()]
    net(inputs).sum().backward()
    assert net[0].weight.grad is not None
    with pytest.raises(RuntimeError):
        net(inputs[:, :2])
    assert "weight" not in vars(net[0]), "an error leaves the layer as it was"


@pytest.mark.parametrize(("activation", "expected"), [(nn.Hardswish(), True), (nn.SiLU(), True), (nn.ReLU(), False)])
def test_activations_that_are_not_part_of_a_layer_round_their_input(activation: nn.Module, expected: bool) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64)
    assert qat.round_layers(activation) == 0
    assert torch.equal(activation(inputs), copy.deepcopy(activation).eval()(inputs)) is not expected
    if expected:
        rounded = qat.rounded_inputs(inputs)
        torch.testing.assert_close(activation(inputs), copy.deepcopy(activation).eval()(rounded), rtol=0, atol=0)


def test_a_run_stands_for_its_recipe_and_weights(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, made = recipes.read(finished / "recipe.toml"), recipes.resolve(str(finished), {})
    changed = {line.partition(":")[0] for line in recipes.differences(old, made)}
    assert (changed, made.weights) == ({"weights"}, str(finished))
    monkeypatch.setenv("ZOO_RUNS", str(finished.parent))
    assert run_folders.named("run") == str(finished)
    assert run_folders.named("resnet20") == "resnet20"
    assert run_folders.named("none such") == "none such"
    assert run_folders.named(None) is None
    assert run_folders.named("latest") == str(finished)
    later = finished.parent / "stopped-before-its-first-epoch"
    later.mkdir()
    for name in ("recipe.toml", "env.json"):
        (later / name).write_bytes((finished / name).read_bytes())
    assert run_folders.find(None) == finished
    assert f"latest run has no weights yet ({later.name})" in capsys.readouterr().err
    assert run_folders.find("latest", untrained=True) == later
    shutil.rmtree(later)
    long = "a" * 300
    assert run_folders.named(long) == long
    with pytest.raises(UsageError, match="no model 'aaa"):
        recipes.resolve(long, {})


def test_a_run_goes_on_as_it_ended(tmp_path: Path) -> None:
    """The last frozen layers, the last phase of the loss, and the model's code as copied into the run."""
    old = recipes.resolve("resnet20", {"weights": "default", "freeze": "backbone", "unfreeze": ["1:stage<=1", "2:stage<=0+bn"]})
    old = recipes.changed(old, {"loss": "ce_then_focal", "switch_epoch": 6, "drw_epoch": 4, "class_weights": "effective"})
    (tmp_path / "recipe.toml").write_text(recipes.dump(old))
    made = recipes.resolve(str(tmp_path), {"epochs": 3})
    assert (made.freeze, made.unfreeze, made.loss.drw_epoch, made.loss.options["switch_epoch"]) == ("stage<=0+bn", [], 0, 0)
    recipes.check(made)
    (tmp_path / "recipe.toml").write_text(recipes.dump(recipes.changed(old, {"model": "/gone/net.py:Net"})))
    assert recipes.resolve(str(tmp_path), {}).model == "/gone/net.py:Net"
    (tmp_path / "model.py").touch()
    assert recipes.resolve(str(tmp_path), {}).model == f"{tmp_path / 'model.py'}:Net"
    assert recipes.resolve(str(tmp_path), {"model": "resnet32"}).model == "resnet32"


def test_runs_of_a_sweep_can_be_named(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names contain =, as settings do."""
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    shutil.copytree(finished, tmp_path / "sweeps" / "s" / "lr=0.2,s0")
    result = CliRunner().invoke(command, ["sweeps/s/lr=0.2,s0", "--qat", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "qat = true" in result.output
    assert "lr=0.2,s0" in result.output


def test_the_defaults_of_a_short_run(finished: Path) -> None:
    made = recipes.resolve(str(finished), {"qat": True})
    assert (made.qat, made.epochs, made.schedule.name, made.freeze) == (True, 5, "cosine", "none")
    assert made.optim.lr == pytest.approx(0.002)
    assert made.loss.class_weights == "effective"
    assert recipes.resolve(str(finished), {"qat": True, "epochs": 2, "lr": 0.3}).epochs == 2
    with pytest.raises(UsageError, match="no model 'gone'"):
        recipes.resolve("gone", {"qat": True})


def test_resuming_is_bit_identical(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """On another CPU too: the bits of the weights are those that the run began with."""
    mine = recipes.resolve(str(finished), {"qat": True, "epochs": 2, "ema": 0.9})
    monkeypatch.setattr(machine, "saturates", lambda: True)
    whole = training.train(mine, out=tmp_path / "whole")
    said = capsys.readouterr().err
    assert "layers compute on inputs rounded to 8 bits and weights rounded to 7, as this CPU needs them in int8 files" in said
    assert files.read_facts(whole / "env.json")["qat_bits"] == 7
    stopped(mine, tmp_path / "part", monkeypatch)
    monkeypatch.setattr(machine, "saturates", lambda: False)
    resumed = training.train(mine, out=tmp_path / "part", resume=True)
    assert digests(resumed) == digests(whole)
    assert files.read_facts(resumed / "env.json")["qat_bits"] == 7
    plain = training.train(recipes.changed(mine, {"qat": False}), out=tmp_path / "plain")
    assert digests(plain) != digests(whole)
    assert "qat_bits" not in files.read_facts(plain / "env.json")


@pytest.mark.parametrize(
    ("asked", "recorded", "saturates", "expected"),
    [(0, None, True, 7), (0, None, False, 8), (8, None, True, 8), (7, None, False, 7), (0, {"precision": "fp32"}, True, 8)],
)
def test_bits_of_weights(
    asked: int, recorded: dict[str, Any] | None, saturates: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As set, as recorded (8 in runs of earlier versions), or as the CPU needs them."""
    monkeypatch.setattr(machine, "saturates", lambda: saturates)
    mine = recipes.resolve("resnet20", {"qat": True, "qat_bits": asked, "device": "cpu"})
    assert build.place(mine, Team(), recorded).qat_bits == expected
    with pytest.raises(UsageError, match="qat_bits = 6 is not allowed: expected one of 0, 7, 8"):
        recipes.resolve("resnet20", {"qat_bits": 6})


@pytest.mark.parametrize(("flags", "expected"), [("avx2 fma", True), ("avx2 avx_vnni", False), ("avx512_vnni avx2", False)])
def test_a_cpu_without_vnni_saturates(flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert machine.saturates() is expected
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert not machine.saturates()


def test_rounding_reaches_the_model_of_a_run(finished: Path) -> None:
    mine = recipes.resolve(str(finished), {"qat": True})
    made, _ = build.session(mine, Path("unused"), build.place(mine, Team()), Team())
    inputs = next(made.test.epoch(0)).inputs[:4].float()
    made.model.eval()
    plain = made.model(inputs)
    for module in made.model.modules():
        module.training = isinstance(module, (nn.Conv2d, nn.Linear))
    assert not torch.equal(made.model(inputs), plain)
