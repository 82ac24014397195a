"""Runs on a data set or loss given as a Python object, and runs whose data changed: no command replaces their images by others."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from PIL import Image
from tests_support import resolve
from torch import Tensor, nn

import zoo
from zoo import __main__ as cli
from zoo import ops, report, run_folders, training
from zoo import run as engine
from zoo.errors import DataError, FileError, UsageError
from zoo.spec import DataSet, Given, Split
from zoo.training import checks, describe, losses, start
from zoo.training.processes import Team
from zoo.training.signals import Stop

SMALL = {"epochs": 1, "batch_size": 16, "data__augment": [], "device": "cpu"}


def split(n: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 3, [f"{i}.png" for i in range(n)])


def given(seed: int = 0) -> DataSet:
    """30 training, 6 validation and 9 test images that differ with the seed, whose files have the same names."""
    parts = split(30, seed), split(6, seed + 1), split(9, seed + 2)
    return DataSet("mine", ("a", "b", "c"), *parts, (0.5,) * 3, (0.25,) * 3, digest=f"{seed:064x}")


def test_data_given_in_python_is_named_and_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = zoo.train("cnn_small", data=given(), out=tmp_path / "run", **SMALL)
    assert "mine" in (run.path / "recipe.toml").read_text().splitlines()[0]
    assert "on mine" in (run.path / "README.md").read_text()
    loaded = zoo.load(run.path)
    for use in (loaded.dataset, lambda: engine.evaluate(loaded), lambda: engine.calibrate(loaded)):
        with pytest.raises(DataError, match=r"trained on a DataSet given in Python \(mine\); pass it: zoo.load"):
            use()
    for each in (run, zoo.load(run.path, data=given())):
        assert engine.evaluate(each)[0].n == 9
        receipt = zoo.export.onnx(each, precision="int8", force=True, max_drop=100)
        assert (receipt.n, receipt.images) == (9, "test images of mine")
    with pytest.raises(FileError, match="classes differ"):
        zoo.load(run.path, data=dataclasses.replace(given(), classes=("a", "b", "d")))
    with pytest.raises(UsageError, match="name the data"):
        zoo.train(str(run.path), out=tmp_path / "on")
    again = f"zoo.train({str(run.path / 'recipe.toml')!r}, data=...)"
    assert again in (run.path / "README.md").read_text()
    resumed = again.replace(")", f", out={str(run.path)!r}, resume=True)")
    for words, call in (((str(run.path / "recipe.toml"),), again), (("--resume", "--out", str(run.path)), resumed)):
        assert cli.run(["train", *words]) == 2
        assert f"objects given in Python (data mine), which no file has; pass them: {call}" in capsys.readouterr().err
    assert cli.run(["train", str(run.path / "recipe.toml"), "--data", "synthetic", "--val", "0.2", "--dry-run"]) == 0
    assert zoo.train(str(run.path), data=given(), out=tmp_path / "on", epochs=1).env["data_given"] == "mine"


def test_given_images_of_another_size_are_resized_in_training_as_in_prediction(tmp_path: Path, capsys: Any) -> None:
    large = []
    for seed, n in ((0, 30), (1, 6), (2, 9)):
        small = split(n, seed)
        images = np.full((n, 48, 48, 3), 200, np.uint8)
        images[:, 8:40, 8:40] = small.images  # what a crop of the centre would leave
        large.append(dataclasses.replace(small, images=images))
    data = DataSet("mine", ("a", "b", "c"), *large, np.full(3, 0.5), np.full(3, 0.25, np.float32), digest="0")  # type: ignore[arg-type]
    run = zoo.train("cnn_small", data=data, out=tmp_path / "run", **SMALL)
    assert "images of 48 pixels are resized to 32" in capsys.readouterr().err
    _, logits, _ = engine.evaluate(run, data=data)
    for at in range(3):
        Image.fromarray(large[2].images[at]).save(tmp_path / f"{at}.png")
    answers = run.predict([tmp_path / f"{at}.png" for at in range(3)], top=3)
    for found, of_data in zip(answers, logits.float().softmax(1).tolist()):
        assert dict(found["top"]) == pytest.approx(dict(zip("abc", of_data)), abs=2e-3)


def test_what_evaluation_is_given_is_checked(tmp_path: Path, capsys: Any) -> None:
    run = zoo.train("cnn_small", data=given(), out=tmp_path / "run", **SMALL)
    test = given().test
    with pytest.raises(DataError, match=r"images are not uint8 \(mine, test, float32\)"):
        engine.evaluate(
            run, data=dataclasses.replace(given(), test=dataclasses.replace(test, images=test.images / np.float32(255)))
        )
    tensors = Split(torch.tensor(test.images), torch.tensor(test.targets), test.files)  # type: ignore[arg-type]
    assert engine.evaluate(run, data=dataclasses.replace(given(), test=tensors))[0].n == 9
    copied = dataclasses.replace(given(), test=given().train)
    zoo.train("cnn_small", data=copied, out=tmp_path / "leak", **SMALL)
    assert "warning  30 test images are also training images" in capsys.readouterr().err


def test_names_and_wrong_objects_as_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def train(recipe: Any, **options: Any) -> Path:
        asked.append((recipe.data.name, recipe.data.dir, recipe.loss.name, options["given"]))
        raise UsageError("stopped here")

    monkeypatch.setattr(training, "train", train)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match="stopped here"):
        zoo.train("cnn_small", data=tmp_path / "photos", loss="focal")
    assert asked == [("folder", str(tmp_path / "photos"), "focal", Given())]
    with pytest.raises(TypeError, match=r"the class CrossEntropyLoss; give an instance: CrossEntropyLoss\(\)"):
        zoo.train("cnn_small", loss=nn.CrossEntropyLoss)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="on_epoch is int; give a function"):
        zoo.train("cnn_small", on_epoch=3)  # type: ignore[arg-type]


def test_an_interrupt_is_that_of_python_and_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(rows: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"the state is saved; resume .*out='.*run', resume=True"):
        zoo.train("cnn_small", data=given(), out=tmp_path / "run", on_epoch=interrupted, **SMALL | {"epochs": 2})
    assert zoo.train("cnn_small", data=given(), out=tmp_path / "run", resume=True, **SMALL | {"epochs": 2}).metrics


def test_another_signal_ends_the_process_with_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        zoo.train(
            "cnn_small",
            data=given(),
            out=tmp_path / "run",
            on_epoch=lambda _: os.kill(os.getpid(), signal.SIGTERM),
            **SMALL | {"epochs": 2},
        )
    assert caught.value.code == 143
    assert "zoo.train: stopped by SIGTERM; the state is saved; resume with the same arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"data__val": 0.5}, "data.val has no effect on a data set given in Python; give it to zoo.data_set"),
        ({"data__dir": "elsewhere"}, "data.dir has no effect on a data set given in Python"),
        (
            {"loss": nn.CrossEntropyLoss(), "label_smoothing": 0.2},
            "loss.label_smoothing has no effect on a loss given in Python",
        ),
        ({"loss": nn.CrossEntropyLoss(), "loss__beta": 0.5}, "loss.beta has no effect on a loss given in Python"),
    ],
)
def test_settings_of_what_is_an_object_are_an_error(more: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        zoo.train("cnn_small", data=given(), **more)


def test_a_loss_of_zoo_is_described_by_its_kernel() -> None:
    for name in ("focal", "dynamic_focal", "hybrid", "ce_then_focal"):
        assert describe.objects(Given(loss=zoo.create_loss(name)))["kernel"] == ops.kernel()
    assert describe.objects(Given(loss=zoo.create_loss("cross_entropy")))["kernel"] == "PyTorch"


@pytest.mark.parametrize("form", ["tensors", "grey", "floats", "one-hot", "wide"])
def test_arrays_become_a_data_set(form: str) -> None:
    x, y = split(40, 0).images, np.arange(40) % 3
    given_x: Any = x
    given_y: Any = y
    if form == "tensors":
        given_x, given_y = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(y)
    elif form == "grey":
        given_x = x[..., 0]
    elif form == "floats":
        given_x = x / np.float32(255)
    elif form == "one-hot":
        given_y = np.eye(3)[y]
    elif form == "wide":
        given_x = np.pad(x, ((0, 0), (0, 0), (4, 4), (0, 0)))
    made = zoo.data_set((given_x, given_y), test=(given_x[:9], given_y[:9]), val=0.25, classes=("a", "b", "c"))
    checks.check_data(made)
    assert (len(made.train), len(made.val), len(made.test), made.classes) == (30, 10, 9, ("a", "b", "c"))
    assert any("test images are also training images" in note for note in made.notes)
    at = int(made.train.files[0].removeprefix("train[").rstrip("]"))
    expected = np.repeat(x[at][..., :1], 3, axis=-1) if form == "grey" else x[at]
    assert np.array_equal(made.train.images[np.array([0])][0], expected)
    assert np.array_equal(made.test.targets, y[:9])


def test_arrays_of_another_form_are_named() -> None:
    pair = split(9, 0).images, np.arange(9) % 3
    with pytest.raises(ValueError, match=r"val = 1.5 is not allowed"):
        zoo.data_set(pair, pair, 1.5)
    with pytest.raises(DataError, match=r"lists of several lengths \(arrays, train\); give a pair: all images, all labels"):
        zoo.data_set([(pair[0][0], 0), (pair[0][1], 1)], pair)
    for wrong in ({"size": "16"}, {"size": -3}, {"size": (16, 16)}, {"seed": "a"}):
        with pytest.raises(TypeError, match="give whole numbers, size >= 0"):
            zoo.data_set(pair, pair, **wrong)
    assert zoo.data_set(pair, pair, np.float32(0), classes=[1, 2, 3]).classes == ("1", "2", "3")
    half = zoo.data_set((torch.tensor(pair[0]).bfloat16(), pair[1]), pair, val=0)
    assert np.abs(half.train.images[np.arange(9)].astype(int) - pair[0]).max() <= 1
    with pytest.raises(DataError, match=r"not labels \(arrays, test"):
        zoo.data_set(pair, (pair[0], [0.5] * 9))
    with pytest.raises(DataError, match=r"arrays have different ranges \(arrays, train up to 1, test up to 255\)"):
        zoo.data_set((pair[0] / 255, pair[1]), (pair[0] * 1.0, pair[1]))
    with pytest.raises(DataError, match=r"labels begin at 1 \(arrays\)"):
        zoo.data_set((pair[0], pair[1] + 1), (pair[0], pair[1] + 1))
    made = zoo.data_set(pair, (255 - pair[0], pair[1]), (pair[0][:3] // 2, pair[1][:3]), name="mine")
    assert (made.name, len(made.val), made.classes) == ("mine", 3, ("0", "1", "2"))


def test_runs_on_two_given_sets_are_not_paired(tmp_path: Path) -> None:
    folders = [zoo.train("cnn_small", data=given(seed), out=tmp_path / str(seed), **SMALL).path for seed in (0, 3)]
    again = zoo.train("cnn_small", data=given(3), out=tmp_path / "again", seed=1, **SMALL).path
    runs = [report._read.read(folder) for folder in (*folders, again)]
    assert not report._compare.same_images(runs[0], runs[1])
    assert report._compare.same_images(runs[1], runs[2])


class Learned(nn.Module):
    """Cross entropy with a scale of each class that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits * self.scale, target)


