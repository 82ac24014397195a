"""Use from Python: the README's code runs, public functions fit together and check their arguments."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import zoo
from zoo import run
from zoo.errors import UsageError


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, tuple], ids=["list", "array", "tensor", "tuple"])
def test_weights_of_counts_go_into_the_loss(make: Any) -> None:
    counts = make([5000, 500, 50])
    loss = zoo.losses.FocalLoss(gamma=2.0, weight=zoo.effective_weights(counts, beta=0.9999))
    logits = torch.randn(6, 3, requires_grad=True)
    loss(logits, torch.tensor([0, 1, 2, 2, 1, 0])).backward()
    assert torch.isfinite(logits.grad).all()
    assert loss.weight.dtype == torch.float32
    assert zoo.losses.FocalLoss(weight=[1, 2, 3]).weight.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("classes", "kind"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), ("10", TypeError), (True, TypeError)]
)
def test_create_model_checks_the_number_of_classes(classes: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="classes = "):
        zoo.create_model("resnet20", classes=classes)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: zoo.create_model(None), TypeError, "name is NoneType"),
        (lambda: zoo.create_model("resnet20", weights=3), TypeError, "weights is int"),
        (lambda: zoo.create_model("resnet20", freeze=3), TypeError, "freeze is int"),
        (lambda: zoo.load(5), TypeError, "name is int"),
        (lambda: zoo.export.onnx("latest", "m.onnx"), TypeError, "model is str"),
        (lambda: zoo.export.onnx(3), TypeError, "model is int"),
        (lambda: zoo.export.onnx(torch.nn.Linear(2, 2)), UsageError, "no path"),
        (lambda: zoo.export.onnx(torch.nn.Linear(2, 2), "m.onnx"), UsageError, "no input shape"),
        (lambda: zoo.export.onnx(torch.nn.Linear(2, 2), "m.onnx", input=2), UsageError, "input 2 is not a shape"),
        (
            lambda: zoo.export.onnx(torch.nn.Linear(2, 2), "m.onnx", input="3x32x32"),
            UsageError,
            "input '3x32x32' is not a shape",
        ),
        (lambda: zoo.export.onnx(torch.nn.Linear(2, 2), "m.onnx", input=(0,)), UsageError, r"input \(0,\) is not a shape"),
        (lambda: zoo.class_counts([0, -1], 3), ValueError, r"targets\[1\] = -1 is out of range for 3 classes"),
        (lambda: zoo.class_counts([0, 3], 3), ValueError, r"targets\[1\] = 3 is out of range"),
        (lambda: zoo.class_counts([0.5, 1], 3), TypeError, "must be integers, not float64"),
        (lambda: zoo.class_counts(["a", "b"], 2), TypeError, "must be integers, not <U1"),
        (lambda: zoo.class_counts([[0, 1]], 2), ValueError, r"must be \(N,\)"),
        (lambda: zoo.effective_weights([], beta=0.9), ValueError, "at least one class"),
        (lambda: zoo.effective_weights([[1, 2]], beta=0.9), ValueError, r"must be \(C,\)"),
        (lambda: zoo.effective_weights([1, 0], beta=0.9), ValueError, "class 1 has 0 samples"),
        (lambda: zoo.effective_weights([float("nan"), 1], beta=0.9), ValueError, "class 0 has nan samples"),
        (lambda: zoo.effective_weights([1, float("inf")], beta=0.9), ValueError, "class 1 has inf samples"),
        (lambda: zoo.effective_weights("abc", beta=0.9), TypeError, "counts must be numbers"),
        (lambda: zoo.effective_weights([1, 2], beta="x"), TypeError, "beta must be a number, not str"),
        (lambda: zoo.train("demo", model="resnet20"), TypeError, "the name of a model is the first argument"),
        (lambda: zoo.run.Run.predict(None, "x.png"), TypeError, "images is str; give a list"),
        (lambda: zoo.predictor.predict("m.onnx", Path("x.png")), TypeError, "give a list of paths"),
        (lambda: zoo.predictor.predict("m.onnx", [np.zeros((2, 2, 3))]), TypeError, "images has a ndarray; give paths"),
        (lambda: zoo.predictor.predict("m.onnx", ["x.png"], top=-1), ValueError, "top = -1 is not allowed"),
        (lambda: zoo.run.evaluate("latest"), TypeError, "run is str"),
        (lambda: zoo.train("demo", epoch=3), UsageError, r"no setting 'epoch' \(did you mean epochs, drw_epoch"),
    ],
)
def test_public_functions_name_what_is_wrong(call: Callable[[], object], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_paths_may_come_from_a_generator(small_run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert len(zoo.load(small_run).predict(tmp_path / "a.png" for _ in range(2))) == 2


def test_create_model_takes_what_other_libraries_take() -> None:
    assert zoo.create_model("resnet20", classes=np.int64(3), weights=None, freeze=None)(torch.zeros(1, 3, 32, 32)).shape == (
        1,
        3,
    )


def test_train_checks_what_it_is_given() -> None:
    for arguments in ({"what": 3}, {"what": "demo", "data": []}, {"what": "demo", "loss": 3}):
        with pytest.raises(TypeError):
            zoo.train(**arguments)


def test_each_public_name_is_there_without_another_import() -> None:
    for name in zoo.__all__:
        assert zoo.__getattr__(name), "what an earlier import has set does not count"
    pages = re.findall(r"^::: zoo\.(\w+)\.", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert {*pages} - {"api", "training", "recipe", "sampling"} <= {*zoo.__all__}


class Half(torch.nn.Module):
    """A user's loss without the additional methods of zoo's losses."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, target) / 2


def test_train_gives_a_run_and_each_epoch(tmp_path: Path) -> None:
    rows: list[Any] = []
    made = zoo.train(
        "cnn_small", on_epoch=rows.append, loss=Half(), out=tmp_path / "run", data__name="synthetic", data__imbalance="exp:0.05",
        epochs=1, batch_size=250, device="cpu",
    )  # fmt: skip
    assert isinstance(made, run.Run)
    assert made.path == tmp_path / "run"
    assert rows[0][0]["split"] == "train"


@contextlib.contextmanager
def other_defaults() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    try:
        with torch.device("meta"), torch.inference_mode():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)


def test_what_a_program_set_for_torch_changes_no_run(tmp_path: Path) -> None:
    small = {
        "data__name": "synthetic",
        "data__imbalance": "exp:0.05",
        "batch_size": np.int64(250),
        "device": torch.device("cpu"),
    }
    plain = zoo.train("cnn_small", out=tmp_path / "plain", epochs=1, **small)
    with other_defaults():
        torch.manual_seed(3)
        made = zoo.train("cnn_small", out=tmp_path / "run", epochs=1, **small)
        assert torch.initial_seed() == 3
        assert torch.get_num_threads() == 3
        again = zoo.load(tmp_path / "run")
        result, _, _ = run.evaluate(again)
        assert zoo.export.onnx(again, images=20).agree == 20
        assert torch.empty(0).dtype == torch.get_default_dtype()
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.float32}
    assert made.metrics[-1]["accuracy"] == plain.metrics[-1]["accuracy"] == result.accuracy
    for wrong in ({"split": "tests"}, {"views": "flips"}):
        with pytest.raises(ValueError, match="is unknown; give one of"):
            run.evaluate(made, **wrong)
    assert len(repr(made)) < 1000 and len({made, again}) == 2


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.slow
def test_the_readme_s_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    assert len(blocks()) >= 2
    for block in blocks():
        exec(compile(block, "README.md", "exec"), {})
    assert Path("model.onnx").is_file()
