"""Every registered loss: equal to its reference in float64, right derivatives, weights, extreme logits, half types."""

from __future__ import annotations

import doctest
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from zoo import recipe as recipes
from zoo import registry
from zoo.losses import FocalLoss, focal_loss
from zoo.losses.dbm import Dbm
from zoo.losses.dynamic_focal import DynamicFocal
from zoo.losses.hybrid import Hybrid
from zoo.spec import Option
from zoo.training import losses

NAMES = registry.names("losses")
COUNTS = (500, 210, 90, 40, 17, 8, 3)
VALUES: dict[str, tuple[Any, ...]] = {
    "focal_gamma": (0.0, 0.5, 2.0),
    "label_smoothing": (0.0, 0.1),
    "alpha": (0.0, 0.3, 1.0),
    "switch_epoch": (0, 3),
    "tau": (1.0, 0.0, 1.7),
    "max_margin": (0.5, 0.0),
    "margin_scale": (30.0, 1.0),
}
"""Tested values of the options of losses; others keep their default."""


def test_the_registry_is_not_empty() -> None:
    wanted = "cross_entropy focal sigmoid_focal ldam balanced_softmax logit_adjustment dynamic_focal hybrid ce_then_focal"
    assert set(wanted.split()) <= set(NAMES)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, weight: torch.Tensor | None = None, classes: int = 7, **options: Any) -> torch.nn.Module:
    spec = registry.find("losses", name)
    chosen = {key: value for key, value in options.items() if key in spec.options}
    return spec.build(weight=weight, **chosen, **({"counts": COUNTS[:classes]} if spec.counts else {}))


def test_equals_its_reference(name: str) -> None:
    spec = registry.find("losses", name)
    keys = [key for key in spec.options if key in VALUES]
    for seed, values in enumerate(itertools.product(*(VALUES[key] for key in keys), (False, True))):
        options = dict(zip(keys, values)) | ({"counts": COUNTS} if spec.counts else {})
        torch.manual_seed(seed)
        logits, target = 4 * torch.randn(30, 7, dtype=torch.float64, requires_grad=True), torch.randint(7, (30,))
        weight = torch.rand(7, dtype=torch.float64) + 0.1 if values[-1] else None
        got, want = spec.build(weight=weight, **options)(logits, target), spec.reference(logits, target, weight, **options)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, logits)[0], torch.autograd.grad(want, logits)[0])


def test_derivative(name: str) -> None:
    logits, target = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda z: build(name, classes=4)(z, target), (logits,), nondet_tol=0)


def test_extreme_logits_stay_finite(name: str) -> None:
    for gamma in (0.0, 0.5, 2.0):
        logits = torch.tensor([[1e4, -1e4, 0.0], [-80.0, 80.0, 80.0], [0, 0, 0]], requires_grad=True)
        for label in range(3):
            loss = build(name, classes=3, focal_gamma=gamma)(logits, torch.full((3,), label))
            assert torch.isfinite(loss)
            assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(name: str, dtype: torch.dtype) -> None:
    logits, target = torch.randn(64, 7).to(dtype).requires_grad_(), torch.randint(7, (64,))
    loss = build(name)(logits, target)
    torch.testing.assert_close(loss.double(), build(name)(logits.double(), target), rtol=1e-2, atol=0)
    assert torch.autograd.grad(loss, logits)[0].dtype == dtype


def test_weights_travel_with_the_module(name: str) -> None:
    loss = build(name, weight=torch.ones(3), classes=3).double()
    assert dict(loss.named_buffers())["weight"].dtype == torch.float64


def test_weights_set_later_act_as_if_given_at_first(name: str) -> None:
    """Deferred re-weighting sets the buffer from outside."""
    logits, target, weight = torch.randn(20, 7), torch.randint(7, (20,)), torch.rand(7) + 0.1
    plain, weighted = build(name), build(name, weight=weight)
    assert plain(logits, target) != weighted(logits, target)
    plain.weight = weight
    assert plain(logits, target) == weighted(logits, target)
    plain.weight = None
    assert plain(logits, target) == build(name)(logits, target)


def test_stats_are_those_of_the_unweighted_softmax(name: str) -> None:
    loss = build(name, weight=torch.rand(7) + 0.1)
    logits, target = torch.randn(20, 7, requires_grad=True), torch.randint(7, (20,))
    if not hasattr(loss, "with_stats"):
        return
    stats = loss.with_stats(logits, target)
    torch.testing.assert_close(stats.p, logits.detach().softmax(1).gather(1, target[:, None]).squeeze(1))
    torch.testing.assert_close(stats.loss, loss(logits, target))
    stats.loss.backward()
    torch.testing.assert_close(logits.grad, torch.autograd.grad(loss(logits, target), logits)[0])