class Weight(Learned):
    """The same with another name of the parameter, that of the class weights of zoo's losses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.scale
        del self.scale

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits * self.weight, target)


def doubled(logits: Tensor, target: Tensor) -> Tensor:
    return 2 * F.cross_entropy(logits, target)


def small(*more: str) -> Any:
    return resolve("cnn_small", *TINY, *more)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_the_parameters_of_a_given_loss_are_trained(tmp_path: Path, optimizer: str) -> None:
    loss = Learned()
    training.train(small(f"optim.name={optimizer}"), out=tmp_path / "run", given=Given(loss=loss))
    assert not torch.equal(loss.scale, torch.ones(10))


@pytest.mark.parametrize("kind", [Learned, Weight])
def test_the_parameters_of_a_given_loss_are_saved(tmp_path: Path, kind: type[nn.Module]) -> None:
    def run(loss: nn.Module, name: str, **more: Any) -> Any:
        return zoo.train(small(), out=tmp_path / name, loss=loss, **{"epochs": 2} | more)

    whole, stopped, resumed = kind(), kind(), kind()
    expected = run(whole, "whole").model.state_dict()
    with pytest.raises(KeyboardInterrupt):
        run(stopped, "parts", on_epoch=lambda rows: os.kill(os.getpid(), signal.SIGINT))
    found = run(resumed, "parts", resume=True).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(next(resumed.parameters()), next(whole.parameters()))


def test_a_given_loss_is_named_and_class_weights_are_not_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    run = zoo.train(
        small("data.imbalance=none", "data.per_class=0"),
        data=dataclasses.replace(given(), name="my set", classes=tuple("abc")),
        loss=doubled,
    )
    assert run.path.name.startswith("my-set-cnn_small-doubled-s")
    env = json.loads((run.path / "env.json").read_text())
    assert (env["loss"], env["loss_given"]) == ("doubled", "doubled")
    assert "doubled" in (run.path / "README.md").read_text()
    assert describe.objects(Given(loss=zoo.losses.FocalLoss()))["kernel"] == ops.kernel()
    assert env["kernel"] == "PyTorch"
    with pytest.raises(UsageError, match="class_weights = effective has no effect on a loss given in Python"):
        losses.given(small("class_weights=effective"), Learned(), Team(), 3)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"the loss has shape \(250,\)"),
        (lambda logits, target: F.cross_entropy(logits.detach(), target), "the loss has no gradient"),
        (lambda logits, target: F.cross_entropy(logits, target).item(), "the loss has the type float"),
    ],
)
def test_losses_that_cannot_be_trained_on(tmp_path: Path, loss: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        zoo.train(small(), out=tmp_path / "run", loss=loss)


@pytest.mark.parametrize(
    ("loss", "classes", "says"),
    [
        (nn.MSELoss(), 2, r"MSELoss fails on logits \(3, 2\) and class numbers \(3,\) \(The size of tensor a"),
        (
            nn.CrossEntropyLoss(weight=torch.ones(5)),
            3,
            r"CrossEntropyLoss fails on logits \(4, 3\) and class numbers \(4,\) \(weight",
        ),
    ],
)
def test_a_loss_of_other_arguments_is_named_before_training(loss: nn.Module, classes: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        losses.given(small(), loss, Team(), classes)
    assert losses.given(small("mixup=0.2"), nn.MSELoss(), Team(), 3)[0], "class shares have the shape of the logits"
    with pytest.raises(UsageError, match=r"NLLLoss fails on logits \(4, 3\) and class shares \(4, 3\)"):
        losses.given(small("mixup=0.2"), nn.NLLLoss(), Team(), 3)


def test_a_loss_of_log_probabilities_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    losses.given(small(), nn.NLLLoss(), Team(), 3)
    assert "warning  the loss NLLLoss is negative for images that are classified correctly (-10)" in capsys.readouterr().err
    learned = Learned()
    before = {name: value.clone() for name, value in learned.state_dict().items()}
    losses.given(small(), learned, Team(), 10)
    losses.given(small(), nn.CrossEntropyLoss(), Team(), 3)
    assert capsys.readouterr().err == "" and all(
        torch.equal(before[name], value) for name, value in learned.state_dict().items()
    )


def test_a_run_is_resumed_with_its_own_objects_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hundredfold(logits: Tensor, target: Tensor) -> Tensor:
        return 100 * F.cross_entropy(logits, target)

    more = {"data": given(), "out": tmp_path / "run", **SMALL}
    run = zoo.train("cnn_small", loss=hundredfold, **more)
    again = {**more, "resume": True, "epochs": 2}
    for other, says in (
        (
            {},
            r"the loss of the run was hundredfold given in Python \(.*run, now none\); resume with loss=\.\.\., the same object",
        ),
        ({"loss": nn.CrossEntropyLoss()}, r"hundredfold given in Python \(.*, now CrossEntropyLoss\)"),
        (
            {"loss": hundredfold, "data": None},
            r"the data of the run was mine given in Python \(.*, now none\); resume with data=",
        ),
    ):
        with pytest.raises(UsageError, match=says):
            zoo.train("cnn_small", **{**again, **other})
    assert json.loads((run.path / "env.json").read_text())["loss_given"] == "hundredfold"
    assert zoo.train("cnn_small", **again, loss=hundredfold).metrics[-1]["split"] == "test"
    with pytest.raises(UsageError, match=r"objects given in Python \(loss hundredfold\), which no file has; pass them"):
        zoo.train(str(run.path / "recipe.toml"), data=given(), out=tmp_path / "other")
    capsys.readouterr()
    zoo.train(str(run.path), data=given(), out=tmp_path / "on", epochs=1)
    assert (
        "warning  the run was trained with a loss given in Python (hundredfold); this one uses cross_entropy"
        in capsys.readouterr().err
    )
    plain = zoo.train("cnn_small", **{**more, "out": tmp_path / "plain"})
    with pytest.raises(
        UsageError, match=r"the loss of the run was not given in Python \(.*, now hundredfold\); resume without loss="
    ):
        zoo.train("cnn_small", **{**again, "out": plain.path}, loss=hundredfold)


def test_a_loss_from_python_is_not_judged_by_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = resolve("cnn_small", "loss=sigmoid_focal", "mixup=0.2", "deterministic=true")
    held = iter("a generator cannot be copied")

    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = held

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            assert target.shape == logits.shape
            return -(target * logits.log_softmax(1)).sum(1).mean()

    assert zoo.train(recipe, loss=Shares(), out=tmp_path / "a").metrics
    zoo.train(recipe, loss=lambda logits, target: Shares()(logits, target), out=tmp_path / "b")
    capsys.readouterr()
    ldam = resolve("cnn_small", "loss=ldam")
    zoo.train(ldam, loss=nn.CrossEntropyLoss(), out=tmp_path / "c")
    assert "margins in cosines" not in capsys.readouterr().err
    zoo.train(ldam, out=tmp_path / "d")
    assert "margins in cosines" in capsys.readouterr().err


def test_a_run_of_another_machine_is_evaluated_on_this_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = zoo.train("cnn_small", data=given(), out=tmp_path / "run", **SMALL)
    for device, precision in (("cuda:7", "fp16"), ("mps", "fp32"), ("cuda", "fp16")):
        there = msgspec.structs.replace(run.recipe, device=device, precision=precision)
        assert engine.evaluate(dataclasses.replace(run, recipe=there))[0].n == 9
        assert ("eval     fp16 is not available on cpu" in capsys.readouterr().err) == (precision == "fp16")


def test_a_run_that_is_replaced_with_force_leaves_no_results(tmp_path: Path) -> None:
    """A run that is stopped before its end would otherwise show those of the run before it."""
    run = zoo.train("cnn_small", data=given(), out=tmp_path / "run", **SMALL)
    kept = {path.name for path in run.path.iterdir() if path.is_file()}
    assert {"README.md", "report.html", "per_class.csv", "confusion.csv", "curves.png", "confusion.svg"} <= kept
    run_folders.clear(run.path)
    assert {path.name for path in run.path.iterdir() if path.is_file()} <= {"recipe.toml", ".lock", ".holder"}


def test_every_label_has_a_name() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    with pytest.raises(DataError, match=r"labels up to 2 for 2 classes \(arrays\); name every class"):
        zoo.data_set((images, np.arange(12) % 3), (images[:4], np.arange(4) % 2), classes=["a", "b"])


def test_images_that_are_almost_black_are_named_in_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = zoo.train("cnn_small", data=given(), out=tmp_path / "run", **SMALL)
    run.predict([np.ones((32, 32, 3), np.uint8)])
    assert "warning  images[0] has integers up to 1, almost black" in capsys.readouterr().err


def test_the_report_names_the_accuracy_that_selected_the_epoch(tmp_path: Path) -> None:
    run = zoo.train("cnn_small", data=given(), out=tmp_path / "run", select_by="macro", **SMALL)
    assert "the best on validation (macro " in (run.path / "README.md").read_text()


def test_a_run_keeps_its_place_if_the_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    run = zoo.train("cnn_small", data=given(), **{**SMALL, "out": "run"})
    monkeypatch.chdir(tmp_path)
    assert run.path == tmp_path / "a" / "run" and run.reloaded().path == run.path
    assert zoo.export.onnx(run).path == Path("a/run/model.onnx")


def test_batchnorm_and_one_image(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="BatchNorm needs at least 2 images per step"),
        start.conditions(small("batch_size=1"), Stop()),
    ):
        nn.BatchNorm1d(3)(torch.ones(1, 3))


def test_images_that_were_added_since_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)

    def add(*numbers: int) -> None:
        for name in ("a", "b"):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "set" / name / f"{number}.png")

    add(*range(20))
    settings = [
        "data.name=folder",
        f"data.dir={tmp_path / 'set'}",
        "data.val=0.2",
        "data.imbalance=none",
        "epochs=1",
        "batch_size=8",
        "device=cpu",
    ]
    run = zoo.load(training.train(resolve("cnn_small", *settings), out=tmp_path / "run"))
    engine.evaluate(run)
    add(3)
    engine.evaluate(run)
    assert (
        "warning  the contents of images changed since the run was trained (set, 0 added, 0 removed, 2 changed)"
        in capsys.readouterr().err
    )
    add(20, 21)
    for use in (engine.evaluate, engine.calibrate):
        with pytest.raises(DataError, match=r"data changed since the run was trained \(set, 4 added, 0 removed, 2 changed\)"):
            use(run)
    assert dataclasses.replace(run, env={}).dataset(), "a run that recorded no digest"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test": split(0, 0)}, r"the test split is empty \(mine\)"),
        ({"classes": ("a", "b", "a")}, r"class names are not distinct \(mine"),
        ({"classes": (0, 1, 2)}, r"class names are not text \(mine, 0 is int\)"),
        ({"classes": ("a",)}, r"too few classes \(mine, 1\)"),
        ({"name": None}, "name is None"),
        ({"mean": (123, 117, 104)}, r"mean \(123, 117, 104\) .*scaled to \[0, 1\]"),
        ({"std": (0.25, 0, 0.25)}, "std .* cannot be used"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean .* cannot be used"),
        ({"std": (0.25,)}, "give three numbers each"),
    ],
)
def test_data_that_would_fail_after_training_is_named_before(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        zoo.train("cnn_small", data=dataclasses.replace(given(), **change), out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
