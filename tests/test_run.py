"""A run from recipe to folder and back: exact resume, signals, divergence, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import TINY, digests, resolve

from zoo import console, metrics, registry, run, run_folders, sampling, training
from zoo.errors import BusyError, DataError, DivergedError, FileError, UsageError
from zoo.training import checkpoint, loop, losses, session, start
from zoo.training.batches import Batches
from zoo.training.signals import Interrupted, Stop

ROOT = Path(__file__).resolve().parent.parent


def test_the_folder_holds_everything(small_run: Path) -> None:
    expected = (
        "README.md recipe.toml env.json weights.safetensors metrics.jsonl per_class.csv confusion.csv predictions.csv "
        "curves.png confusion.png per_class.png report.html result.json tensorboard last"
    )
    assert {path.name for path in small_run.iterdir()} >= set(expected.split())
    rows = checkpoint.read_rows(small_run)
    assert [(row["epoch"], row["split"]) for row in rows[:4]] == [(1, "train"), (1, "val"), (2, "train"), (2, "val")]
    assert [row["split"] for row in rows].count("test") == 1
    env = json.loads((small_run / "env.json").read_text())
    assert {"torch", "cpu", "threads", "precision", "layout", "allocator", "kernel", "data_digest"} <= set(env)
    assert not list(small_run.glob("**/.*.tmp*"))


def test_learning_lowers_the_loss(small_run: Path) -> None:
    losses = [row["loss"] for row in checkpoint.read_rows(small_run) if row["split"] == "train"]
    assert losses[1] < losses[0]


def test_a_loaded_run_gives_the_recorded_result(small_run: Path) -> None:
    loaded = run.load(small_run)
    assert not loaded.model.training
    result, logits, targets = run.evaluate(loaded)
    recorded = next(row for row in loaded.metrics if row["split"] == "test")
    assert result.accuracy == pytest.approx(recorded["accuracy"])
    assert metrics.evaluate(logits, targets).n == recorded["n"] == 1000


@pytest.mark.parametrize(
    "settings",
    [
        "",
        pytest.param("optim.name=adamw lr=0.001 ema=0.9", marks=pytest.mark.slow),
        pytest.param("mixup=0.2 cutmix=1.0 mix_with=rare data.augment=['crop','flip','cutout:8']", marks=pytest.mark.slow),
        "loss=dynamic_focal loss.rescale_every=1 class_weights=effective loss.drw_epoch=1 sampler=focal",
        "optim.name=muon lr=0.01 optim.accumulate=2 batch_size=25 lookahead=0.9",
        pytest.param("optim.name=lion lr=0.001", marks=pytest.mark.slow),
        pytest.param("optim.name=nadamw lr=0.001", marks=pytest.mark.slow),
        pytest.param("optim.name=cadamw lr=0.001", marks=pytest.mark.slow),
        pytest.param("compile=true", marks=pytest.mark.slow),
    ],
)
def test_resume_after_a_stop_in_mid_epoch_ends_on_the_same_bits(
    tmp_path: Path, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = resolve("cnn_small", "epochs=2", *settings.split())
    whole = training.train(recipe, out=tmp_path / "whole")
    steps = iter(range(1, 1000))

    def stopping(*arguments: Any, **options: Any) -> Any:
        inner = options.pop("watch")

        def watch(number: int, totals: Any) -> None:
            if next(steps) in (6, 14):  # of 18 steps: within the first and within the second epoch
                os.kill(os.getpid(), signal.SIGTERM)
            inner(number, totals)

        return real(*arguments, watch=watch, **options)

    real = session.train_epoch
    monkeypatch.setattr(session, "train_epoch", stopping)
    for resume in (False, True):
        with pytest.raises(Interrupted) as caught:
            training.train(recipe, out=tmp_path / "parts", resume=resume)
        assert caught.value.code == 143
    training.train(recipe, out=tmp_path / "parts", resume=True)
    assert digests(tmp_path / "parts") == digests(whole)
    same = [
        [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in checkpoint.read_rows(f)]
        for f in (whole, tmp_path / "parts")
    ]
    assert same[0] == same[1]


def test_a_resumed_plateau_remembers_the_best_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(made: session.Session, model: Any, val: Any, number: int, stop: Any) -> dict[str, Any]:
        return {"epoch": number, "split": "val", "loss": 1.0, "accuracy": 0.5 / number, "macro": 0.5}

    monkeypatch.setattr(session.Session, "_validated", worse)
    settings = ("schedule=plateau", "warmup=0", "schedule.plateau_epochs=1", "lr=0.01", "schedule.lr_gamma=0.5")
    training.train(resolve("cnn_small", "epochs=2", *settings), out=tmp_path / "a")
    training.train(resolve("cnn_small", "epochs=4", *settings), out=tmp_path / "a", resume=True)
    rates = [row["lr"] for row in checkpoint.read_rows(tmp_path / "a") if row["split"] == "train"]
    assert rates == [0.01, 0.01, 0.01, 0.005]


def test_a_plateau_without_validation_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"schedule = plateau needs validation images .*data\.val=0\.1"):
        training.train(resolve("cnn_small", "schedule=plateau", "data.val=0"), out=tmp_path / "a")


def test_a_compiled_run_trains_with_the_compiled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []

    def compiled(model: torch.nn.Module, *, dynamic: bool) -> torch.nn.Module:
        made = torch.nn.Sequential(model)
        made.register_forward_pre_hook(lambda module, given: called.append(module.training))
        return made

    monkeypatch.setattr(torch, "compile", compiled)
    training.train(resolve("cnn_small", "compile=true"), out=tmp_path / "compiled")
    assert called == [True] * 9  # training steps only: evaluation calls the model directly
    assert json.loads((tmp_path / "compiled/env.json").read_text())["compiled"]


def test_a_model_that_cannot_be_compiled_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(UsageError, match=r"torch.compile failed \(cnn_small: .*no-such-compiler.*omit --compile"):
        training.train(resolve("cnn_small", "compile=true"), out=tmp_path / "run")
    stop = Stop()
    stop.number = signal.SIGTERM  # of a whole process group: it ends the compiler too
    with pytest.raises(Interrupted, match="SIGTERM"), start.conditions(resolve("cnn_small", "compile=true"), stop):
        torch.compile(torch.nn.Linear(2, 2))(torch.ones(1, 2))


def test_kill_9_then_resume_ends_on_the_same_bits(tmp_path: Path) -> None:
    settings = ["cnn_small", *TINY, "epochs=3"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "zoo", "train", *settings, "--out", str(out), *more]
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(200) == 0
    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 100
    while len(checkpoint.read_rows(tmp_path / "killed")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/result.json").exists()
    assert start(tmp_path / "killed", "--resume").wait(200) == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_complete_run_has_nothing_to_resume(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(small_run)
    from zoo import recipe

    training.train(recipe.read(small_run / "recipe.toml"), out=small_run, resume=True)
    assert "nothing to do" in capsys.readouterr().err
    assert digests(small_run) == before


def test_refusals_touch_nothing(small_run: Path, tmp_path: Path) -> None:
    from zoo import recipe

    mine = recipe.read(small_run / "recipe.toml")
    before = {path: path.stat().st_mtime_ns for path in small_run.iterdir() if path.is_file() and path.name != ".lock"}
    with pytest.raises(BusyError, match="--resume"):
        training.train(mine, out=small_run)
    with pytest.raises(UsageError, match=r"optim\.lr: .* -> 0\.5"):
        training.train(recipe.changed(mine, {"optim.lr": 0.5}), out=small_run, resume=True)
    with pytest.raises(FileError, match="no run to resume"):
        training.train(mine, out=tmp_path / "nothing", resume=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", ["optim.999.momentum_buffer", "optim.x.momentum_buffer", "optim.momentum_buffer"])
def test_a_state_with_other_tensors_is_refused(small_run: Path, tmp_path: Path, name: str) -> None:
    from zoo import recipe, tensor_files

    folder = shutil.copytree(small_run, tmp_path / "run")
    newest, *older = checkpoint.states(folder)
    for path in older:
        path.unlink()
    tensors, meta = tensor_files.load_tensors(newest)
    meta = {key: value for key, value in meta.items() if key not in ("format", "version", "digests")}
    tensor_files.save_tensors(newest, tensors | {name: torch.zeros(2)}, meta)
    mine = recipe.resolve(str(folder / "recipe.toml"), {"epochs": 9})
    with pytest.raises(FileError, match="state does not fit the run"):
        training.train(mine, out=folder, resume=True)


def test_a_non_finite_loss_stops_with_the_step_and_keeps_the_good_state(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"epoch 1, step \d+, lr"):
        training.train(resolve("cnn_small", "lr=1e6", "schedule=constant"), out=tmp_path / "bad")
    report = json.loads((tmp_path / "bad" / "bad_batch.json").read_text())
    assert len(report["files"]) == 50
    tensors, header, _ = checkpoint.load_state(tmp_path / "bad")
    assert header.epoch == 0
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())
    assert not (tmp_path / "bad" / "weights.safetensors").exists()


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training image"):
        training.train(resolve("cnn_small", "data.imbalance=exp:0.0001"), out=tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    folders = [
        training.train(resolve("cnn_small", f"seed={seed}"), out=tmp_path / name)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    a, b, c = (digests(folder) for folder in folders)
    assert a == b
    assert a != c


@pytest.mark.parametrize("name", [None, "cross_entropy", "ldam", "dbm", "logit_adjustment", "focal", "sigmoid_focal"])
def test_accumulated_batches_make_the_step_of_a_large_batch(name: str | None) -> None:
    from zoo.training import loop

    weighted = {"counts": np.arange(1, 11) * 9, "class_weights": "inverse"}
    loss = losses.create_loss(name, **weighted) if name else torch.nn.CrossEntropyLoss()

    data = registry.find("data", "synthetic").build(None, size=32, val=0.1, seed=0)

    def trained(batch_size: int, accumulate: int) -> tuple[torch.Tensor, loop.Totals, int]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).double()
        made = Batches(
            data.train, np.arange(250), batch_size, torch.device("cpu"), data.mean, data.std, 32, torch.float64,
            accumulate=accumulate,
        )  # fmt: skip
        step = loop.Step(torch.optim.SGD(net.parameters(), lr=0.1), lambda at: 0.1 / (at + 1), torch.device("cpu"))
        totals = loop.train_epoch(net, loss, made, step, epoch=0)
        return net[1].weight.detach(), totals, made.steps

    (one, large, steps), (other, small, same_steps) = trained(100, 1), trained(20, 5)  # the last step has 50 samples
    assert (steps, same_steps) == (3, 3)
    assert (small.samples_seen, small.correct) == (large.samples_seen, large.correct) == (250, large.correct)
    assert large.correct > 0
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
    assert small.loss == pytest.approx(large.loss, rel=1e-5)


def test_accumulated_batches_that_learn_from_teachers_too() -> None:
    """The teachers' distance is a mean over rows, whatever the weights of the classes are."""

    class Teachers:
        weight, temperature = 1.0, 1.0

        def targets(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.eye(10).double()[torch.arange(len(inputs)) % 10]

        def blend(self, value: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return -(targets * logits.log_softmax(1)).sum(1).mean()

    loss = losses.create_loss("cross_entropy", weight=[1.0, 9.0] + [1.0] * 8)
    data = registry.find("data", "synthetic").build(None, size=32, val=0.1, seed=0)

    def trained(batch_size: int, accumulate: int) -> torch.Tensor:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).double()
        made = Batches(
            data.train, np.arange(100), batch_size, torch.device("cpu"), data.mean, data.std, 32, torch.float64,
            accumulate=accumulate,
        )  # fmt: skip
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        step = loop.Step(sgd, lambda at: 0.1, torch.device("cpu"), distil=Teachers())  # type: ignore[arg-type]
        loop.train_epoch(net, loss, made, step, epoch=0)
        return net[1].weight.detach()

    torch.testing.assert_close(trained(20, 5), trained(100, 1), rtol=1e-5, atol=1e-7)


def test_parameters_of_a_loss_are_clipped_and_scaled_with_the_others() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1000.0, dtype=torch.float64))

        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(logits, target) * self.scale**2

    loss, data = Scaled(), registry.find("data", "synthetic").build(None, size=32, val=0.1, seed=0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).double()
    made = Batches(data.train, np.arange(50), 50, torch.device("cpu"), data.mean, data.std, 32, torch.float64)
    sgd = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=1.0)
    loop.train_epoch(net, loss, made, loop.Step(sgd, lambda at: 1.0, torch.device("cpu"), clip=1.0), epoch=0)
    assert 1000 - 1.0001 < float(loss.scale.detach()) < 1000


