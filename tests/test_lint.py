"""The linter: each finding with its numbers if it applies, no output otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests_support import resolve

from zoo import recipe as recipes
from zoo import sampling, training
from zoo.recipe import Recipe
from zoo.recipe_tables import Schedule
from zoo.training import build, lint, optim

COUNTS = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])


def recipe(*settings: str) -> Recipe:
    """A plain run without findings, with ``key=value`` changes."""
    plain = ("schedule=constant", "epochs=50", "batch_size=128")
    return recipes.resolve("cnn_small", dict(recipes.parse_override(text) for text in (*plain, *settings)))


FINDINGS = [
    ("class_weights=effective beta=0.8", "beta 0.8 changes no class weight by more than 1.3e-5"),
    ("class_weights=effective beta=0", "beta 0 changes no class weight by more than 0"),
    ("class_weights=effective beta=0.9", "beta 0.9 changes no class weight by more than 0.0046"),
    ("loss=focal class_weights=effective beta=0.9999", "the mean weight is 0.17: the same as dividing lr by 5.8"),
    (
        "loss=ce_then_focal loss.switch_epoch=20 class_weights=effective",
        "the mean weight is 0.17 from epoch 21 on: the same as dividing lr by 5.8",
    ),
    (
        "loss=hybrid loss.drw_epoch=40 class_weights=effective",
        "the mean weight of the focal part is 0.17 from epoch 41 on: the same as dividing that part by 5.8",
    ),
    ("schedule=multistep steps=[100,101]", "steps [100, 101] are not reached in 50 epochs; the rate stays 0.1"),
    ("schedule=multistep steps=[25,50]", "steps [50] are not reached in 50 epochs"),
    ("schedule=multistep steps=[6,8] epochs=80 lr=0.01", "72 of 80 epochs run at 1e-4"),
    ("schedule=step step_size=10 epochs=40 lr=0.1 lr_gamma=0.01", "30 of 40 epochs run at 0.001 or less"),
    ("schedule=step step_size=50", "schedule step has no step in 50 epochs: the rate stays 0.1"),
    ("warmup=50", "the warm-up of 50 epochs fills all 50: the rate never reaches 0.1"),
    ("", "batch 128 sees class 9 in 40 % of steps"),
    ("batch_size=32", "batch 32 sees class 9 in 12 % of steps"),
    ("freeze=conv", "freeze conv with weights none: every frozen layer is random"),
    ("loss.drw_epoch=40", "drw_epoch 40 changes nothing: class_weights is none"),
    ("beta=0.9", "beta 0.9 changes nothing: class_weights none does not use it"),
    ("steps=[30]", "steps [30] changes nothing: schedule constant does not use it"),
    ("schedule=multistep steps=[30] step_size=10", "step_size 10 changes nothing: schedule multistep does not use it"),
    ("qat_bits=7", "qat_bits 7 changes nothing: qat is off"),
    ("data.views=4", "views 4 changes nothing: no layer is frozen"),
    ("features_with=onnxruntime", "features_with onnxruntime changes nothing: no layer is frozen"),
    ("data.per_class=60", "per_class 60 is more than class 9 has: 50 images"),
    ("mix_prob=0.5", "mix_prob 0.5 changes nothing: mixup and cutmix are 0"),
    ("mix_with=rare", "mix_with rare changes nothing: mixup and cutmix are 0"),
    ("sampler.exponent=3", "exponent 3 changes nothing: sampler none does not use it"),
    ("optim=adamw momentum=0.5", "momentum 0.5 changes nothing: optim adamw does not use it"),
    ("optim=adamw nesterov=false", "nesterov False changes nothing: optim adamw does not use it"),
    ("distil.temperature=2", "distil.temperature 2 changes nothing: distil.teacher is empty"),
    ("distil.weight=0.5", "distil.weight 0.5 changes nothing: distil.teacher is empty"),
    ("patience=5 data.val=0", "patience 5 changes nothing: there are no validation images (data.val 0)"),
    ("select_by=macro data.val=0", "select_by macro changes nothing: there are no validation images (data.val 0)"),
    ("loss=ce_then_focal loss.switch_epoch=50", "switch_epoch 50 is not reached in 50 epochs: all epochs use cross entropy"),
    (
        "loss=balanced_softmax class_weights=inverse sampler=class_balanced",
        "sampler class_balanced and class_weights inverse and loss balanced_softmax each balance the classes: "
        "together they favour the rare ones",
    ),
    ("loss=ldam", "ldam has its margins in cosines, which cnn_small does not return; models that do: resnet32_cosine"),
    ("loss=dbm", "dbm has its margins in cosines, which cnn_small does not return; models that do: resnet32_cosine"),
    ("loss=dynamic_focal loss.rescale_every=50", "rescale_every 50 is not reached in 50 epochs: the scale stays 1"),
]


@pytest.mark.parametrize(("settings", "line"), FINDINGS, ids=[line for _, line in FINDINGS])
def test_what_is_found(settings: str, line: str) -> None:
    assert line in lint.check(recipe(*settings.split()), COUNTS)


def test_the_rarest_class_is_named_once_its_name_is_known() -> None:
    names = [f"name {number}" for number in range(10)]
    assert "batch 128 sees class 9 (name 9) in 40 % of steps" in lint.check(recipe(), COUNTS, classes=names)


def test_a_share_that_holds_out_no_image_is_named() -> None:
    line = "data.val 0.001 of 360 images is none: the last epoch is kept"
    small = recipe("data.val=0.001")
    assert line in lint.check(small, COUNTS.clip(max=36), held=0)
    assert line not in lint.check(small, COUNTS.clip(max=36), held=1) + lint.check(small, COUNTS.clip(max=36))
    assert not [each for each in lint.check(recipe("data.val=0"), COUNTS, held=0) if "is none" in each]


def test_equal_classes_of_a_long_tail_are_named() -> None:
    thinned = recipe("batch_size=512", "data.imbalance=exp:0.01", "data.per_class=50")
    line = "per_class 50 makes all classes equal: nothing is left of imbalance exp:0.01"
    assert lint.check(thinned, np.full(10, 50)) == [line]
    assert lint.check(thinned, COUNTS.clip(max=100)) == []


@pytest.mark.parametrize(
    "settings",
    [
        "batch_size=512 patience=5 data.val=0 select_on=test",
        "batch_size=512 patience=5 data.val=0.1",
        "batch_size=512 schedule=plateau lr_gamma=0.5 plateau_epochs=3",
        "batch_size=512 sampler=focal sampler.exponent=3",
        "batch_size=512 class_weights=effective beta=0.999",
        "batch_size=512 class_weights=effective beta=0.9999",  # cross entropy divides by the weights of the batch
        "batch_size=512 loss=focal sampler=class_balanced",  # mean weight 1
        "sampler=class_balanced",
        "batch_size=512 schedule=multistep steps=[25,40] lr=0.01",
        "batch_size=512 schedule=step step_size=30 epochs=90",
        "batch_size=512 loss=focal focal_gamma=1",
    ],
)
def test_where_nothing_is_wrong_nothing_is_said(settings: str) -> None:
    assert lint.check(recipe(*settings.split()), COUNTS) == []


@pytest.mark.parametrize(
    ("settings", "held", "says"),
    [
        (
            "",
            116,
            "116 validation images select the epoch: an accuracy of 90 % on them is uncertain by 5.5 points; data.val=0 keeps the last epoch",
        ),
        ("", 250, ""),
        ("", 0, ""),
        ("epochs=1", 116, ""),
        ("select_on=test", 116, ""),
    ],
)
def test_few_validation_images_are_named(settings: str, held: int, says: str) -> None:
    plain = recipe("batch_size=512", *settings.split())
    found = [line for line in lint.check(plain, COUNTS, held=held) if "validation" in line]
    assert found == [says][: bool(says)]


def test_random_frozen_tensors_are_named() -> None:
    found = lint.check(recipe("batch_size=512", "freeze=conv"), COUNTS, ["features.0.weight", "features.1.bias"])
    assert found == ["freeze conv keeps 2 tensors at random values (features.0.weight, ...): no weights were loaded for them"]


@pytest.mark.parametrize(
    "schedule",
    [Schedule("multistep", steps=[3, 7, 20]), Schedule("step", step_size=4, lr_gamma=0.1), Schedule("step", step_size=1)],
)
def test_the_epochs_at_a_small_rate_are_those_of_the_optimizer(schedule: Schedule) -> None:
    epochs, lr = 16, 0.2
    made = optim.Schedule(
        lr=lr, epochs=epochs, steps_per_epoch=3, name=schedule.name, steps=schedule.steps, step_size=schedule.step_size,
        lr_gamma=schedule.lr_gamma,
    )  # fmt: skip
    rates = [made.lr_at(3 * epoch) for epoch in range(epochs)]
    small = sum(rate <= lr / 100 * (1 + 1e-9) for rate in rates)
    assert small > lint.SMALL_SHARE * epochs
    assert any(line.startswith(f"{small} of 16 epochs run at") for line in lint._schedule(schedule, epochs, lr))


def test_counts_are_known_before_the_data_is_read_where_classes_are_equal() -> None:
    assert lint.expected_counts(recipe("data=cifar10", "imbalance=exp:0.01", "data.val=0")).tolist() == COUNTS.tolist()
    assert lint.expected_counts(recipe("data=cifar10", "data.val=0.1")).tolist() == [4500] * 10
    assert lint.expected_counts(recipe("data=caltech101")) is None


def test_expected_counts_are_the_real_ones() -> None:
    mine = resolve("cnn_small", "data.val=0.2", "data.imbalance=exp:0.05", "data.per_class=0")
    data = build.dataset(mine, 32)
    index = sampling.long_tail(data.train.targets, "exp:0.05", mine.seed)
    assert np.array_equal(lint.expected_counts(mine), sampling.class_counts(data.train.targets[index], 10))


def test_a_run_says_its_findings_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("class_weights=effective", "beta=0.5", "freeze=stage<=0", "allow_random_frozen=true", "data.imbalance=exp:0.1")
    folder = training.train(resolve("cnn_small", *settings), out=tmp_path / "run")
    warnings = [line.removeprefix("warning  ") for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == json.loads((folder / "env.json").read_text())["lint"]
    assert any(line.startswith("beta 0.5 changes no class weight by more than") for line in warnings)
    assert any(
        line.startswith("freeze stage<=0 keeps") and "tensors at random values (features.0.weight" in line for line in warnings
    )
