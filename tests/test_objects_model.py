"""Models given as Python objects, losses created by name, and predictions for images in memory."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_objects import SMALL, given
from torch import Tensor, nn

import zoo
from zoo import __main__ as cli
from zoo import calibration, console, registry
from zoo import run as engine
from zoo.errors import DataError, FileError, UsageError
from zoo.spec import LossSpec
from zoo.training import checks


class Net(nn.Module):
    """A convolution, a BatchNorm and a linear layer, which takes images of any size."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


def trained(what: Any, tmp_path: Path, **more: Any) -> zoo.run.Run:
    return zoo.train(what, data=given(), out=tmp_path / "run", **SMALL | more)


@pytest.mark.parametrize("model", [Net, Net(), lambda classes: Net(classes)])
def test_a_model_from_python_is_trained_and_loaded(model: Any, tmp_path: Path) -> None:
    run = trained(model, tmp_path)
    name = "object:Net" if "Net" in str(model) else "object:<lambda>"
    assert run.recipe.model == name
    assert json.loads((run.path / "env.json").read_text())["model_given"] == name
    assert name in (run.path / "recipe.toml").read_text().splitlines()[0]
    again = zoo.load(run.path, data=given(), model=model)
    assert engine.evaluate(again)[0].accuracy == run.metrics[-1]["accuracy"]
    assert all(map(torch.equal, again.model.state_dict().values(), run.model.state_dict().values()))


def test_a_run_of_a_model_from_python_is_used_in_python_only(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "fit", lambda *_: 2.0)  # six validation images determine none
    run = trained(Net, tmp_path)
    assert zoo.export.onnx(run, force=True).n == 9
    assert zoo.bench.measure(run, batches=(1,), quick=True)[0]["model"] == "object:Net"
    calibrated, _ = engine.calibrate(run)
    assert calibrated.temperature != 1
    assert calibrated.given.model is Net
    with pytest.raises(UsageError, match=r"an object from Python \(object:.*\), which no file has; pass it there: zoo.load"):
        zoo.load(run.path)
    assert cli.run(["eval", str(run.path)]) == 2
    assert cli.run(["train", str(run.path / "recipe.toml"), "--data", "synthetic", "--dry-run"]) == 2
    assert f"pass them: zoo.train({str(run.path / 'recipe.toml')!r}, model=...)" in capsys.readouterr().err


def test_a_module_starts_from_its_weights_and_is_left_as_it_was(tmp_path: Path, capsys: Any) -> None:
    net = Net()
    net.norm.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = trained(net, tmp_path, freeze="conv", data__size=24)
    assert run.input == (3, 24, 24)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(run.model.conv.weight, net.conv.weight)
    assert not torch.equal(run.model.head.weight, net.head.weight)
    assert "random" not in capsys.readouterr().err
    on = trained(net, tmp_path / "on", weights=str(run.path), optim__lr=1e-12)
    assert torch.allclose(on.model.head.weight, run.model.head.weight)
    assert torch.equal(on.model.norm.weight, net.norm.weight), "what the user froze stays frozen"


class Pairs(Net):
    """Logits and features."""

    def forward(self, images: Any) -> Any:
        return super().forward(images), images


def test_a_run_of_a_model_from_python_resumes_bit_identically(tmp_path: Path) -> None:
    net = Net()
    whole = trained(net, tmp_path / "a", epochs=2)
    with pytest.raises(KeyboardInterrupt, match="resume with the same arguments"):
        trained(net, tmp_path / "b", epochs=2, on_epoch=lambda rows: os.kill(os.getpid(), signal.SIGINT))
    resumed = trained(net, tmp_path / "b", epochs=2, resume=True)
    assert all(map(torch.equal, whole.model.state_dict().values(), resumed.model.state_dict().values()))
    with pytest.raises(FileError, match="model: object:Net -> object:Other"):
        trained(type("Other", (Net,), {}), tmp_path / "b", epochs=2, resume=True)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (
            lambda out: trained(Net(4), out),
            UsageError,
            "Net returns 4 logits, but the data has 3 classes; give it 3 outputs",
        ),
        (lambda out: trained(nn.Conv2d(3, 3, 3), out), UsageError, r"Conv2d returns \(2, 3, 30, 30\) for 2 images"),
        (lambda out: trained(nn.Linear(5, 3), out), UsageError, r"Linear fails on images \(3, 32, 32\) \(RuntimeError"),
        (lambda out: trained(lambda: Net(*range(9)), out), UsageError, "<lambda> fails on images .*TypeError"),
        (lambda out: trained(Pairs(), out), UsageError, r"Pairs returns tuple; expected one tensor: logits \(N, classes\)"),
        (lambda out: trained(lambda: Net(4), out), UsageError, "<lambda> returns 4 logits, but the data has 3 classes"),
        (lambda out: trained("demo", out, model=3), TypeError, "model is int; give a module"),
        (lambda out: trained("demo", out, model="resnet20"), TypeError, r"is the first argument: zoo.train\('resnet20'"),
        (lambda out: trained(Net, out, model=Net), TypeError, "what is type; give a Recipe"),
        (lambda out: zoo.load(trained("cnn_small", out).path, model=Net), TypeError, r"a model that zoo finds \(cnn_small\)"),
        (lambda out: zoo.load(trained(Net, out).path, model=Net(5)), UsageError, "returns 5 logits"),
        (lambda out: zoo.load(trained(Net, out).path, model=nn.Flatten()), UsageError, "Flatten has no parameters"),
    ],
)
def test_models_that_cannot_be_used(call: Callable[[Path], Any], kind: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=says) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_replaces_that_of_a_recipe(tmp_path: Path) -> None:
    run = trained("demo", tmp_path, model=Net())
    assert (run.recipe.model, run.recipe.loss.name) == ("object:Net", "focal")
    with pytest.raises(UsageError, match="an object from Python"):
        checks.check_names(run.recipe)