def test_batches_do_not_depend_on_how_they_are_cut() -> None:
    data = registry.find("data", "synthetic").build(None, size=32, val=0.1, seed=0)
    index = np.arange(500)

    def images(size: int, skip: int = 0) -> torch.Tensor:
        made = Batches(data.train, index, size, torch.device("cpu"), data.mean, data.std, 32, augment=("crop", "flip"), seed=5)
        return torch.cat([inputs for inputs, *_ in made.epoch(2, skip)])

    def partners(size: int) -> list[torch.Tensor]:
        made = Batches(
            data.train, index, size, torch.device("cpu"), data.mean, data.std, 32, augment=("crop", "flip"), seed=5,
            partner_odds=sampling.rare_odds(data.train.targets[index]),
        )  # fmt: skip
        return [torch.cat(part) for part in zip(*(batch.partners for batch in made.epoch(2)), strict=True)]

    assert torch.equal(images(100), images(37))
    assert all(torch.equal(one, other) for one, other in zip(partners(100), partners(37), strict=True))
    assert not torch.equal(partners(100)[0], images(100))
    assert torch.equal(images(100)[300:], images(100, skip=3))


@pytest.mark.parametrize(
    ("images", "size", "sizes"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1]), (5, 4, [5])],
)
def test_a_single_image_left_over_joins_the_last_batch(images: int, size: int, sizes: list[int]) -> None:
    data = registry.find("data", "synthetic").build(None, size=32, val=0.1, seed=0)
    made = Batches(data.train, np.arange(images), size, torch.device("cpu"), data.mean, data.std, 32, augment=())
    assert [len(batch.targets) for batch in made.epoch(0)] == sizes
    assert len(made) == made.steps == len(sizes)
    assert [len(batch.targets) for batch in made.epoch(0, 1)] == sizes[1:]


