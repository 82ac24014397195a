"""Reported experiments: what is trained, what is not trained again, comparison of reported and measured results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy import stats

from zoo import metrics, reproduce, run_folders, training
from zoo import recipe as recipes
from zoo.bench import _timing
from zoo.bench import recipes as bench
from zoo.cli import cli
from zoo.errors import BusyError, DivergedError, UsageError
from zoo.recipe import Recipe
from zoo.training.signals import Interrupted

NAMES = ["s0_4", "s0_5"]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def leave(folder: Path, recipe: Recipe, *, finished: bool = True, accuracy: float = 0.4) -> None:
    """A run folder as after training."""
    (folder / "last").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(recipes.dump(recipe))
    (folder / "last" / "state-1").touch()
    env = {"precision": "fp32", "threads": 1, "lint": ["a warning"]} | dict.fromkeys(_timing.ENVIRONMENT, "")
    (folder / "env.json").write_text(json.dumps(env))
    (folder / "metrics.jsonl").write_text(
        json.dumps({"epoch": 1, "split": "train", "loss": 1.0, "accuracy": 0.5, "images_per_s": 100.0}) + "\n"
    )
    rows = [f"{name},1000,{round(1000 * accuracy)},{accuracy},0.3,0.5" for name in CLASSES]
    (folder / "per_class.csv").write_text("\n".join(["class,n,correct,accuracy,low,high", *rows]) + "\n")
    if finished:
        low, high = metrics.wilson(round(10_000 * accuracy), 10_000)
        result = {"n": 10_000, "accuracy": accuracy, "low": low, "high": high, "macro": accuracy, "epoch": 1, "seconds": 60.0}
        (folder / "result.json").write_text(json.dumps(result | {"trained": run_folders.wanted(recipe)}))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """Replaces training; records folder name, seed and whether it was resumed, for each run."""
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    calls: list[tuple[str, int, bool]] = []

    def train(recipe: Recipe, *, out: Path, resume: bool, force: bool, command: str) -> Path:
        calls.append((out.name, recipe.seed, resume))
        assert force is not resume and command == "zoo reproduce"
        leave(out, recipe)
        return out

    monkeypatch.setattr(training, "train", train)
    return calls


def repeat(seeds: int = 1, **fixed: Any) -> list[str]:
    return reproduce.repeat(NAMES, seeds=seeds, fixed=fixed, command="zoo reproduce")


def test_the_first_seed_of_all_comes_first_and_nothing_is_trained_twice(trained: list[tuple[str, int, bool]]) -> None:
    assert repeat(2) == []
    assert trained == [("s0_4-s0", 0, False), ("s0_5-s0", 0, False), ("s0_4-s1", 1, False), ("s0_5-s1", 1, False)]
    repeat(2)
    assert len(trained) == 4
    repeat(3, compile=True)
    assert trained[4:] == [("s0_4-s2", 2, False), ("s0_5-s2", 2, False)], "speed makes no other experiment"
    assert [path.name for path in reproduce.finished("s0_4")] == ["s0_4-s0", "s0_4-s1", "s0_4-s2"]


def test_a_run_under_any_name_counts_and_another_recipe_does_not(trained: list[tuple[str, int, bool]]) -> None:
    leave(run_folders.root() / "mine", recipes.resolve("s0_4", {"data.dir": "/images", "precision": "fp32"}))
    leave(run_folders.root() / "s0_5-s0", recipes.resolve("s0_5", {"epochs": 3}))
    (run_folders.root() / "broken").mkdir()
    (run_folders.root() / "broken" / "recipe.toml").write_text("epochs = ")
    repeat()
    assert trained == [("s0_5-s0a", 0, False)]
    assert [path.name for path in reproduce.finished("s0_4")] == ["mine"]


@pytest.mark.parametrize("name", ["data", "loss", "model"])
def test_a_run_with_an_object_from_python_is_no_run_of_the_recipe(trained: list[tuple[str, int, bool]], name: str) -> None:
    """Its recipe does not name the object, and equals that of the experiment."""
    leave(run_folders.root() / "own", recipes.resolve("s0_4", {}), accuracy=0.9)
    path = run_folders.root() / "own" / "env.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {f"{name}_given": "Mine"}))
    assert reproduce.accuracies("s0_4") == [] and bench.rows_of([path.parent]) == []
    path.write_text("damaged")
    repeat()
    assert reproduce.accuracies("s0_4") == [0.4]


def test_an_interrupted_run_goes_on_where_it_was_begun(trained: list[tuple[str, int, bool]]) -> None:
    leave(run_folders.root() / "begun", recipes.resolve("s0_4", {}), finished=False)
    repeat()
    assert trained == [("begun", 0, True), ("s0_5-s0", 0, False)]


@pytest.mark.parametrize(
    ("error", "expected"), [(BusyError("held"), []), (DivergedError("nan"), ["s0_4 seed 0 diverged: nan"])]
)
def test_what_cannot_be_trained_keeps_no_other_back(
    trained: list[tuple[str, int, bool]], monkeypatch: pytest.MonkeyPatch, error: Exception, expected: list[str]
) -> None:
    works: Callable[..., Path] = training.train

    def train(recipe: Recipe, *, out: Path, **how: Any) -> Path:
        if out.name == "s0_4-s0":
            raise error
        return works(recipe, out=out, **how)

    monkeypatch.setattr(training, "train", train)
    assert repeat() == expected
    assert trained == [("s0_5-s0", 0, False)]


def test_a_signal_ends_it_with_the_line_that_goes_on(monkeypatch: pytest.MonkeyPatch, trained: list[Any]) -> None:
    def train(*_: Any, **__: Any) -> Path:
        raise Interrupted(2)

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(Interrupted) as caught:
        repeat()
    assert caught.value.resume == "zoo reproduce"  # type: ignore[attr-defined]


def test_the_list_names_the_download_and_the_analogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    for seed, weights in ((0, "/a/lite0.safetensors"), (1, "default")):
        leave(
            tmp_path / f"r{seed}",
            recipes.resolve("caltech101_lite0_f1", {"seed": seed, "weights": weights}),
            accuracy=0.9 + seed / 50,
        )
    rows = {row["experiment"]: row for row in json.loads(CliRunner().invoke(cli, ["reproduce", "--json"]).output)}
    f1 = rows["s4_f1"]
    assert (f1["needs"], f1["analogue"], f1["analogue_here"], f1["here"]) == (
        "alexnet imagenet1k_v1", "caltech101_lite0_f1", [0.9, 0.92], []
    )  # fmt: skip
    assert rows["s4_a4"]["needs"] == "" and rows["s0_1"]["analogue"] == ""
    for name in (row["analogue"] for row in rows.values() if row["analogue"]):
        assert recipes.resolve(name, {}).model == "timm/tf_efficientnet_lite0"


def test_patterns() -> None:
    assert reproduce.chosen(["s2_cbf_9*", "S2_CE"]) == ["s2_cbf_9", "s2_cbf_99", "s2_cbf_999", "s2_ce"]
    with pytest.raises(UsageError, match=r"no experiment 's0_7' \(did you mean s0_\d.*list them with: zoo reproduce"):
        reproduce.chosen(["s0_7"])


def test_reported_classes_average_to_the_reported_accuracy() -> None:
    found = {name: recipe.reported for name, recipe in reproduce.experiments().items() if recipe.reported.classes}
    assert len(found) == 9
    for name, reported in found.items():
        assert len(reported.classes) == 10
        assert sum(reported.classes) / 10 == pytest.approx(reported.accuracy, abs=0.0015), name


def test_the_difference_of_one_run_is_that_of_two_shares() -> None:
    low, high = metrics.wilson(4_000, 10_000)
    group = [{"accuracy": "0.4", "low": low, "high": high, "n": "10000", "reported": "0.39"}]

    # Newcombe 1998, method 10, with an independent formula of the score interval
    def score(p: float) -> tuple[float, float]:
        z2, n = stats.norm.ppf(0.975) ** 2, 10_000
        middle, half = p + z2 / (2 * n), (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5
        return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)

    (a, b), (c, d) = score(0.4), score(0.39)
    expected = (
        1.0,
        1.0 - 100 * ((0.4 - a) ** 2 + (d - 0.39) ** 2) ** 0.5,
        1.0 + 100 * ((b - 0.4) ** 2 + (0.39 - c) ** 2) ** 0.5,
    )
    assert bench.difference(group) == pytest.approx(expected, abs=1e-9)
    assert bench.difference([group[0] | {"reported": ""}]) is None


def test_the_difference_of_several_runs_counts_the_spread_of_one_more() -> None:
    group = [{"accuracy": str(share), "n": "10000", "reported": "0.39"} for share in (0.40, 0.41, 0.42)]
    half = stats.t.ppf(0.975, 2) * 1.0 * (4 / 3) ** 0.5
    assert bench.difference(group) == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-9)


def test_the_command_shows_reported_and_measured(trained: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for seed, share in enumerate((0.45, 0.46)):
        leave(run_folders.root() / f"a{seed}", recipes.resolve("s0_5", {"seed": seed}), accuracy=share)
    result = CliRunner().invoke(cli, ["reproduce", "s0_5", "--seeds", "2"])
    assert result.exit_code == 0, result.output
    assert trained == []
    assert "45.50 ± 0.71 (n = 2)" in result.output and "43.2" in result.output and "+2.3 (-8.7 to +13.3)" in result.output
    assert "+13.3)*" not in result.output, "the interval holds 0"
    assert "airplane" in result.output and "-20.1" in result.output, "class by class"
    assert "note      s0_5: the weights have a mean of 0.17" in result.output
    assert "lint      s0_5: a warning" in result.output
    assert (run_folders.root() / "reproduce.csv").is_file() and (run_folders.root() / "reproduce.png").is_file()
    listed = json.loads(CliRunner().invoke(cli, ["reproduce", "--json"]).output)
    assert {row["experiment"]: row["here"] for row in listed}["s0_5"] == [0.45, 0.46]


def test_the_course_of_a_loss_stands_beside_the_reported_one(trained: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for seed in (0, 1):
        folder = run_folders.root() / f"s3_dfl-s{seed}"
        leave(folder, recipes.resolve("s3_dfl", {"seed": seed}))
        found = [
            {"epoch": n, "split": "train", "images_per_s": 1.0, "mean_factor": 0.5 + seed / 10, "focal_scale": n / 2}
            for n in range(1, 12)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"loss": 1.0, "accuracy": 0.5} | row) + "\n" for row in found))
    rows = bench.course_of(reproduce.finished("s3_dfl"))
    assert [(row["seed"], row["epoch"], row["focal_scale"], row["reported_focal_scale"]) for row in rows] == [
        (seed, epoch, epoch / 2, theirs) for seed in (0, 1) for epoch, theirs in ((5, 3.33), (10, 4.30), (11, ""))
    ]
    assert {row["easy"] for row in rows} == {""}, "it has no such sampler"
    output = CliRunner().invoke(cli, ["reproduce", "s3_dfl", "--seeds", "2"]).output
    assert [line.split() for line in output.splitlines() if line.startswith("5 ")] == [["5", "0.55", "0.3", "2.5", "3.33"]]
    folder = run_folders.root() / "s3_fs-s0"
    leave(folder, recipes.resolve("s3_fs", {}))
    sampled = [{"epoch": n, "split": "train", "images_per_s": 1.0, "easy": n / 100, "hard": 0.5} for n in range(1, 7)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"loss": 1.0, "accuracy": 0.5} | row) + "\n" for row in sampled))
    drawn = bench.course_of([folder])
    assert [(row["epoch"], row["easy"], row["reported_easy"]) for row in drawn] == [
        (4, 0.04, 0.092),
        (5, 0.05, ""),
        (6, 0.06, ""),
    ]
    path = bench.main(out=run_folders.root() / "all.csv")
    assert len(_timing.read_csv(path.with_name("all_course.csv"))) == 6 + 3
