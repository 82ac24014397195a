"""Transfer: stored features, views, few images per class, and their messages."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests_support import resolve
from torch import Tensor

from zoo import recipe as recipes
from zoo import registry, sampling, tensor_files, training
from zoo.cli.train import command
from zoo.errors import DisagreeError, UsageError
from zoo.training import build, checkpoint, checks, feature_runtimes, features
from zoo.training.feature_cache import FeatureCache, digest, image_key
from zoo.training.views import KINDS, AveragedViews


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    return tmp_path / "features"


def some(*values: float) -> Tensor:
    return torch.tensor([[value, 1.0] for value in values])


def test_features_are_kept_by_image(cache_folder: Path) -> None:
    cache = FeatureCache.read("abc")
    assert cache.missing([10, 11, 10, 12]) == [0, 1, 3], "each image once"
    cache.add([10, 11, 12], some(0, 1, 2))
    cache.write()
    again = FeatureCache.read("abc")
    assert again.missing([12, 13, 10]) == [1]
    assert torch.equal(again.get([12, 10]), some(2, 0))
    assert FeatureCache.read("abd").rows == {}, "of another frozen part"


def test_damaged_features_are_computed_again(cache_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = FeatureCache.read("abc")
    cache.add([10], some(0))
    cache.write()
    raw = bytearray(cache.path.read_bytes())
    raw[-1] ^= 1
    cache.path.write_bytes(raw)
    assert FeatureCache.read("abc").rows == {}
    assert "stored features are ignored and computed again: checksum differs" in capsys.readouterr().err


def test_a_disk_that_takes_nothing_costs_only_time(cache_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache_folder.write_text("a file")
    cache = FeatureCache("abc")
    cache.add([10], some(0))
    cache.write()
    assert "features are not stored on disk" in capsys.readouterr().err


def test_digests_see_what_features_depend_on() -> None:
    weights = {"a": torch.ones(2), "b": torch.zeros(2)}
    same = digest(weights, {"size": 224})
    assert same == digest(dict(weights), {"size": 224})
    others = [
        digest({"a": torch.ones(2), "b": torch.tensor([0.0, -0.0])}, {"size": 224}),
        digest({"a": torch.ones(2), "c": torch.zeros(2)}, {"size": 224}),
        digest(weights, {"size": 192}),
    ]
    assert same not in others
    image, draws = np.zeros((4, 4, 3), np.uint8), np.zeros(3)
    changed = image.copy()
    changed[3, 3, 2] = 1
    keys = {
        image_key(image, draws, ()), image_key(changed, draws, ()), image_key(image, draws, ["flip"]), image_key(image, draws + 1, ["flip"]),
    }  # fmt: skip
    assert len(keys) == 4
    assert image_key(image, draws, ()) == image_key(image, draws + 1, ()), "without augmentation there are no draws"


def test_few_images_per_class() -> None:
    targets = np.repeat([0, 1, 2], [50, 7, 30])
    few = sampling.per_class(targets, 10, seed=3)
    assert np.bincount(targets[few]).tolist() == [10, 7, 10]
    assert few.tolist() == sorted(few.tolist())
    assert set(sampling.per_class(targets, 5, seed=3)) < set(few), "fewer images are among those of more"
    assert not np.array_equal(few, sampling.per_class(targets, 10, seed=4))
    assert len(sampling.per_class(targets, 0, seed=3)) == len(targets)


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the small net in a file."""
    path = tmp_path_factory.mktemp("donor") / "net.pth"
    torch.manual_seed(3)
    torch.save(registry.find("models", "cnn_small").build(10).state_dict(), path)
    return path


def frozen(donor: Path, *settings: str) -> recipes.Recipe:
    return resolve("cnn_small", f"weights={donor}", "freeze=conv", "data.augment=[]", "lr=0.05", *settings)


def state(folder: Path) -> dict[str, Tensor]:
    return tensor_files.load_tensors(checkpoint.states(folder)[0])[0]


