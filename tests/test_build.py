"""From a recipe and the training counts to a loss, its weights and a sampler; every mistake is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import tree
from tests_support import resolve

from zoo import recipe, sampling, training
from zoo import run as engine
from zoo.__main__ import run as zoo
from zoo.data._read import read
from zoo.errors import DataError, UsageError
from zoo.spec import DataSet, Given, Split
from zoo.training import build, checks, lint, losses
from zoo.training.processes import Team

COUNTS = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("loss.drw_epoch=1", r"drw_epoch = 1 is past the end \(1 epochs\).*less than 1"),
        ("class_weights=given", "loss.given_weights=.* need each other"),
        ("loss.given_weights=[1,2]", "loss.given_weights=.* need each other"),
        ("class_weights=given loss.given_weights=[0,0]", "given_weights are all 0"),
        ("loss=focl", "no loss 'focl' .*did you mean focal"),
    ],
)
def test_what_is_wrong_before_any_data_is_read(settings: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        recipe.check(resolve("cnn_small", *settings.split()))


def test_weights_of_a_wrong_length_are_reported() -> None:
    with pytest.raises(UsageError, match=r"given_weights has 2 numbers, the data 10 classes"):
        losses.build(resolve("cnn_small", "class_weights=given", "loss.given_weights=[1,2]"), COUNTS)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("effective", sampling.effective_weights(COUNTS, 0.9999)),
        ("inverse", (1 / COUNTS) * 10 / (1 / COUNTS).sum()),
        ("sqrt_inverse", COUNTS**-0.5 * 10 / (COUNTS**-0.5).sum()),
        ("given", np.arange(10)),
    ],
)
def test_class_weights(kind: str, expected: np.ndarray) -> None:
    given = f"loss.given_weights={list(range(10)) if kind == 'given' else []}"
    loss, weight = losses.build(resolve("cnn_small", "loss=focal", f"class_weights={kind}", given), COUNTS)
    assert weight is not None
    assert weight.numpy() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(loss.weight, weight)


def test_the_mean_weight_of_the_reported_experiment() -> None:
    """With weights that sum to C and a plain mean, beta 0.9999 divides the loss of this tail by 5.8 (0.171 was measured)."""
    weights = sampling.effective_weights(COUNTS, 0.9999)
    assert (COUNTS * weights).sum() / COUNTS.sum() == pytest.approx(0.171, abs=5e-4)


def test_losses_that_need_the_counts_get_them() -> None:
    loss, weight = losses.build(resolve("cnn_small", "loss=balanced_softmax"), COUNTS)
    assert weight is None
    assert loss.shift.numpy() == pytest.approx(np.log(COUNTS / COUNTS.sum()))


def test_a_sampler_covers_the_long_tail_only() -> None:
    targets, index = np.arange(60) % 3, np.arange(0, 60, 2)
    sampler = build.build_sampler(resolve("cnn_small", "sampler=square_root"), targets, index)
    assert sampler is not None
    assert set(sampler.order(0)) <= set(index)
    assert build.build_sampler(resolve("cnn_small"), targets, index) is None


@pytest.mark.parametrize(("model", "size"), [("cnn_small", 40), ("timm/test_resnet", 64), ("timm/test_vit", 64)])
def test_the_size_of_the_images_can_be_chosen(model: str, size: int, tmp_path: Path) -> None:
    """The run, its images and its export have that size."""
    chosen = resolve(model, "data=synthetic", f"data.size={size}", "data.augment=[]")
    session, _ = build.session(chosen, tmp_path, build.place(chosen, Team()), Team())
    inputs = next(session.test.epoch(0)).inputs
    assert inputs.shape[1:] == session.spec.input == (3, size, size)
    assert session.model(inputs[:2].float()).shape == (2, 10)


@pytest.mark.parametrize(
    ("model", "size", "says"),
    [
        ("timm/test_vit", 8, r"timm/test_vit does not take images of 8 pixels \(data.size, .*; use 160$"),
        ("cnn_small", 1, r"cnn_small does not take images of 1 pixels \(data.size, .*; use 32$"),
    ],
)
def test_a_size_that_the_model_does_not_take_is_refused(model: str, size: int, says: str, tmp_path: Path) -> None:
    chosen = resolve(model, "data=synthetic", f"data.size={size}")
    with pytest.raises(UsageError, match=says):
        build.session(chosen, tmp_path, build.place(chosen, Team()), Team())


def test_a_builder_with_an_image_size_is_given_the_size(tmp_path: Path) -> None:
    """Its run is built the same way when it is loaded, used as a teacher and trained on."""
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n"
        "class Flat(nn.Module):\n"
        "    def __init__(self, classes, image_size=32):\n"
        "        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, classes))\n"
        "    def forward(self, images):\n"
        "        return self.net(images)\n"
    )
    small = {"data.size": 16, "epochs": 1, "data.augment": [], "data.name": "synthetic"}
    path = training.train(recipe.resolve(f"{file}:Flat", small), out=tmp_path / "run")
    run = engine.load(path)
    assert run.input == (3, 16, 16) and run.model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    taught = recipe.resolve(f"{file}:Flat", small | {"distil.teacher": [str(path)], "distil.weight": 0.5})
    assert training.train(taught, out=tmp_path / "taught").is_dir()
    assert training.train(recipe.resolve(str(path), {}), out=tmp_path / "more").is_dir()


@pytest.mark.parametrize(("side", "batch"), [(32, 256), (96, 256), (224, 64), (4000, 1)])
def test_batches_without_gradients_are_limited_in_pixels(side: int, batch: int) -> None:
    data = read("synthetic", "", size=32, val=0.1, seed=0)
    assert build.eval_batches(data.test, data, torch.device("cpu"), side, "fp32").batch_size == batch


DRY = [
    (["--data", "/no/such"], 3, "no data folder (/no/such)"),
    (["--data", "gone.csv"], 3, "no data file ("),
    (["--data", "gone.npz"], 3, "no data file ("),
    (["--data", "cifra10"], 2, "no data set, folder or file 'cifra10' (did you mean cifar10"),
    (["data.augment=['cropp']"], 2, "no augmentation 'cropp'"),
    (["distil.teacher=['nope']"], 2, "no run 'nope'"),
    (["schedule.name=plateau", "data.val=0"], 2, "schedule = plateau needs validation images"),
    (["--data-dir", "photos"], 2, "synthetic images are generated, not read from data.dir (photos); did you mean --data?"),
    (["data.size=1"], 2, "does not take images of 1 pixels"),
    (["--weights", "nope.pth"], 4, "no weights file ("),
    (["unfreeze=['2:none']"], 2, "unfreeze 2:none"),
    (["imbalance=exp:0.001"], 3, "1 class has no training image (synthetic); lower the imbalance"),
]


@pytest.mark.parametrize(("words", "code", "says"), DRY, ids=[says for *_, says in DRY])
def test_a_dry_run_refuses_what_training_refuses(
    words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if "--data" in words else ["data=synthetic"]
    assert zoo(["train", "cnn_small", *data, *words, "--dry-run"]) == code
    assert says in capsys.readouterr().err


def test_a_dry_run_counts_the_images_of_folders_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "pets", n=10)
    lines = [f"pets/train/{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(10)]
    (tmp_path / "l.csv").write_text("path,label\n" + "\n".join(lines))
    for source, counts in (("pets", "18 train (9, 9)"), ("l.csv", "14 train (7, 7)")):
        assert zoo(["train", "cnn_small", "--data", str(tmp_path / source), "--dry-run"]) == 0
        assert f"data     {source} · {counts}" in capsys.readouterr().err
    made = recipe.resolve("cnn_small", {"data": "list", "data.dir": str(tmp_path / "l.csv")})
    real = build.dataset(made, 28).train.targets
    assert lint.expected_counts(made).tolist() == np.bincount(real).tolist()


def _images(**changed: Any) -> DataSet:
    whole = {"images": np.zeros((6, 32, 32, 3), np.uint8), "targets": np.arange(6) % 2, "files": [str(i) for i in range(6)]}
    train, test = Split(**(whole | changed)), Split(**whole)
    empty = Split(whole["images"][:0], whole["targets"][:0], [])
    return DataSet("own", ("a", "b"), train, empty, test, (0.5,) * 3, (0.5,) * 3, "0")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"images": np.zeros((6, 32, 32, 3), np.float32)}, r"images are not uint8 \(own, train, float32\)"),
        ({"images": [[0]] * 6}, r"images are not uint8 \(own, train, list\)"),
        ({"images": np.zeros((6, 3, 32, 32), np.uint8)}, r"not square and in colour \(own, train, shape \(6, 3, 32, 32\)\)"),
        ({"images": np.zeros((6, 32, 32), np.uint8)}, "not square and in colour"),
        ({"images": np.zeros((7, 32, 32, 3), np.uint8)}, r"lengths differ \(own, train, 7 images, 6 labels, 6 files\)"),
        ({"targets": [0, 1, 0, 1, 0, 1]}, r"labels are not whole numbers \(own, train, list\)"),
        ({"targets": np.zeros(6)}, r"labels are not whole numbers \(own, train, float64\)"),
        ({"targets": np.arange(6)}, r"label out of range \(2, label 2, 2 classes\)"),
    ],
)
def test_own_data_of_a_wrong_form_is_refused(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    checks.check_data(_images())
    with pytest.raises(DataError, match=says):
        training.train(
            recipe.resolve("cnn_small", {"device": "cpu"}), out=tmp_path / "run", given=Given(data=_images(**changed))
        )
