"""Frozen layers of a run: computed once if the result is the same, released at their epochs, verified unchanged."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests_support import resolve
from torch import nn

import zoo.export
from zoo import __main__ as cli
from zoo import registry, run, tensor_files, training
from zoo.errors import DisagreeError, UsageError
from zoo.training import build, checkpoint, features, freezing, session
from zoo.training.signals import Interrupted

pytestmark = pytest.mark.usefixtures("one_thread")
GRADUAL = "unfreeze=['1:stage<=1','2:none']"


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Initial weights, one file per model."""
    folder = tmp_path_factory.mktemp("donors")
    for name in ("cnn_small", "s2_cnn", "resnet20"):
        torch.manual_seed(3)
        torch.save(registry.find("models", name).build(10).state_dict(), folder / f"{name}.pth")
    return folder


def frozen(donors: Path, *settings: str, model: str = "cnn_small") -> Any:
    return resolve(model, f"weights={donors / model}.pth", "freeze=conv", "data.augment=[]", "lr=0.05", *settings)


def test_a_head_that_the_weights_do_not_fill_starts_at_zero(donors: Path, tmp_path: Path) -> None:
    tensors = torch.load(donors / "cnn_small.pth")
    spec = registry.find("models", "cnn_small")
    head = {name: value[:4] for name, value in tensors.items() if freezing.inside(name, freezing.new_head(spec))}
    assert head
    torch.save(tensors | head, tmp_path / "four.pth")  # four classes, so that the head stays random
    mine = frozen(donors, f"weights={tmp_path / 'four.pth'}", "head_init=zero")
    model = build._model(mine, spec, 10).model
    assert all((value == 0).all() for name, value in model.named_parameters() if name in head)
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items() if name not in head)
    kept = build._model(frozen(donors, "head_init=zero"), spec, 10).model.state_dict()
    assert all(torch.equal(kept[name], tensors[name]) for name in head), "a head that the weights fill stays"
    with pytest.raises(UsageError, match="head_init = zero with a frozen head .fc:all. trains nothing; use head_init=default"):
        build._model(frozen(donors, "head_init=zero", "freeze=fc:all"), spec, 10)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return tensor_files.load_tensors(checkpoint.states(folder)[0])[0]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in checkpoint.read_rows(folder)]