def test_a_choice_on_the_test_images_is_stamped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zoo import report, tables

    stamped = training.train(resolve("cnn_small", "select_on=test"), out=tmp_path / "t")
    result = json.loads((stamped / "result.json").read_text())
    assert (result["chosen_on"], result["chosen_accuracy"]) == ("test", result["accuracy"])
    assert {row["split"] for row in checkpoint.read_rows(stamped)} == {"train", "test each epoch", "test"}
    assert "selected on the test images" in capsys.readouterr().err
    tables.result(stamped)
    assert "selected on these test images" in capsys.readouterr().out
    assert "selected on the test images" in (stamped / "README.md").read_text()
    assert "selected on the test images" in report.page(stamped).read_text()


def test_the_epoch_may_be_selected_by_the_mean_over_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validated = session.Session._validated

    def given(*arguments: Any) -> dict[str, Any]:
        row = validated(*arguments)
        return row | {"accuracy": (0.1, 0.2)[row["epoch"] - 1], "macro": (0.5, 0.3)[row["epoch"] - 1]}

    monkeypatch.setattr(session.Session, "_validated", given)
    folder = training.train(resolve("cnn_small", "select_by=macro", "epochs=2"), out=tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    assert (checkpoint.read_rows(folder)[-1]["epoch"], result["chosen_accuracy"]) == (1, 0.5), "not the last, by accuracy"


def test_a_result_holds_shots_pairs_and_how_it_was_chosen(small_run: Path) -> None:
    result = json.loads((small_run / "result.json").read_text())
    best = max(row["accuracy"] for row in checkpoint.read_rows(small_run) if row["split"] == "val")
    assert (result["chosen_on"], result["chosen_accuracy"]) == ("val", best)
    assert [shot["name"] for shot in result["shots"]] == ["many", "medium"]
    pair = result["worst_pairs"][0]
    assert pair["share"] == (pair["there"] + pair["back"]) / pair["n"]


def test_larger_images_without_augmentation_are_cut_for_training() -> None:
    data = registry.find("data", "synthetic").build(None, size=32, val=0.1, seed=0)
    made = Batches(data.train, np.arange(4), 4, torch.device("cpu"), data.mean, data.std, 24, augment=())
    assert next(iter(made.epoch(0)))[0].shape == (4, 3, 24, 24)


def test_a_forced_run_keeps_no_file_of_the_old_weights(tmp_path: Path) -> None:
    mine = tmp_path / "model.txt"
    for name in ("model.onnx", "model.int8.onnx", "model.3f2a90c1.onnx.data", "model.pt2", "model.xml", "model.bin", mine.name):
        (tmp_path / name).write_bytes(b"old")
    run_folders.clear(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize(("data", "side"), [("folder", 256), ("caltech101", 256), ("cifar10", 224)])
def test_an_image_is_taken_as_the_data_set_keeps_its_own(tmp_path: Path, data: str, side: int) -> None:
    from zoo import recipe

    made = recipe.resolve("alexnet", {"data.name": data, "data.dir": str(tmp_path)})
    shown = run.Run(tmp_path, torch.nn.Identity(), made, ("a", "b"), (3, 224, 224), (0.0,) * 3, (1.0,) * 3, [], {})
    assert shown.stored == side


def test_a_long_evaluation_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "SILENT_SECONDS", -1.0)
    data = registry.find("data", "synthetic").build(None, size=24, val=0.1, seed=0)
    made = Batches(data.test, np.arange(5), 2, torch.device("cpu"), data.mean, data.std, 24, augment=())
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, 10))
    logits, targets = loop.predict(net, made)
    assert len(logits) == len(targets) == 5
    assert [line.partition(" · ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "eval     evaluated 2 of 5", "eval     evaluated 4 of 5"
    ]  # fmt: skip
