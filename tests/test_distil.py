"""A run learns from finished runs: the distance to them, what fits, and resuming with the same bits."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import digests, small, stopped
from torch import nn

from zoo import create_model, run_folders, training
from zoo import recipe as recipes
from zoo.errors import FileError, UsageError, ZooError
from zoo.spec import Given
from zoo.training import build, distil
from zoo.training.processes import Team


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs."""
    root = tmp_path_factory.mktemp("teachers")
    return [training.train(small("epochs=2", f"seed={seed}"), out=root / f"t{seed}") for seed in range(2)]


def learning(teachers: list[Path], *settings: str) -> Any:
    return small(f"distil.teacher=[{', '.join(repr(str(path)) for path in teachers)}]", *settings)


def test_the_distance_is_hintons() -> None:
    """T^2 times the divergence of the mean of the teachers, in float64 by its definition."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(12, 5)) for _ in range(2)]
    known = [distil.Teacher(net, torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1), "") for net in nets]
    made = distil.Distillation(known, weight=0.7, temperature=3.0)
    images, logits, loss = torch.randn(4, 3, 2, 2), torch.randn(4, 5, requires_grad=True), torch.tensor(2.0)
    q = torch.stack([(net(images).double() / 3).softmax(1) for net in nets]).mean(0)
    p = (logits.double() / 3).softmax(1)
    expected = 0.3 * 2 + 0.7 * 9 * (q * (q.log() - p.log())).sum(1).mean()
    got = made.blend(loss, logits, made.targets(images))
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert not made.targets(images).requires_grad


def test_a_teacher_sees_its_own_normalisation(teachers: list[Path]) -> None:
    """A run with other statistics gives a teacher the images that it was trained on."""
    changed = learning(teachers, "data.mean=[0.1, 0.2, 0.3]", "data.std=[0.5, 0.6, 0.7]")
    made, _ = build.session(changed, Path("unused"), build.place(changed, Team()), Team())
    plain = small()
    reference, _ = build.session(plain, Path("unused"), build.place(plain, Team()), Team())
    assert made.step.distil is not None
    teacher = made.step.distil.teachers[0]
    images = next(made.test.epoch(0)).inputs[:8].float()
    expected = teacher.model(next(reference.test.epoch(0)).inputs[:8].float())
    torch.testing.assert_close(teacher(images), expected, rtol=0.05, atol=0.05)
    assert not teacher.model.training


def test_a_student_comes_closer_to_its_teachers(teachers: list[Path], tmp_path: Path) -> None:
    """With weight 1 the labels are not used, and the distance to the teachers falls."""
    run = training.train(learning(teachers, "distil.weight=1", "epochs=3"), out=tmp_path / "s")
    losses = [row["loss"] for row in training.checkpoint.read_rows(run) if row["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]


def test_a_stopped_run_goes_on_with_the_same_bits(
    teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = learning(teachers, "epochs=2", "mixup=0.2")
    whole = training.train(recipe, out=tmp_path / "whole")
    stopped(recipe, tmp_path / "part", monkeypatch)
    training.train(recipe, out=tmp_path / "part", resume=True)
    assert digests(whole) == digests(tmp_path / "part")


def test_other_teachers_are_refused_on_resuming(teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of a teacher's weights belongs to the run."""
    mine = shutil.copytree(teachers[0], tmp_path / "mine")
    recipe = learning([mine], "epochs=2")
    stopped(recipe, tmp_path / "part", monkeypatch)
    shutil.copy(teachers[1] / "weights.safetensors", mine / "weights.safetensors")
    with pytest.raises(FileError, match="checkpoint is"):
        training.train(recipe, out=tmp_path / "part", resume=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["distil.teacher=nobody"], "no run 'nobody'"),
        (["distil.temperature=0"], "distil.temperature = 0 is not allowed"),
        (["distil.weight=1.5"], "distil.weight = 1.5 is not allowed"),
    ],
)
def test_wrong_settings(settings: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=says):
        training.train(small(*settings), out=tmp_path / "r")