def stopping(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Send this process a signal after ``at`` steps."""
    real, steps = session.train_epoch, iter(range(1, 1000))

    def wrapped(*arguments: Any, **options: Any) -> Any:
        inner = options.pop("watch")

        def watch(number: int, totals: Any) -> None:
            if next(steps) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            inner(number, totals)

        return real(*arguments, watch=watch, **options)

    monkeypatch.setattr(session, "train_epoch", wrapped)


@pytest.mark.parametrize(
    "settings",
    ["precision=fp32 optim.name=adamw ema=0.9 sampler=focal", pytest.param("precision=bf16", marks=pytest.mark.slow)],
)
def test_stored_features_give_the_same_numbers(
    donors: Path, settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = frozen(donors, "epochs=2", *settings.split())
    once = training.train(mine, out=tmp_path / "once")
    assert "frozen layers ran once: features of " in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(features, "trainable_head", lambda *arguments, **options: ("", "for a test"))
        plain = training.train(mine, out=tmp_path / "plain")
    assert "frozen layers run in every step: for a test" in capsys.readouterr().err
    one, two = tensors(once), tensors(plain)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert rows(once) == rows(plain)


def test_a_run_on_stored_features_resumes_on_the_same_bits(
    donors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = frozen(donors, "epochs=2", "optim.name=adamw", "ema=0.9", "sampler=focal")
    whole = training.train(mine, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping(patch, 12)
        with pytest.raises(Interrupted):
            training.train(mine, out=tmp_path / "parts")
    training.train(mine, out=tmp_path / "parts", resume=True)
    one, two = tensors(whole), tensors(tmp_path / "parts")
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize(
    ("model", "settings", "why"),
    [
        ("cnn_small", ["data.augment=['flip']"], "each epoch changes the images"),
        ("cnn_small", ["mixup=0.2"], "each epoch changes the images"),
        ("cnn_small", ["freeze=stage<=2"], "more than one head module is trained"),
        ("s2_cnn", ["data.imbalance=exp:0.02"], "the frozen layers compute differently in training"),
    ],
)
def test_the_run_says_why_the_frozen_part_runs_in_every_step(
    donors: Path, model: str, settings: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stopping(monkeypatch, 1)
    with pytest.raises(Interrupted):
        training.train(frozen(donors, *settings, model=model), out=tmp_path / "run")
    assert f"frozen layers run in every step: {why}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet9", "resnet32_cosine", "s1_cnn", "alexnet"])
def test_autograd_records_nothing_of_a_frozen_part(name: str) -> None:
    """The reason why torch.no_grad is not used around the frozen layers."""
    spec = registry.find("models", name)
    model = spec.build(10)
    freezing.freeze(model, "conv", spec)
    given: list[torch.Tensor] = []
    model.get_submodule(spec.head).register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    side = 64 if name == "alexnet" else 32
    logits = model.train()(torch.randn(2, 3, side, side))
    assert given[0].grad_fn is None
    assert logits.grad_fn is not None


def test_a_scale_after_the_head_forbids_stored_features(donors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.models import cnn

    real = cnn.Cnn.forward
    monkeypatch.setattr(cnn.Cnn, "forward", lambda self, images: real(self, images) * 2)
    stopping(monkeypatch, 1)
    seen: list[str] = []
    monkeypatch.setattr(features, "print_line", seen.append)
    with pytest.raises(Interrupted):
        training.train(frozen(donors), out=tmp_path / "run")
    assert seen[-1].endswith("classifier is not the last layer")


def test_the_proof_is_said_and_kept(donors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = training.train(frozen(donors), out=tmp_path / "run")
    assert "frozen   verified: 24 frozen tensors (185,824 parameters) unchanged" in capsys.readouterr().err
    proof = json.loads((folder / "result.json").read_text())["frozen"]
    assert (proof["tensors"], proof["parameters"], proof["unchanged"]) == (24, 185_824, True)
    start = registry.find("models", "cnn_small").build(10)
    start.load_state_dict(torch.load(donors / "cnn_small.pth", weights_only=True))
    assert proof["sha256"] == freezing.frozen_digest(start, proof["sha256"])
    capsys.readouterr()
    zoo.export.onnx(run.load(folder))
    assert "frozen   verified: 24 frozen tensors unchanged" in capsys.readouterr().err


def test_gradual_unfreezing_trains_what_is_released_and_no_more(
    donors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held: list[tuple[int, int, int]] = []
    real = session.train_epoch

    def watched(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        found = real(model, *arguments, **options)
        trained = [p for group in arguments[2].optimizer.param_groups for p in group["params"]]
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        held.append((len(trained), sum(p.grad is not None for p in trained), sum(m.training for m in norms)))
        return found

    monkeypatch.setattr(session, "train_epoch", watched)
    folder = training.train(frozen(donors, "epochs=3", "optim.name=adamw", "lr=0.001", GRADUAL), out=tmp_path / "run")
    assert held == [(2, 2, 0), (8, 8, 2), (14, 14, 4)]
    err = capsys.readouterr().err
    assert "frozen layers ran once" in err
    assert "freeze   stage<=1 from epoch 2 on: " in err
    assert "freeze   none from epoch 3 on: 0 parameters frozen, 187,114 trained, 0 BatchNorms fixed" in err
    before = torch.load(donors / "cnn_small.pth", weights_only=True)
    after = {name[6:]: value for name, value in tensors(folder).items() if name.startswith("model.")}
    assert [name for name in before if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize(
    ("at", "name"),
    [(10, "sgd"), pytest.param(9, "adamw", marks=pytest.mark.slow), pytest.param(20, "sgd", marks=pytest.mark.slow)],
)
def test_an_unfreezing_run_resumes_on_the_same_bits(
    donors: Path, at: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = frozen(donors, "epochs=3", f"optim.name={name}", "lr=0.001", "data.augment=['flip']", GRADUAL)
    whole = training.train(mine, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping(patch, at)  # 9 steps per epoch: the last before an unfreezing, the first after it, one in the last stage
        with pytest.raises(Interrupted):
            training.train(mine, out=tmp_path / "parts")
    training.train(mine, out=tmp_path / "parts", resume=True)
    one, two = tensors(whole), tensors(tmp_path / "parts")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert rows(whole) == rows(tmp_path / "parts")


def test_momentum_goes_on_and_begins_as_torchs(donors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After unfreezing, the optimizer equals one that was extended by add_param_group."""
    kept: list[dict[str, torch.Tensor]] = []
    real = session.Session.release

    def seen(self: session.Session, selector: str) -> None:
        def momentum() -> dict[str, torch.Tensor]:
            state = self.step.optimizer.state
            named = self.model.named_parameters()
            return {name: state[p]["momentum_buffer"].clone() for name, p in named if p in state}

        kept.append(momentum())
        real(self, selector)
        kept.append(momentum())

    monkeypatch.setattr(session.Session, "release", seen)
    training.train(frozen(donors, "epochs=2", "unfreeze=['1:stage<=1']"), out=tmp_path / "run")
    before, after = kept
    assert before.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(after) == 8
    assert not any(value.any() for name, value in after.items() if name not in before)


@pytest.mark.parametrize(
    ("unfreeze", "says"),
    [
        ("['2']", "not EPOCH:SELECTOR"),
        ("['x:none']", "not EPOCH:SELECTOR"),
        ("['0:none']", "within 1 to 4"),
        ("['5:none']", "within 1 to 4"),
        ("['2:stage<=1','2:none']", "epochs must increase"),
        ("['2:stage<=1','3:stage<=2']", "must freeze fewer layers than stage<=1"),
        ("['2:fc:all']", "must freeze fewer layers than conv"),
        ("['2:conv']", "must freeze fewer layers"),
        ("['2:stage<=9']", "freezes nothing in this model"),
    ],
)
def test_a_bad_plan_is_refused_before_the_data_is_read(
    donors: Path, unfreeze: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.training.build.dataset", lambda *arguments: 1 / 0)
    with pytest.raises(UsageError, match=says) as caught:
        training.train(frozen(donors, "epochs=5", f"unfreeze={unfreeze}"), out=tmp_path / "run")
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(("at", "name"), [(0, "features.8.weight"), (1, "features.0.weight")])
def test_a_frozen_tensor_that_moves_fails_the_run(
    donors: Path, at: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, epochs = session.train_epoch, iter(range(9))

    def moving(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        if next(epochs) == at:
            with torch.no_grad():
                model.get_parameter(name)[0] += 1e-6
        return real(model, *arguments, **options)

    monkeypatch.setattr(session, "train_epoch", moving)
    mine = frozen(donors, "epochs=3", "data.augment=['flip']", "unfreeze=['1:stage<=1','2:stage<=0']")
    with pytest.raises(DisagreeError, match=rf"frozen tensors changed in training \(1, {name} first\)"):
        training.train(mine, out=tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_dry_run_counts_the_parameters_of_a_users_classes(
    donors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(24):
        (tmp_path / "photos" / "abc"[number % 3]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "photos" / "abc"[number % 3] / f"{number}.png")
    words = ["cnn_small", "--data", str(tmp_path / "photos"), "--weights", str(donors / "cnn_small.pth"), "--freeze", "conv"]
    assert cli.run(["train", *words, "--dry-run"]) == 0
    head = registry.find("models", "cnn_small").build(3).state_dict()
    trained = sum(
        value.numel()
        for name, value in head.items()
        if freezing.inside(name, freezing.new_head(registry.find("models", "cnn_small")))
    )
    assert f"{trained:,} trained" in capsys.readouterr().err
