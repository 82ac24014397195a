"""Learning rates against torch's schedulers, groups, the moving average, and errors of freezing."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from tests_support import resolve
from torch import nn

from zoo import registry
from zoo.errors import UsageError
from zoo.spec import ModelSpec
from zoo.training import checks, freezing, optim

STEPS, EPOCHS = 7, 6
RATES = {"lion": 0.001}
"""Learning rates for a few steps; Lion moves each weight by the whole rate."""


def rates(**options: Any) -> list[float]:
    made = optim.Schedule(steps_per_epoch=STEPS, epochs=EPOCHS, lr=0.5, **options)
    return [made.lr_at(i) for i in range(STEPS * EPOCHS)]


def torch_rates(make: Any, per_epoch: bool) -> list[float]:
    """The learning rates of a torch scheduler."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule, found = make(optimizer), []
    for step in range(STEPS * EPOCHS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not per_epoch or (step + 1) % STEPS == 0:
            schedule.step()
    return found


@pytest.mark.parametrize(
    ("options", "scheduler", "per_epoch"),
    [
        ({"name": "constant"}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0), True),
        ({"name": "step", "step_size": 2}, lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1), True),
        (
            {"name": "multistep", "steps": [2, 5], "lr_gamma": 0.3},
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5], 0.3),
            True,
        ),
        ({"name": "cosine"}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS * EPOCHS), False),
    ],
    ids=["constant", "step", "multistep", "cosine"],
)
def test_rates_are_those_of_torch(options: dict[str, Any], scheduler: Any, per_epoch: bool) -> None:
    assert rates(**options) == pytest.approx(torch_rates(scheduler, per_epoch), rel=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "step", "multistep", "cosine", "onecycle", "plateau"])
def test_warm_up_is_linear_and_reaches_the_peak(schedule: str) -> None:
    found = rates(name=schedule, warmup=2.0)
    ramp = 2 * STEPS
    assert found[:ramp] == pytest.approx([0.5 * (i + 1) / (ramp + 1) for i in range(ramp)])
    assert found[ramp] == 0.5
    assert max(found) == 0.5
    assert min(found) > 0


def test_onecycle_falls_to_zero_in_a_straight_line() -> None:
    found = rates(name="onecycle", warmup=2.0)[2 * STEPS :]
    assert found == pytest.approx([0.5 * (1 - i / len(found)) for i in range(len(found))])


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_the_rate_begins_and_ends_at_its_factors(schedule: str) -> None:
    """The shape of the schedule between 20 % and 100 %, and between 100 % and 7 % of the peak; torch's cosine has the same minimum."""
    found = rates(name=schedule, warmup=2.0, start_factor=0.2, end_factor=0.07)
    plain = rates(name=schedule, warmup=2.0)
    ramp = 2 * STEPS
    assert found[:ramp] == pytest.approx([0.5 * (0.2 + 0.8 * each / 0.5) for each in plain[:ramp]])
    assert found[ramp:] == pytest.approx([0.5 * (0.07 + 0.93 * each / 0.5) for each in plain[ramp:]])
    if schedule == "cosine":
        wanted = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS * EPOCHS, eta_min=0.035), False)
        assert rates(name="cosine", end_factor=0.07) == pytest.approx(wanted, rel=1e-9)


def test_plateau_is_the_one_of_torch_and_continues_from_its_state() -> None:
    scores = [0.1, 0.3, 0.2, 0.3, 0.25, 0.31, 0.3, 0.3, 0.3, 0.3]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=1, threshold=0.0)
    made, found, wanted = optim.Plateau(0.5, 1), [], []
    json.dumps(made.state_dict(), allow_nan=False)
    for score in scores:
        made.update(score)
        state = made.state_dict()
        made = optim.Plateau(0.5, 1)
        made.load_state_dict(state)
        reference.step(score)
        found.append(made.factor)
        wanted.append(optimizer.param_groups[0]["lr"])
    assert found == wanted
    assert found[-1] == 0.125


def test_catalogue_steps_that_never_come() -> None:
    assert set(rates(name="multistep", steps=[100, 101])) == {0.5}


def test_unknown_names_are_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="cosinus"):
        rates(name="cosinus")
    with pytest.raises(ValueError, match="adam"):
        optim.make(nn.Linear(2, 2), optim.Hyperparameters(name="adam", lr=0.1))


def sgd(**options: Any) -> optim.Hyperparameters:
    return optim.Hyperparameters(name="sgd", lr=0.1, **options)


def net() -> tuple[nn.Module, ModelSpec]:
    torch.manual_seed(0)
    spec = registry.find("models", "cnn_small")
    return spec.build(4), spec