def test_soft_targets_where_the_spec_says_so(name: str) -> None:
    logits, target = torch.randn(20, 7, dtype=torch.float64), torch.randint(7, (20,))
    hot = torch.nn.functional.one_hot(target, 7).double()
    if registry.find("losses", name).soft:
        torch.testing.assert_close(build(name)(logits, hot), build(name)(logits, target))
        blend = 0.25 * hot + 0.75 * hot.roll(1, 0)
        parts = 0.25 * build(name)(logits, target) + 0.75 * build(name)(logits, target.roll(1, 0))
        torch.testing.assert_close(build(name)(logits, blend), parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_weights_of_another_precision_than_the_logits(name: str, dtype: torch.dtype) -> None:
    logits, target, weight = torch.randn(20, 7).to(dtype), torch.randint(7, (20,)), torch.rand(7) + 0.1
    got = build(name, weight=weight)(logits, target)
    torch.testing.assert_close(got.double(), build(name, weight=weight.double())(logits.double(), target), rtol=1e-5, atol=0)
    if registry.find("losses", name).soft:
        assert torch.isfinite(build(name, weight=weight)(logits, torch.eye(7, dtype=dtype)[target]))


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8], ids=str)
def test_labels_of_other_integer_types(name: str, kind: torch.dtype) -> None:
    logits, target = torch.randn(20, 7), torch.randint(7, (20,))
    assert build(name)(logits, target.to(kind)) == build(name)(logits, target)


def test_ignored_rows_do_not_count(name: str) -> None:
    logits, target = torch.randn(20, 7, requires_grad=True), torch.randint(7, (20,))
    target[::4] = -100
    counted = target != -100
    loss = build(name)(logits, target)
    torch.testing.assert_close(loss, build(name)(logits[counted], target[counted]))
    assert not torch.autograd.grad(loss, logits)[0][~counted].any()


def test_gradients_of_each_sample(name: str) -> None:
    logits, target = torch.randn(5, 7), torch.randint(7, (5,))
    loss = build(name).eval()
    each = torch.func.vmap(torch.func.grad(lambda z, y: loss(z[None], y[None])))(logits, target)
    for z, y, found in zip(logits, target, each):
        leaf = z[None].requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(loss(leaf, y[None]), leaf)[0][0], found)


def test_shapes_that_do_not_fit_are_an_error(name: str) -> None:
    if not registry.find("losses", name).fused and name != "cross_entropy":
        with pytest.raises(ValueError, match="target"):
            build(name)(torch.randn(4, 7, 7), torch.randint(7, (4, 7)))


@pytest.mark.parametrize("kind", ["balanced_softmax", "logit_adjustment", "ldam", "dbm"])
def test_a_class_without_samples_has_a_finite_loss(kind: str) -> None:
    loss = registry.find("losses", kind).build(counts=[50, 20, 7, 0])
    shares = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    for target in (shares, torch.tensor([0, 3])):
        logits = torch.randn(2, 4, requires_grad=True)
        value = loss(logits, target)
        assert torch.isfinite(value)
        assert torch.isfinite(torch.autograd.grad(value, logits)[0]).all()


@pytest.mark.parametrize("kind", ["balanced_softmax", "ldam", "dbm", "hybrid", "focal"])
def test_a_masked_class_with_a_share_of_zero_has_no_loss(kind: str) -> None:
    """As labels (N,), for which a logit of -inf is a probability of 0."""
    logits = torch.tensor([[1.0, -torch.inf, 2.0], [0.5, 0.0, -1.0]], requires_grad=True)
    loss, target = build(kind, classes=3), torch.tensor([0, 2])
    value, wanted = loss(logits, torch.eye(3)[target]), loss(logits, target)
    torch.testing.assert_close(value, wanted)
    grads = [torch.autograd.grad(each, logits)[0] for each in (value, wanted)]
    torch.testing.assert_close(*grads)


def test_a_masked_class_in_the_sigmoid_focal_loss_is_a_certain_no() -> None:
    loss = build("sigmoid_focal", classes=3, focal_gamma=0.0)
    assert loss(torch.tensor([[1.0, -torch.inf, 2.0]]), torch.tensor([2])) == loss(
        torch.tensor([[1.0, -1e4, 2.0]]), torch.tensor([2])
    )


