"""What Python users write: the README's lines run, public functions fit each other and check what they are given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

import zoo
from zoo import run


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


def test_train_checks_what_it_is_given() -> None:
    for arguments in ({"what": 3}, {"what": "demo", "data": []}, {"what": "demo", "loss": 3}):
        with pytest.raises(TypeError):
            zoo.train(**arguments)


class Half(torch.nn.Module):
    """A loss of a user's own, without anything that zoo's losses have."""

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