def test_everything_decays_by_default() -> None:
    model, _ = net()
    (group,) = optim.make(model, sgd(weight_decay=0.5)).param_groups
    assert group["weight_decay"] == 0.5
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    spared = optim.groups(model, 0.5, decay_all=False)
    assert sorted(g["weight_decay"] for g in spared) == [0.0, 0.5]
    assert {p.dim() for g in spared if not g["weight_decay"] for p in g["params"]} == {1}


def test_biases_of_norms_can_learn_faster() -> None:
    """Their rate is a multiple; their weights still shrink by lr * decay per step, and other biases keep the rate."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2))
    groups = optim.groups(model, 0.5, norm_bias=64.0, scales={"1.bias": 0.1})
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(model[1].bias)] == pytest.approx((6.4, 0.5 / 64)) and found[id(model[4].bias)] == (64.0, 0.5 / 64)
    others = [p for name, p in model.named_parameters() if name not in ("1.bias", "4.bias")]
    assert len(others) == 6 and {found[id(p)] for p in others} == {(1.0, 0.5)}


@pytest.mark.parametrize("name", ["sgd", "adamw", *optim.TIMM])
def test_make_lowers_the_loss(name: str) -> None:
    model, _ = net()
    optimizer = optim.make(
        model, optim.Hyperparameters(name=name, lr=RATES.get(name, 0.01), weight_decay=1e-4), head=("classifier",)
    )
    inputs, targets = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_muon_takes_matrices_and_leaves_the_head_and_vectors_to_adamw() -> None:
    model, spec = net()
    chosen = optim.Hyperparameters(name="muon", lr=0.01)
    groups = optim.make(model, chosen, head=freezing.new_head(spec)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_adamw = {names[id(each)] for group in groups if group.get("use_fallback") for each in group["params"]}
    assert by_adamw == {name for name, each in model.named_parameters() if each.dim() < 2 or name == "classifier.weight"}
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_layer_wise_rates() -> None:
    model, spec = net()
    scales = optim.lr_scales(model, spec, head=10.0, layer_decay=0.5)
    assert scales["classifier.weight"] == 10.0
    assert scales["features.12.weight"] == 0.5
    assert scales["features.0.weight"] == 0.5**4
    optimizer = optim.make(model, sgd(), scales=scales)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {10.0, 0.5, 0.25, 0.125, 0.0625}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_ema_is_the_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema, expected = optim.Ema(model, 0.9), 0.0
    for step in range(1, 60):
        nn.init.constant_(model.weight, float(step))
        ema.update(model)
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * step
    assert ema.averaged(model).weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == 59
    again = optim.Ema(model, 0.9)
    again.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
    ema.update(model)
    again.update(model)
    assert torch.equal(ema.averaged(model).weight, again.averaged(model).weight)


def test_lookahead_returns_to_the_slow_weights() -> None:
    """Against the formula, with steps of 1: the model continues from the slow weights, whose share rises with the cube of the progress."""
    model, steps = nn.BatchNorm1d(1), 12
    look, slow = optim.Lookahead(model, 0.9, steps), 0.0
    fast = slow
    for step in range(1, steps + 1):
        fast += 1
        with torch.no_grad():
            model.bias += 1
            model.running_mean += 1
            model.num_batches_tracked += 1
        look.update(model)
        if step in (5, 10, 12):
            keep = 0.9**5 * (step / steps) ** 3
            slow = fast = keep * slow + (1 - keep) * fast
        assert model.bias.item() == model.running_mean.item() == pytest.approx(fast, rel=1e-6)
        assert look.averaged(model).bias.item() == pytest.approx(slow, rel=1e-6)
    assert int(look.averaged(model).num_batches_tracked) == steps
    again = optim.Lookahead(model, 0.9, steps)
    again.load_state_dict({name: value.clone() for name, value in look.state_dict().items()})
    assert torch.equal(again.averaged(model).bias, model.bias) and int(again.count) == steps


def test_ema_takes_buffers_along() -> None:
    model, _ = net()
    ema = optim.Ema(model, 0.5)
    model.train()(torch.randn(4, 3, 32, 32))
    ema.update(model)
    made = ema.averaged(model)
    assert int(made.features[1].num_batches_tracked) == 1
    assert 0 < made.features[1].running_mean.abs().sum() < model.features[1].running_mean.abs().sum()


def test_held_norms_stay_in_eval_in_copies_too() -> None:
    model, spec = net()
    freezing.freeze(model, "stage<=1", spec)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each.train()
        assert [each.features[i].training for i in (1, 5, 9, 13)] == [False, False, True, True]
    assert twin.features[1].train() is twin.features[1]
    before = model.features[1].running_mean.clone()
    model(torch.randn(4, 3, 32, 32))
    assert torch.equal(model.features[1].running_mean, before)


def test_requires_grad_alone_would_not_hold_a_norm() -> None:
    """The error that freeze prevents."""
    model, _ = net()
    for parameter in model.features.parameters():
        parameter.requires_grad_(False)
    before = model.features[1].running_mean.clone()
    model.train()(torch.randn(4, 3, 32, 32))
    assert not torch.equal(model.features[1].running_mean, before)


def test_globs_and_table() -> None:
    model, spec = net()
    table = freezing.freeze(model, "features.[01]", spec)
    assert set(table.names) == {
        "features.0.weight", "features.1.weight", "features.1.bias", "features.1.running_mean", "features.1.running_var",
        "features.1.num_batches_tracked",
    }  # fmt: skip
    assert table.held == 1
    assert table.rows == (("features", 928, 184_896, 1, 3), ("classifier", 0, 516, 0, 0))
    assert len(optim.make(model, sgd()).param_groups[0]["params"]) == len(list(model.parameters())) - 3
    assert freezing.freeze(net()[0], "none", spec).names == ()


def test_selectors_are_joined() -> None:
    parts = [freezing.freeze(*_given(selector)) for selector in ("stage<=0", "bn")]
    table = freezing.freeze(*_given("stage<=0+bn"))
    assert set(table.names) == {name for part in parts for name in part.names}
    assert table.held == 4
    assert len(table.names) == len(set(table.names)) < sum(len(part.names) for part in parts)
    model, _, spec = _given("none")
    assert freezing.plan(model, spec, "backbone", ["1:stage<=0+bn", "2:bn"], 3)[1:] == [(1, "stage<=0+bn"), (2, "bn")]


def _given(selector: str) -> tuple[nn.Module, str, ModelSpec]:
    model, spec = net()
    return model, selector, spec


@pytest.mark.parametrize(
    ("name", "selector", "says"),
    [
        ("cnn_small", "*", "nothing to train"),
        ("cnn_small", "cnv", "did you mean conv"),
        ("cnn_small", "stage<=9", "stage<=0 to 3"),
        ("cnn_small", "nowhere.*", "no role or layer"),
        ("cnn_small", "bnn+conv", "did you mean bn"),
        ("cnn_small", "bn+", "no role or layer ''"),
        ("resnet20", "fc", "freezes nothing"),
        ("two_layer_net", "conv", "freezes nothing"),
        ("two_layer_net", "fc:all", "nothing to train"),
    ],
)
def test_freeze_refuses(name: str, selector: str, says: str) -> None:
    spec = registry.find("models", name)
    with pytest.raises(UsageError, match=says) as caught:
        freezing.freeze(spec.build(10), selector, spec)
    assert "roles of this model" in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_a_head_called_fc_is_not_the_role_fc() -> None:
    spec = ModelSpec(build=lambda classes: nn.Module(), input=(3, 8, 8), params=0, macs=0, paper="", head="fc", data=())
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 3, 1))
    model.add_module("fc", nn.Linear(3, 2))
    with pytest.raises(UsageError, match="freezes nothing"):
        freezing.freeze(model, "fc", spec)


def test_random_weights_are_not_frozen() -> None:
    model, spec = net()
    with pytest.raises(UsageError, match="random"):
        freezing.freeze(model, "fc:all", spec, fresh=("classifier.weight",))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_digest_sees_one_bit() -> None:
    model, _ = net()
    before = freezing.frozen_digest(model, ["features.0.weight"])
    with torch.no_grad():
        value = model.features[0].weight.view(-1)
        value[0] += 1e-6
    assert freezing.frozen_digest(model, ["features.0.weight"]) != before


def test_a_warm_up_longer_than_the_run_is_continued_by_a_longer_run() -> None:
    short, long = (optim.Schedule(lr=1.0, epochs=epochs, steps_per_epoch=10, warmup=2.0) for epochs in (1, 4))
    assert [short.lr_at(step) for step in range(10)] == [long.lr_at(step) for step in range(10)]


def test_two_averages_of_the_weights_exclude_each_other() -> None:
    with pytest.raises(UsageError, match=r"ema = 0.9 and lookahead = 0.5 both average the weights; set one of them to 0"):
        checks.check_settings(resolve("cnn_small", "ema=0.9", "lookahead=0.5"))