def test_dynamic_focal_counts_a_single_row_of_shares() -> None:
    loss = DynamicFocal()
    loss(torch.zeros(3), torch.tensor([0.2, 0.3, 0.5]))
    assert int(loss.rows) == 1


def test_dynamic_focal_counts_the_rows_that_count() -> None:
    logits, target = torch.randn(8, 5), torch.randint(5, (8,))
    expected = float(((1 - logits.softmax(1).gather(1, target[:, None])) ** 2).mean())
    for half in (False, True):
        loss = DynamicFocal()
        loss(logits, target)
        loss(logits, torch.full((8,), -100))  # no row counts
        loss = loss.half().float() if half else loss
        assert loss.total.dtype == torch.float64
        loss((logits[None].expand(2, 8, 5)).movedim(2, 1), target.expand(2, 8))
        other = target.roll(1, 0)
        loss(logits, (target, other, torch.ones(8)))
        loss.eval()(torch.zeros(8, 5), target)  # not a pass of training
        assert float(loss.rows) == 8 + 16 + 8
        assert loss.end_epoch(0)["mean_factor"] == pytest.approx(expected, rel=1e-6)


def test_smoothing_reduces_confidence_at_a_right_row() -> None:
    logits = torch.tensor([[12.0, 0.0, 0.0]], requires_grad=True)
    loss = focal_loss.FocalLoss(2.0, label_smoothing=0.1)(logits, torch.tensor([0]))
    assert torch.autograd.grad(loss, logits)[0][0, 0] > 0


def test_the_rare_class_has_the_largest_margin_and_the_paper_s_value() -> None:
    margin = build("ldam").margin
    assert margin.argmax() == 6
    assert margin[6] == pytest.approx(15)  # s 30 times 0.5
    assert margin[0] / margin[6] == pytest.approx((3 / 500) ** 0.25)


def test_balanced_softmax_is_logit_adjustment_of_strength_one() -> None:
    logits, target = torch.randn(20, 7), torch.randint(7, (20,))
    torch.testing.assert_close(build("balanced_softmax")(logits, target), build("logit_adjustment", tau=1.0)(logits, target))
    plain = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(build("logit_adjustment", tau=0.0)(logits, target), plain)


def test_dynamic_focal_rescales_by_the_mean_factor_of_its_epoch() -> None:
    loss, logits, target = DynamicFocal(gamma=2.0, rescale_every=2), torch.randn(40, 7), torch.randint(7, (40,))
    factor = (1 - logits.softmax(1).gather(1, target[:, None])) ** 2
    plain = loss(logits, target)
    assert loss.end_epoch(0) == {"mean_factor": pytest.approx(float(factor.mean())), "focal_scale": 1.0}
    for rows in (slice(0, 10), slice(10, 40)):  # batches of unequal size are weighted by their rows
        loss(logits[rows], target[rows])
    assert loss.end_epoch(1)["focal_scale"] == pytest.approx(1 / float(factor.mean()))
    assert float(loss(logits, target)) == pytest.approx(float(plain / factor.mean()))


def test_the_scale_is_capped_only_if_asked() -> None:
    logits, target = torch.eye(3) * 12, torch.arange(3)  # a trained model: the factor is tiny
    scales = []
    for cap in (0.0, 10.0):
        loss = DynamicFocal(gamma=2.0, rescale_every=1, max_scale=cap)
        loss(logits, target)
        scales.append(loss.end_epoch(0)["focal_scale"])
    assert scales[0] > 1e6
    assert scales[1] == 10


def test_dynamic_focal_goes_on_from_its_saved_state() -> None:
    first, logits, target = DynamicFocal(rescale_every=1), torch.randn(40, 7), torch.randint(7, (40,))
    first(logits, target)
    first.end_epoch(0)
    first(logits, target)
    second = DynamicFocal(rescale_every=1)
    second.load_state_dict(first.state_dict())
    assert first.end_epoch(1) == second.end_epoch(1)


def test_ce_then_focal_changes_over_at_its_epoch() -> None:
    loss, logits, target = Hybrid(0.0, 2.0, switch_epoch=3), torch.randn(20, 7), torch.randint(7, (20,))
    cross_entropy, focal = torch.nn.functional.cross_entropy(logits, target), focal_loss.FocalLoss(2.0)(logits, target)
    for epoch, expected in ((0, cross_entropy), (2, cross_entropy), (3, focal), (4, focal), (1, cross_entropy)):
        loss.set_epoch(epoch)
        assert loss(logits, target) == expected


