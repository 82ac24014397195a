"""Losses, metrics, sampling, export and benchmarks called from another program: what ordinary mistakes give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo import metrics, predictor, sampling
from zoo.errors import BusyError, DataError, UsageError

Call = Callable[[], Any]
X, Y = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
COUNTS = [50, 40, 30, 20, 10]
NET = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
BYTES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)


def raised(call: Call, kind: type[BaseException], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def loss(name: str) -> nn.Module:
    return zoo.create_loss(name, counts=COUNTS)


PLAIN = ("cross_entropy", "balanced_softmax", "logit_adjustment", "ldam", "dbm", "sigmoid_focal")


@pytest.mark.parametrize("name", PLAIN)
def test_wrong_targets_of_a_loss_are_named(name: str) -> None:
    raised(lambda: loss(name)(X, Y.float()), TypeError, r"labels \(N,\) must be integers.*torch.float32 of \(8,\)")
    raised(lambda: loss(name)(X, torch.eye(5)[Y].long()), TypeError, r"class shares \(N, C\) floats; .*torch.int64 of \(8, 5\)")
    raised(
        lambda: loss(name)(X, Y.tolist()),
        TypeError,
        "must be a tensor of floats and target a tensor, not torch.float32 and list",
    )
    raised(lambda: loss(name)(X.long(), Y), TypeError, "not torch.int64 and torch.int64")
    for wrong in (Y + 5, torch.full((8,), -1)):
        with pytest.raises(IndexError):
            loss(name)(X, wrong)
    weighted = zoo.create_loss(name, counts=COUNTS, weight=[1.0, 2.0, 3.0, 4.0, 5.0])
    raised(
        lambda: weighted(torch.randn(8, 6), Y),
        ValueError,
        r"have 6 classes, counts 5|weight must be \(6,\) for 6 classes, not \(5,\)",
    )
    if name not in ("sigmoid_focal", "cross_entropy"):
        raised(lambda: loss(name)(torch.randn(8, 6), Y), ValueError, "the logits have 6 classes, counts 5")
    elif name == "sigmoid_focal":
        raised(lambda: loss(name)(X, torch.eye(5)[Y]), TypeError, "no form for class shares")


def test_options_of_numpy_types_are_numbers() -> None:
    assert zoo.create_loss("focal", focal_gamma=np.float64(1.5)).gamma == 1.5
    made = zoo.create_loss("focal", counts=COUNTS, class_weights="given", given_weights=sampling.effective_weights(COUNTS, 0.9))
    assert made.weight.tolist() == pytest.approx(sampling.effective_weights(COUNTS, 0.9).tolist())


def test_focal_chances_need_the_probabilities() -> None:
    raised(lambda: sampling.chances("focal", Y.numpy()), ValueError, "focal needs p, the last p_t of each of the 8 samples")
    assert sampling.chances("focal", Y.tolist(), p=torch.zeros(8)).tolist() == [1 / 8] * 8


def test_bad_numbers_of_a_benchmark_are_named() -> None:
    raised(lambda: zoo.bench.measure(batches=1), TypeError, "batches is 1 and devices")
    raised(lambda: zoo.bench.measure(threads=-1), ValueError, "threads is -1 and seconds 0.0; give numbers of at least 0")
    raised(lambda: zoo.bench.measure(seconds=-5), ValueError, "threads is 0 and seconds -5")


def test_class_weights_that_would_not_be_used_are_an_error() -> None:
    raised(lambda: zoo.create_loss("focal", counts=COUNTS, beta=0.9), ValueError, "beta has no effect without class_weights")
    raised(lambda: zoo.create_loss("focal", gama=2), UsageError, r"gama is not an option of focal.*zoo losses")


def test_metrics_take_arrays_and_check_them() -> None:
    expected = metrics.evaluate(X, Y)
    found = metrics.evaluate(X.numpy(), Y.numpy())
    assert (found.accuracy, found.ece, found.loss) == (expected.accuracy, expected.ece, expected.loss)
    assert metrics.calibration_error(X.numpy(), Y.numpy()) == expected.ece
    right = np.array([True, False])
    for call, kind, says in (
        (lambda: metrics.evaluate(X, Y.float()), TypeError, "targets torch.float32; expected floats and integers"),
        (lambda: metrics.evaluate(X.long(), Y), TypeError, "logits are torch.int64"),
        (lambda: metrics.calibration_error(X, Y[:1]), ValueError, r"expected \(N, C\) and \(N,\)"),
        (lambda: metrics.calibration_error(X, Y + 5), ValueError, "targets from 5 to 9"),
        (lambda: metrics.evaluate(X[:0], Y[:0]), DataError, "no images"),
        (lambda: metrics.mcnemar(Y.numpy(), Y.numpy()), TypeError, "results are int64 and int64; give whether"),
        (lambda: metrics.mcnemar(right, right[:1]), ValueError, "same images"),
        (lambda: metrics.wilson(11, 10), ValueError, "11 of 10; expected"),
        (lambda: metrics.wilson(0, 0), ValueError, "0 of 0; expected"),
    ):
        raised(call, kind, says)


def test_sampling_checks_labels_and_names() -> None:
    for call, kind, says in (
        (lambda: zoo.long_tail([0.9, 1.9], "none", 0), TypeError, "targets must be integers, not float64"),
        (lambda: zoo.long_tail(["cat"], "exp:0.1", 0), TypeError, "targets must be integers, not <U3"),
        (lambda: zoo.long_tail([[0, 1]], "exp:0.1", 0), ValueError, r"targets must be \(N,\)"),
        (lambda: zoo.long_tail([-1, 0], "exp:0.1", 0), ValueError, "has the label -1"),
        (lambda: zoo.long_tail([0, 1], 0.1, 0), TypeError, "imbalance = 0.1, seed = 0"),
        (lambda: zoo.long_tail([0, 1], "exp:0.1", None), TypeError, "seed = None"),
        (lambda: sampling.chances("balanced", Y.numpy()), ValueError, "'balanced' is not one of class_balanced"),
        (
            lambda: zoo.data_set(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y)), test=(X, Y)),
            TypeError,
            "train is DataLoader; give a pair",
        ),
    ):
        raised(call, kind, says)


def export(net: nn.Module, path: Path, **options: Any) -> zoo.export.Receipt:
    return zoo.export.onnx(net, path, **{"force": True, "input": (3, 8, 8)} | options)


def stored(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_ordinary_mistakes_in_an_export(tmp_path: Path) -> None:
    path, nan = tmp_path / "a.onnx", np.full((2, 3, 8, 8), np.nan, np.float32)
    for options, kind, says in (
        ({"input": torch.zeros(1, 3, 8, 8)}, TypeError, "input is Tensor; give the shape"),
        ({"dynamic_axes": {}}, TypeError, "no argument 'dynamic_axes'"),
        ({"classes": 3}, TypeError, "classes is int; give a list"),
        ({"classes": {0: "a", 1: "b", 2: "c"}}, TypeError, "classes is dict; give a list"),
        ({"classes": {"a", "b", "c"}}, TypeError, "classes is set; give a list"),
        ({"classes": "abc"}, TypeError, "classes is str; give a list"),
        ({"images": nan}, UsageError, "values that are not finite"),
        ({"images": 500}, UsageError, "images = 500 has no effect"),
        ({"targets": [0, 1]}, UsageError, "targets without images"),
        ({"mean": 0.5, "std": 0.25}, TypeError, r"mean is 0.5; give a number per channel, e.g. \(0.5, 0.5, 0.5\)"),
        ({"mean": (0.5,) * 3, "std": "abc"}, TypeError, "std is 'abc'; give a number per channel"),
        ({"mean": (123.0,) * 3, "std": (58.0,) * 3}, UsageError, "not of pixels from 0 to 1; divide"),
    ):
        raised(lambda options=options: export(NET, path, **options), kind, says)
    assert not path.exists()
    export(NET, path)
    raised(lambda: export(NET, path, force=False), BusyError, r"replace it with --force \(in Python force=True\)")


def test_an_export_leaves_each_module_in_its_mode(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).train()
    net[1].eval()  # a frozen BatchNorm of a net in training
    modes = [module.training for module in net.modules()]
    export(net, tmp_path / "a.onnx")
    assert [module.training for module in net.modules()] == modes


def test_the_shape_of_an_input_is_that_of_the_images(tmp_path: Path) -> None:
    for images, more in ((np.zeros((4, 3, 8, 8), np.float32), {}), (BYTES, {"mean": (0.5,) * 3, "std": (0.25,) * 3})):
        receipt = export(NET, tmp_path / "a.onnx", input=(), images=images, **more)
        assert receipt.n == len(images)
    raised(lambda: export(NET, tmp_path / "a.onnx", input=()), UsageError, "no input shape")


def test_a_normalisation_that_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    export(NET, path, classes=["a", "b", "c"])
    assert "preprocessing" not in stored(path)
    raised(lambda: predictor.load(path), UsageError, r"the normalisation that the model expects is not known")
    assert predictor.load(path, mean=(0.5,) * 3, std=(0.25,) * 3).classes == ("a", "b", "c")
    export(NET, path, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert json.loads(stored(path)["preprocessing"])["mean"] == [0.5, 0.5, 0.5]
    predictor.load(path)


@pytest.mark.parametrize("softmax", [False, True])
def test_a_net_that_ends_in_softmax_gets_no_second_one(tmp_path: Path, softmax: bool) -> None:
    net, path = nn.Sequential(*NET, nn.Softmax(1)), tmp_path / "a.onnx"
    export(net, path, mean=(0.5,) * 3, std=(0.25,) * 3, images=BYTES, softmax=softmax)
    inputs = (torch.tensor(BYTES).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = net(inputs).double().numpy()
    opened = predictor.load(path)
    np.testing.assert_allclose([opened.probabilities(image) for image in BYTES], expected, atol=1e-6)
    assert stored(path)["softmax"] == "true"


class Zero(nn.Module):
    """Logits that are all 0 for an input of zeros."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3]