def test_a_teacher_that_does_not_fit(teachers: list[Path], tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"teacher takes images of 32 pixels, the model of 40 \(distil.teacher, .*set data.size=32"
    ):
        training.train(learning(teachers, "data.size=40", "data.augment=[]"), out=tmp_path / "a")
    broken = shutil.copytree(teachers[0], tmp_path / "unfinished")
    (broken / "weights.safetensors").unlink()
    with pytest.raises(FileError, match=r"teacher has no weights \(.*unfinished\); finish its training"):
        training.train(learning([broken]), out=tmp_path / "b")
    data = build.dataset(learning(teachers), 32)
    swapped = dataclasses.replace(data, classes=[*data.classes[:8], data.classes[9], data.classes[8]])
    with pytest.raises(
        UsageError, match=r"teacher has other classes \(.*10 classes, the data 10, number 8 is '.+', there '.+'\); choose a run"
    ):
        training.train(learning(teachers), out=tmp_path / "c", given=Given(None, swapped, None))


def test_a_teacher_that_learned_the_validation_images(teachers: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    other = learning(teachers[:1], "seed=7")
    build.session(other, Path("unused"), build.place(other, Team()), Team())
    assert "warning  teacher t0 held out other images" in capsys.readouterr().err
    same = learning(teachers[:1])
    build.session(same, Path("unused"), build.place(same, Team()), Team())
    assert "held out other images" not in capsys.readouterr().err


def test_a_run_with_relative_paths_resumes_from_another_folder(
    teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and teachers are found whatever the working directory is."""
    monkeypatch.chdir(teachers[0].parent)
    recipe = small("weights=t1", "distil.teacher=t0", "epochs=2")
    stopped(recipe, tmp_path / "run", monkeypatch)
    monkeypatch.chdir("/")
    resumed = recipes.read(tmp_path / "run" / "recipe.toml")
    training.train(resumed, out=tmp_path / "run", resume=True)
    monkeypatch.chdir(teachers[0].parent)
    assert recipes.differences(resumed, run_folders.located(recipe)) == []
    training.train(small("weights=t1", "distil.teacher=t0", "epochs=3"), out=tmp_path / "run", resume=True)


def test_weights_of_a_run_by_its_name(teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--weights NAME`` finds a run in the folder of runs, as ``--help`` says; ``latest`` is the most recent one."""
    monkeypatch.setenv("ZOO_RUNS", str(teachers[0].parent))
    monkeypatch.chdir(tmp_path)
    assert run_folders.located(small("weights=t1")).weights == str(teachers[1])
    assert run_folders.located(small("weights=latest")).weights in map(str, teachers)
    assert run_folders.located(small("weights=t9")).weights == "t9"
    assert run_folders.located(small("weights=t")).weights == "t", "ambiguous"
    training.train(small("weights=t0", "epochs=1"), out=tmp_path / "run")
    assert recipes.read(tmp_path / "run" / "recipe.toml").weights == str(teachers[0])
    named, placed = (create_model("cnn_small", weights=source).state_dict() for source in ("t1", str(teachers[1])))
    assert all(torch.equal(named[key], placed[key]) for key in named)
    Path("t1").write_text("a file of that name comes first")
    assert run_folders.located(small("weights=t1")).weights == str(tmp_path / "t1")


def test_an_unfinished_teacher_is_named(teachers: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = shutil.copytree(teachers[0], tmp_path / "t0")
    (stopped / "result.json").unlink()
    for teacher, says in ((teachers[0], False), (stopped, True)):
        mine = learning([teacher])
        build.session(mine, Path("unused"), build.place(mine, Team()), Team())
        assert ("warning  teacher t0 is not finished: its weights are the best so far" in capsys.readouterr().err) == says
