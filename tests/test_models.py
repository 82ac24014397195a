"""Every registered model matches its spec; a new model needs no new test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from zoo import registry
from zoo.errors import UsageError
from zoo.spec import ModelSpec
from zoo.training import freezing, optim

NAMES = registry.names("models")
LARGE = ("alexnet", "resnet50")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: with batches of two, more threads only wait for each other, for long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one sample, counted by hooks."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        counts.append(output[0].numel() * module.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.inference_mode():
        model.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def built(name: str, classes: int | None = None) -> tuple[nn.Module, ModelSpec]:
    spec = registry.find("models", name)
    torch.manual_seed(0)
    return spec.build(classes or spec.classes), spec


def test_the_walk_is_not_empty() -> None:
    assert {"cnn_small", "resnet32", "resnet110", "wide_resnet16_4", "resnet9", "alexnet", "resnet50", "s2_cnn"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_model_is_as_declared(name: str) -> None:
    model, spec = built(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.params
    assert macs(model, spec.input) == spec.macs
    model.train()
    logits = model(torch.randn(2, *spec.input))
    assert logits.shape == (2, spec.classes)
    assert torch.isfinite(logits).all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip_and_table(name: str) -> None:
    model, spec = built(name)
    other = spec.build(spec.classes)
    other.load_state_dict(model.state_dict())
    sample = torch.randn(2, *(spec.input if name not in LARGE else (3, 64, 64)))
    with torch.inference_mode():
        assert torch.equal(model.eval()(sample), other.eval()(sample))
    fields = registry.entry("models", name)
    declared = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    assert {key: value for key, value in fields.items() if key != "module"}.items() <= declared.items()
    demanded = {
        field.name for field in dataclasses.fields(spec) if field.default is field.default_factory is dataclasses.MISSING
    }
    assert demanded - {"build"} == {"input", "params", "macs", "paper", "head", "data"} <= set(fields), (
        "what is demanded is listed"
    )


@pytest.mark.parametrize("name", NAMES)
def test_head_and_stages_name_what_is_there(name: str) -> None:
    model, spec = built(name, classes=7)
    parts = dict(model.named_modules())
    last = parts[spec.new_head or spec.head]
    assert isinstance(last, nn.Linear)
    assert last.out_features == 7
    staged = [part for stage in spec.stages for part in stage]
    assert len(staged) == len(set(staged))
    outside = {key for key, _ in model.named_parameters() if not key.startswith(f"{spec.head}.")}
    assert outside == {key for key in outside if any(key.startswith(f"{part}.") for part in staged)}, "each in a stage"


@pytest.mark.parametrize(
    ("name", "part"),
    [(name, slice(0, 1)) for name in NAMES]
    + [
        pytest.param(name, slice(1, None), marks=[pytest.mark.slow] if registry.entry("models", name)["macs"] > 70e6 else [])
        for name in NAMES
    ],
    ids=lambda value: value if isinstance(value, str) else "first" if value.stop else "others",
)
def test_freezing_by_each_role(name: str, part: slice) -> None:
    spec = registry.find("models", name)
    every = freezing.roles(spec.build(spec.classes), spec)
    assert every
    for role in every[part]:
        _freeze_and_train(name, role)


def _freeze_and_train(name: str, role: str) -> None:
    model, spec = built(name)
    table = freezing.freeze(model, role, spec)
    before = freezing.frozen_digest(model, table.names)
    everything = freezing.frozen_digest(model, [key for key, _ in model.named_parameters()])
    optimizer = optim.make(model, optim.Hyperparameters(name="sgd", lr=0.01, weight_decay=0.1))
    held = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and not module.training]
    assert len(held) == table.held
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        sample = torch.randn(2, *(spec.input if name not in LARGE else (3, 64, 64)))
        nn.functional.cross_entropy(model(sample), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert freezing.frozen_digest(model, table.names) == before, role
    after = freezing.frozen_digest(model, everything)
    moved = [key for key in everything if everything[key] != after[key]]
    assert len(moved) == len([key for key in everything if key not in before]), "what is not frozen trains"
    assert table.frozen + table.trained == spec.params


@pytest.mark.parametrize(("name", "trained", "held"), [("alexnet", 54_947_941, 0), ("resnet50", 206_949, 53)])
def test_freeze_conv_of_the_catalogue(name: str, trained: int, held: int) -> None:
    model, spec = built(name, 101)
    table = freezing.freeze(model, "conv", spec)
    assert (table.trained, table.held, table.frozen + table.trained) == (trained, held, spec.params)


def test_resnet_shortcut_is_slice_and_pad() -> None:
    """Option A of He et al. 2015: every second pixel, the missing channels filled with zeros, half of them on each side."""
    block = registry.find("models", "resnet20").build(10).layer2[0]
    for convolution in (block.conv1, block.conv2):
        nn.init.zeros_(convolution.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block.eval()(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_resnet_names_are_the_common_ones() -> None:
    keys = list(built("resnet32")[0].state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer3.4.bn2.bias", "linear.weight"} <= set(keys)


@pytest.mark.parametrize(("name", "params"), [("resnet18", 11_689_512), ("vit_tiny_patch16_224", 5_717_416)])
def test_timm_spec_says_what_timm_says(name: str, params: int) -> None:
    from zoo.models import timm_nets

    spec = timm_nets.timm_spec(f"timm/{name}")
    model = spec.build(5)
    assert (spec.params, spec.input, spec.classes) == (params, (3, 224, 224), 1000)
    assert dict(model.named_modules())[spec.head].out_features == 5
    table = freezing.freeze(model, "conv", spec)
    assert table.trained == sum(parameter.numel() for parameter in model.get_classifier().parameters())
    assert freezing.freeze(spec.build(5), "stage<=0", spec).frozen > 0
    assert spec.weights


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "mobilenetv3_small_050", "levit_128s"])
def test_layer_decay_is_timms(name: str) -> None:
    from timm.optim import param_groups_layer_decay

    from zoo.models import timm_nets

    spec = timm_nets.timm_spec(f"timm/{name}")
    with torch.device("meta"):
        model = spec.build(5)
    factors = {id(p): g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.5) for p in g["params"]}
    wanted = {key: factors[id(parameter)] for key, parameter in model.named_parameters()}
    assert len(set(wanted.values())) > 5
    assert optim.lr_scales(model, spec, layer_decay=0.5) == wanted


def test_timm_with_two_heads() -> None:
    from zoo.models import timm_nets

    spec = timm_nets.timm_spec("timm/levit_128s")
    assert spec.head.split() == ["head.linear", "head_dist.linear"]


@pytest.mark.parametrize(("name", "says"), [("resnet23", "resnet26"), ("vit_small_patch14_dinov2", "no classifier")])
def test_timm_refuses(name: str, says: str) -> None:
    from zoo.models import timm_nets

    with pytest.raises(UsageError, match=says) as caught:
        timm_nets.timm_spec(f"timm/{name}")
    assert len(str(caught.value)) <= 200