@pytest.mark.parametrize("name", registry.names("losses"))
def test_each_loss_is_created_by_name(name: str) -> None:
    logits, target, counts = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3, [50, 20, 5]
    spec: LossSpec = registry.find("losses", name)
    more = {"counts": counts} if spec.counts else {}
    for weight in (None, np.array([1.0, 2.0, 3.0])):
        found = zoo.create_loss(name, counts=np.array(counts), weight=weight)(logits, target)
        wanted = spec.reference(logits, target, None if weight is None else torch.tensor(weight), **more)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    weights = zoo.create_loss(name, counts=torch.tensor(counts), class_weights="effective", beta=0.9).weight
    np.testing.assert_allclose(weights, zoo.effective_weights(counts, beta=0.9), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: zoo.create_loss("ldm"), UsageError, r"no loss 'ldm' \(did you mean ldam"),
        (lambda: zoo.create_loss(3), TypeError, "name is int"),
        (lambda: zoo.create_loss("ldam"), ValueError, "loss 'ldam' with class_weights 'none' needs counts"),
        (lambda: zoo.create_loss("focal", class_weights="inverse"), ValueError, "class_weights 'inverse' needs counts"),
        (lambda: zoo.create_loss("focal", weight=[1, 2], class_weights="none"), ValueError, "exclude each other"),
        (lambda: zoo.create_loss("focal", focal_gamma=-1), UsageError, "loss.focal_gamma = -1 is not allowed"),
        (
            lambda: zoo.create_loss("cross_entropy", focal_gamma=2.0),
            UsageError,
            "focal_gamma is not an option of cross_entropy",
        ),
        (lambda: zoo.create_loss("focal", counts=[1, 2, 3], weight=[1, 2]), UsageError, "given_weights has 2 numbers"),
        (lambda: zoo.create_loss("ldam", counts=[1.5, 2]), ValueError, "not numbers of samples"),
        (lambda: zoo.create_loss("ldam", counts=[[1, 2]]), ValueError, r"counts must be finite numbers of shape \(C,\)"),
        (lambda: zoo.create_loss("ldam", counts=["a"]), ValueError, "counts is not a number per class"),
        (lambda: zoo.create_loss("focal", drw_epoch=3), ValueError, "drw_epoch is for zoo's own training"),
    ],
)
def test_losses_that_cannot_be_created(call: Callable[[], Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_images_in_memory_are_classified_like_files(small_run: Path, tmp_path: Path) -> None:
    run = zoo.load(small_run)
    images = np.asarray(run.dataset().test.images[np.arange(2)])
    first = Image.fromarray(images[0])
    turned = Image.fromarray(images[0])
    turned.getexif()[0x0112] = 3
    first.save(tmp_path / "a.png")
    forms = (tmp_path / "a.png", first, images[0], torch.tensor(images[0]).permute(2, 0, 1), images[0] / np.float32(255))
    answers = run.predict([*forms, tmp_path / "none.png", images[0][..., 0]])
    assert all(answer["top"] == answers[0]["top"] for answer in answers[:5])
    assert "cannot read image" in answers[5]["error"]
    assert [answers[0]["file"], answers[6]["file"]] == [str(tmp_path / "a.png"), "images[6]"]
    assert [each["top"] for each in run.predict(images)] == [answers[0]["top"], run.predict([images[1]])[0]["top"]]
    assert run.predict([turned])[0]["top"] == run.predict([images[0][::-1, ::-1]])[0]["top"]
    for wrong, kind, says in (
        (images[0], TypeError, r"images has the shape \(32, 32, 3\); give a list"),
        ([images[0] * 1.0, images[0] / 255], DataError, "different ranges"),
        ([-1.0 * images[0]], DataError, r"pixels out of range \(images\[0\], -"),
        ([images], DataError, r"not images \(images\[0\]"),
        (first, TypeError, "give a list of paths, Pillow images"),
    ):
        with pytest.raises(kind, match=says):
            run.predict(wrong)


def test_evaluation_and_prediction_leave_the_model_as_it_was(small_run: Path) -> None:
    run = zoo.load(small_run)
    images = np.asarray(run.dataset().test.images[np.arange(2)])
    wanted, before = run.predict(images), {name: value.clone() for name, value in run.model.state_dict().items()}
    run.model.train()
    next(run.model.children()).eval()
    modes = [module.training for module in run.model.modules()]
    assert run.predict(images) == wanted
    assert engine.evaluate(run, "val")[0].accuracy == engine.evaluate(zoo.load(small_run), "val")[0].accuracy
    assert [module.training for module in run.model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_many_images_show_progress(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SILENT_SECONDS", 0.0)
    zoo.load(small_run).predict(np.zeros((3, 32, 32, 3), np.uint8))
    assert "predict  classified 1 of 3 · left " in capsys.readouterr().err