def test_a_second_run_computes_no_features(
    donor: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = training.train(frozen(donor), out=tmp_path / "one")
    said = capsys.readouterr().err
    assert "frozen layers run once for " in said
    assert len(list(cache_folder.iterdir())) == 1
    monkeypatch.setattr(FeatureCache, "add", None)
    two = training.train(frozen(donor), out=tmp_path / "two")
    assert " (0 computed, the others stored), " in capsys.readouterr().err
    one_state, two_state = state(one), state(two)
    assert [name for name in one_state if not torch.equal(one_state[name], two_state[name])] == []


def test_views_are_the_images_of_the_first_epochs(
    donor: Path, cache_folder: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("epochs=2", "data.augment=['crop','flip']")
    plain = training.train(frozen(donor, *settings), out=tmp_path / "plain")
    assert "data.views=4 stores four views of each" in capsys.readouterr().err
    viewed = training.train(frozen(donor, *settings, "data.views=2"), out=tmp_path / "viewed")
    assert "images, 2 augmented views of each training image" in capsys.readouterr().err
    one, two = state(plain), state(viewed)
    assert [name for name in one if name.startswith("model.") and not torch.equal(one[name], two[name])] == []


def test_the_time_of_a_run_includes_its_features(donor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = features.stored

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(2.5)
        return real(*arguments, **options)

    monkeypatch.setattr(features, "stored", slow)
    run = training.train(frozen(donor), out=tmp_path / "run")
    found = json.loads((run / "result.json").read_text())["seconds"]
    epochs = sum(row["seconds"] for row in checkpoint.read_rows(run) if row["split"] == "train")
    assert found >= epochs + 2.4


def test_features_follow_the_view_of_an_epoch(donor: Path) -> None:
    made, _ = session_of(frozen(donor, "data.augment=['flip']", "data.views=3"))
    given = torch.arange(3.0)[:, None, None].expand(3, len(made.batches.index), 1)
    batches = features.replace(made.batches, features=given)
    assert [float(next(batches.epoch(epoch)).inputs[0, 0]) for epoch in range(5)] == [0, 1, 2, 0, 1]


def session_of(recipe: recipes.Recipe) -> tuple[Any, list[str]]:
    from zoo.training.processes import Team

    return build.session(recipe, Path("unused"), build.place(recipe, Team()), Team())


def test_per_class_and_statistics_of_the_recipe(donor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = session_of(frozen(donor, "data.per_class=5", "data.mean=[0.1,0.2,0.3]", "data.std=[1,2,3]"))
    assert np.bincount(made.data.train.targets[made.batches.index]).tolist() == [5] * 10
    assert made.batches.mean == (0.1, 0.2, 0.3)
    assert made.test.std == (1.0, 2.0, 3.0)
    assert (
        "normalised with mean (0.1, 0.2, 0.3), std (1.0, 2.0, 3.0): data.mean and data.std of the recipe"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("setting", ["data.mean=[0.1,0.2,0.3]", "data.std=[1,2]"])
def test_statistics_come_in_threes(setting: str) -> None:
    with pytest.raises(UsageError, match=r"data\.mean has \d numbers, data\.std \d; give three of each"):
        recipes.check(resolve("cnn_small", setting))


def test_features_of_another_runtime(
    donor: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    made, _ = session_of(frozen(donor, "precision=fp32", "features_with=onnxruntime"))
    capsys.readouterr()
    given = features.replace(made.batches, index=made.batches.index[:50])
    head, stored, _ = features.stored(
        made.model,
        ("", made.spec.head),
        made.frozen.names,
        given,
        None,
        precision="fp32",
        name="cnn_small",
        runtime="onnxruntime",
    )
    assert "onnxruntime agrees with PyTorch on 50 images of the run: largest relative difference " in capsys.readouterr().err
    assert head == made.spec.head
    assert stored.features is not None
    assert stored.features.shape[:2] == (1, 50)


def test_stored_features_are_not_those_of_changed_code(
    donor: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = session_of(frozen(donor, "precision=fp32"))
    given = features.replace(made.batches, index=made.batches.index[:50])

    def stored(name: str = "cnn_small") -> Tensor:
        capsys.readouterr()
        _, found, _ = features.stored(
            made.model, (made.spec.head,), made.frozen.names, given, None, precision="fp32", name=name
        )
        assert found.features is not None
        return found.features

    first = stored()
    assert torch.equal(stored(), first)
    assert "(0 computed, the others stored)" in capsys.readouterr().err
    original = type(made.model).forward
    monkeypatch.setattr(type(made.model), "forward", lambda self, images: original(self, 1.01 * images))
    assert not torch.allclose(stored(), first, rtol=1e-3)
    printed = capsys.readouterr().err
    assert "the stored features are of another version of the network" in printed
    assert "others stored" not in printed
    stored("another")
    assert "stored features are" not in capsys.readouterr().err


def test_another_runtime_must_agree() -> None:
    expected = torch.tensor([[1.0, -4.0]])
    assert "1 images of the run" in feature_runtimes.check("openvino", expected + 0.0039, expected)
    for found in (expected + 0.0041, expected * float("nan")):
        with pytest.raises(
            DisagreeError,
            match=r"features of openvino differ from PyTorch's \(largest relative difference .*, allowed 0\.001\)",
        ):
            feature_runtimes.check("openvino", found, expected)


def test_another_runtime_is_for_fp32_on_the_cpu_and_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Identity())
    with pytest.raises(UsageError, match=r"computes in fp32 on the CPU \(found torch\.bfloat16 on cpu\)"):
        feature_runtimes.runner("openvino", model, "0", torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match="features_with = openvino needs a package; install it: pip install openvino"):
        feature_runtimes.runner("openvino", model, "0", torch.zeros(1, 3, 4, 4))


def test_features_of_layers_that_cannot_be_traced() -> None:
    class Branch(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))

    model = torch.nn.Sequential(Branch(), torch.nn.Linear(3, 2))
    pytest.importorskip("onnxruntime")
    with pytest.raises(
        UsageError, match=r"features_with = onnxruntime: the frozen layers cannot be traced \(\w+\); use features_with"
    ):
        feature_runtimes.runner("onnxruntime", model, "1", torch.rand(2, 3, 4, 4))
    with pytest.raises(DisagreeError, match=r"features of onnxruntime have the shape \(2, 3\), PyTorch's \(2, 4\)"):
        feature_runtimes.check("onnxruntime", torch.zeros(2, 3), torch.zeros(2, 4))


class Corner(torch.nn.Module):
    """Logits (N, 2) from the top left pixel of an image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 0, 0, 0], torch.zeros(len(images))], 1)


@pytest.mark.parametrize(("kind", "pixels"), [("flip", [5, 6]), ("crops", [0, 1, 2, 3, 5, 6, 8, 9, 10, 11])])
def test_views_are_averaged(kind: str, pixels: list[int]) -> None:
    """A 4x4 image numbered by rows, 2x2 views: the top left pixel of each view and of its mirror image."""
    image = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(1, 3, 1, 1) / 4
    found = AveragedViews(Corner(), 2, kind)(image).exp()
    assert found[0, 0] == pytest.approx(float(torch.sigmoid(torch.tensor(pixels) / 4).mean()), abs=1e-6)
    assert len(pixels) == KINDS[kind]


def test_a_dry_run_prints_the_freeze_table(donor: Path) -> None:
    result = CliRunner().invoke(
        command, ["cnn_small", "--data", "synthetic", "--weights", str(donor), "--freeze", "conv", "--dry-run"]
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"^freeze   conv: [\d,]+ parameters frozen, [\d,]+ trained, \d+ BatchNorms fixed$", result.output, re.M)


@pytest.mark.parametrize("name", [name for name in recipes.shipped() if name.startswith(("caltech101_", "s4_"))])
def test_what_shipped_recipes_freeze(name: str) -> None:
    recipe = recipes.read(recipes.shipped()[name])
    if recipe.freeze != "none" and recipe.weights == "none" and not recipe.allow_random_frozen:
        with pytest.raises(UsageError, match="random tensors"):  # its weights are those of a run given by the user
            checks.freeze_lines(recipe)
        return
    assert bool(checks.freeze_lines(recipe)) == (recipe.freeze != "none" or bool(recipe.unfreeze))
