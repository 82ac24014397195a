"""Depthwise convolutions that are slow in bf16 compute in float32 in training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests_support import resolve
from torch import nn

from zoo.training import build, depthwise
from zoo.training.processes import Team

pytestmark = pytest.mark.usefixtures("one_thread")


def chosen(net: nn.Module) -> list[str]:
    depthwise.use_float32(net)
    return [name for name, module in net.named_modules() if "forward" in vars(module)]


def test_which_layers_are_chosen() -> None:
    net = nn.ModuleDict({
        "stride": nn.Conv2d(8, 8, 3, stride=2, groups=8), "kernel": nn.Conv2d(8, 16, (3, 5), groups=8), "fast": nn.Conv2d(8, 8, 3, groups=8),
        "full": nn.Conv2d(8, 8, 5, stride=2), "grouped": nn.Conv2d(8, 8, 5, groups=4), "one": nn.Conv2d(1, 1, 5),
    })  # fmt: skip
    assert chosen(net) == ["stride", "kernel"]


def test_forward_and_gradients_are_those_of_float32() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8)
    layer = copy.deepcopy(plain)
    assert depthwise.use_float32(layer) == 1
    layer = copy.deepcopy(layer)  # as the average of the weights is
    inputs = torch.randn(2, 8, 9, 9).bfloat16()
    mine, theirs = inputs.clone().requires_grad_(), inputs.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(mine)
    expected = plain(theirs)
    torch.testing.assert_close(output, expected.bfloat16(), rtol=0, atol=0)
    output.float().square().sum().backward()
    expected.bfloat16().float().square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(mine.grad, theirs.grad.bfloat16() if theirs.grad is not None else None, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("frozen", "moving", "expected"), [(False, False, True), (True, True, True), (True, False, False)])
def test_only_where_gradients_pass(frozen: bool, moving: bool, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(8, 8, 5, groups=8).requires_grad_(not frozen)
    depthwise.use_float32(layer)
    inputs, seen = torch.randn(2, 8, 9, 9, requires_grad=moving), []

    def spy(module: nn.Module, given: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return given

    monkeypatch.setattr(nn.Conv2d, "forward", spy)
    with torch.autocast("cpu", torch.bfloat16):
        layer(inputs)
        with torch.inference_mode():
            layer(inputs)
    assert seen == [not expected, True]


@pytest.mark.parametrize(("precision", "expected"), [("bf16", True), ("fp32", False)])
def test_runs_on_the_cpu_in_bf16_use_it(precision: str, expected: bool) -> None:
    recipe = resolve("timm/mobilenetv3_small_050", f"precision={precision}", "data.size=32", "loss.class_weights=none")
    made, _ = build.session(recipe, Path("unused"), build.place(recipe, Team()), Team())
    assert any("forward" in vars(module) for module in made.model.modules()) is expected