def test_docstrings_run() -> None:
    assert doctest.testmod(focal_loss, extraglobs={"torch": torch}).failed == 0


OTHER = {"float": 0.25, "int": 3, "bool": True, "str": "x"}


def others(option: Option) -> Any:
    """A valid value other than the default."""
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    value = OTHER[option.type] if OTHER[option.type] != option.default else 2 * OTHER[option.type]
    return not option.default if option.type == "bool" else value


def test_every_loss_is_built_from_a_recipe_with_each_option(name: str) -> None:
    logits, target = torch.randn(12, 7), torch.arange(12) % 7
    for key, option in registry.entry("losses", name)["options"].items():
        value = others(option)
        recipe = recipes.resolve("cnn_small", {"loss": name, f"loss.{key}": value})
        loss, _ = losses.build(recipe, np.array(COUNTS))
        assert torch.isfinite(loss(logits, target)), key
        plain, _ = losses.build(recipes.resolve("cnn_small", {"loss": name}), np.array(COUNTS))
        assert state(loss) != state(plain), f"{key} = {value} changes nothing in the module"
    loss, _ = losses.build(recipes.resolve("cnn_small", {"loss": name}), np.array(COUNTS))
    assert torch.isfinite(loss(logits, target))


def state(loss: torch.nn.Module) -> dict[str, Any]:
    """Plain attributes and buffers, to compare two modules."""
    plain = {key: value for key, value in vars(loss).items() if isinstance(value, (bool, int, float, str))}
    return plain | {key: value.tolist() for key, value in loss.named_buffers()}


def test_options_that_are_listed_are_those_of_the_spec(name: str) -> None:
    assert registry.entry("losses", name)["options"] == registry.find("losses", name).options


def test_an_option_means_one_type_in_all_losses() -> None:
    kinds: dict[str, set[str]] = {}
    for entry in registry.table("losses").values():
        for key, option in entry["options"].items():
            kinds.setdefault(key, set()).add(option.type)
    assert {key: kind for key, kind in kinds.items() if len(kind) > 1} == {}


def test_dbm_enlarges_the_angle_of_the_label() -> None:
    """A rare class by its whole margin, a wrong answer by (1 - cos) / 2 of it more; frequent classes by n_min / n of it."""
    loss = Dbm([100, 10], angle=0.2, tau=0.0, margin_scale=10.0)
    cosine = torch.tensor([[0.5, 0.6], [0.5, 0.4], [0.6, 0.5]], dtype=torch.float64)
    angles = cosine.acos()
    wrong = 0.2 * (1 + (1 - 0.5) / 2)
    for row, label, margin in ((0, 1, 0.2), (1, 0, 0.02), (2, 1, wrong)):
        expected = cosine[row].clone()
        expected[label] = (angles[row, label] + margin).cos()
        own = -(10 * expected).log_softmax(0)[label]
        assert float(loss(10 * cosine[row : row + 1], torch.tensor([label]))) == pytest.approx(float(own), rel=1e-9)


@pytest.mark.parametrize("name", ["cross_entropy", "ldam", "dbm", "logit_adjustment", "mean", "weighted_mean"])
@pytest.mark.parametrize("kind", ["labels", "ignored", "shares"])
@pytest.mark.parametrize("weighted", [False, True])
def test_parts_of_a_batch_make_the_whole_by_their_divisors(name: str, kind: str, weighted: bool) -> None:
    """loss(batch) divisor(batch) is the sum over its parts. ``mean`` and ``weighted_mean`` are of FocalLoss, which has its own ignored label."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=draw, dtype=torch.float64)
    target = torch.randint(4, (12,), generator=draw)
    ignored = 3 if "mean" in name and kind == "ignored" else -100
    if kind == "ignored":
        target[3] = ignored
    shares = torch.rand(12, 4, generator=draw, dtype=torch.float64).softmax(1)
    given = shares if kind == "shares" else target
    weight = [0.1, 1.0, 2.0, 5.0] if weighted else None
    loss: Any = (
        FocalLoss(2.0, weight, ignored, reduction=name) if "mean" in name else losses.create_loss(name, COUNTS[:4], weight)
    )
    parts = [slice(0, 5), slice(5, 12)]
    total = sum(loss(logits[part], given[part]).item() * loss.divisor(given[part]) for part in parts)
    assert loss(logits, given).item() * loss.divisor(given) == pytest.approx(total, rel=1e-6)