def test_logits_are_not_taken_for_probabilities(tmp_path: Path) -> None:
    export(Zero(), tmp_path / "a.onnx")
    assert stored(tmp_path / "a.onnx")["softmax"] == "false"


def test_a_run_whose_frozen_layers_were_changed_says_how_to_export_it(tmp_path: Path, small_run: Path) -> None:
    run = zoo.train(
        "cnn_small", data="synthetic", weights=str(small_run), freeze="conv", epochs=1, data__per_class=20, out=tmp_path / "run"
    )
    with torch.no_grad():
        next(run.model.parameters()).mul_(1.1)
    raised(lambda: zoo.export.onnx(run), zoo.errors.DisagreeError, "export a model that you changed: zoo.export.onnx")
    options = {"input": run.input, "classes": run.classes, "mean": run.mean, "std": run.std}
    assert zoo.export.onnx(run.model, tmp_path / "a.onnx", **options).path.is_file()


def test_benchmarks_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    export(NET, tmp_path / "a.onnx", mean=(0.5,) * 3, std=(0.25,) * 3)
    rows = zoo.bench.measure(tmp_path / "a.onnx", batches=(1, 2), quick=True, out=tmp_path / "b.csv")
    assert {row["batch"] for row in rows} == {1, 2}
    assert all(row["images_per_s"] > 0 for row in rows)
    raised(lambda: zoo.bench.measure(NET), TypeError, "what is Sequential; export the module")
    raised(lambda: zoo.bench.measure(tmp_path / "a.onnx", batches="1,2"), TypeError, r"sequences, such as \(1, 64\)")


@pytest.mark.parametrize("weight", [[1, 2.0, 3, 4, 5], (1, 2, 3, 4, 5), np.arange(1.0, 6.0)])
def test_class_weights_may_be_a_list(weight: Any) -> None:
    expected = zoo.ops.focal_loss(X, Y, 2.0, torch.arange(1.0, 6.0))
    assert zoo.ops.focal_loss(X, Y, 2.0, weight) == zoo.losses.FocalLoss(2.0, weight)(X, Y) == expected
