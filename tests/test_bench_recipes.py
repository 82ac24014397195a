"""Rows of finished runs: names, groups of seeds, merging with rows of other machines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from zoo import csv_files
from zoo import recipe as recipes
from zoo.__main__ import run as zoo
from zoo.bench import _analogues, _few, _headers, _tables, _timing
from zoo.bench import recipes as recipes_bench

CPU = {"device": "cpu", "cpu": "A CPU"}


def test_rows_of_other_runs_stay(tmp_path: Path) -> None:
    rows = [
        {"recipe": f"mine {digest}", "digest": digest, "seed": seed, "accuracy": 0.5}
        for digest, seed in (("a", 0), ("a", 1), ("b", 0))
    ]
    path = _timing.write_csv(tmp_path / "r.csv", rows)
    merged = recipes_bench._merged(path, [{"recipe": "mine a", "digest": "a", "seed": 1, "accuracy": 0.75, "new": "x"}])
    assert [(row["digest"], int(row["seed"]), float(row["accuracy"]), row["new"]) for row in merged] == [
        ("a", 0, 0.5, ""),
        ("b", 0, 0.5, ""),
        ("a", 1, 0.75, "x"),
    ]


def test_seeds_of_one_recipe_have_the_warnings_of_the_newest_run(tmp_path: Path) -> None:
    fields = ("recipe", "digest", "seed", "lint")
    old = [("demo", "a", 0, "old words"), ("demo epochs=2", "b", 0, "old words")]
    path = _timing.write_csv(tmp_path / "r.csv", [dict(zip(fields, row)) for row in old])
    merged = recipes_bench._merged(path, [dict(zip(fields, ("demo", "a", 1, "new words")))])
    assert [row["lint"] for row in merged] == ["new words", "old words", "new words"]


def test_kept_rows_have_the_reported_result_of_their_recipe_now(tmp_path: Path) -> None:
    """Also none, where the recipe has none or was changed by the run."""
    names = ("s4_a1", "s4_a1 epochs=2", "demo")
    old = [{"recipe": name, "digest": name, "seed": 0, "reported": 0.5, "source": "old", "note": "old"} for name in names]
    path = _timing.write_csv(tmp_path / "r.csv", old)
    merged = recipes_bench._merged(path, [{**old[-1], "digest": "new", "lint": ""}])
    found = [(row["reported"], row["source"], row["note"]) for row in merged[:3]]
    assert found == [(0.091946, "one run, 266 of 2,893", ""), ("", "", ""), ("", "", "")]


def test_a_row_has_the_accuracy_with_averaged_views(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    assert recipes_bench._views(run) == {"views": "", "views_accuracy": ""}
    assert zoo(["eval", str(run), "--out", str(run / "views")]) == 0
    assert recipes_bench._views(run) == {"views": "", "views_accuracy": ""}, "one view per image"
    assert zoo(["eval", str(run), "--views", "flip", "--out", str(run / "views")]) == 0
    found = recipes_bench.rows_of([run])[0]
    assert (found["views"], found["views_accuracy"]) == (
        "flip",
        json.loads((run / "views/result.json").read_text())["accuracy"],
    )
    assert zoo(["eval", str(run), "--views", "flip", "--split", "train", "--out", str(run / "views")]) == 0
    assert recipes_bench._views(run) == {"views": "", "views_accuracy": ""}, "training images"


def test_rows_of_a_changed_recipe_are_dropped(tmp_path: Path) -> None:
    """A name that now stands for other settings; other names, and names of users' runs, do not tell the settings."""
    old = [("demo", "a", 0), ("demo epochs=2", "b", 0), ("s1_ce", "c", 0), ("resnet20 focal", "d", 0)]
    fields = ("recipe", "digest", "seed")
    path = _timing.write_csv(tmp_path / "r.csv", [dict(zip(fields, row)) for row in old])
    new = [dict(zip(fields, row)) for row in (("demo", "A", 1), ("resnet20 focal", "D", 1))]
    merged = [(row["recipe"], row["digest"]) for row in recipes_bench._merged(path, new)]
    assert merged == [("demo epochs=2", "b"), ("s1_ce", "c"), ("resnet20 focal", "d"), ("demo", "A"), ("resnet20 focal", "D")]


def test_runs_of_sweeps_have_rows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    for name in ("alone", "sweeps/s/beta=0,s0", "sweeps/s/begun"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.toml").touch()
    fixed = {"data": "d", "imbalance": "none", "model": "m", "seed": 0, "digest": "", "n": 100}
    fixed |= {"accuracy": 0.5, "low": 0.4, "high": 0.6} | CPU
    monkeypatch.setattr(
        recipes_bench, "_row", lambda folder: None if folder.name == "begun" else fixed | {"recipe": folder.name}
    )
    path = recipes_bench.main(out=tmp_path / "recipes.csv")
    assert [row["recipe"] for row in _timing.read_csv(path)] == ["alone", "beta=0,s0"]


def test_a_recipe_is_named_by_what_it_changes() -> None:
    recipe = recipes.resolve("cifar10_resnet32_ce", {"epochs": 20, "seed": 3, "data.dir": "/somewhere"})
    assert recipes_bench._name(recipe) == "cifar10_resnet32_ce epochs=20"
    assert recipes_bench.digest(recipe) == recipes_bench.digest(recipes.resolve("cifar10_resnet32_ce", {"epochs": 20}))
    assert recipes_bench.digest(recipe) != recipes_bench.digest(recipes.resolve("cifar10_resnet32_ce", {}))
    trained = recipes.resolve("caltech101_lite0_t", {"weights": "/a/lite0.safetensors", "epochs": 2})
    assert recipes_bench._name(trained) == "caltech101_lite0_t weights=lite0.safetensors epochs=2"
    assert recipes_bench._labels([("a weights=x b=1", [{}]), ("a weights=x b=2", [{}])]) == ["a b=1  n=1", "a b=2  n=1"]
    assert recipes_bench._labels([("a weights=x", [{}]), ("a weights=y", [{}])]) == ["a weights=x  n=1", "a weights=y  n=1"]
    assert recipes_bench._name(recipes.Recipe(model="wrn_16_4", epochs=7)) == "wrn_16_4 cross_entropy"


def test_recipes_are_grouped_over_seeds_in_table_and_picture() -> None:
    def row(recipe: str, seed: int, accuracy: float, select_on: str = "val") -> dict[str, str]:
        values = {"recipe": recipe, "digest": recipe, "seed": seed, "data": "cifar10", "imbalance": "exp:0.01", "n": 10000}
        values |= {
            "accuracy": accuracy,
            "low": accuracy - 0.01,
            "high": accuracy + 0.01,
            "macro": accuracy,
            "select_on": select_on,
        }
        return {key: str(value) for key, value in (values | {"images_per_s": 800.0, "minutes": 9.5}).items()} | CPU

    rows = [
        row("ce", 0, 0.70) | {"reported": "0.704"},
        row("ce", 1, 0.72),
        row("focal", 0, 0.75),
        row("peeked", 0, 0.6, "test"),
    ]
    cells = [list(column.cells) for column in recipes_bench.table(rows).columns]
    assert cells[0] == ["ce", "focal", "peeked (SELECTED ON TEST)"]
    assert cells[2] == ["71.00 ± 1.41 (n = 2)", "75.00 (n = 1)", "60.00 (n = 1)"]
    assert cells[4] == ["70.4", "", ""]
    assert cells[3] == ["58.3 to 83.7", "74.0 to 76.0", "59.0 to 61.0"], "t over two seeds by hand: 71 ± 12.706"
    axes = recipes_bench.picture(rows).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["focal  n=1", "ce  n=2"]
    left, right = axes.get_xlim()
    assert left < 58.3 and right > 83.7, "the interval of two seeds is inside the axis"
    assert recipes_bench.picture(rows[-1:]).axes[0].get_yticklabels()[0].get_text() == "peeked (SELECTED ON TEST)  n=1"
    assert "10,000 test images" in axes.get_title()
    rows[0]["device"], rows[1]["cpu"] = "A GPU", "Another CPU"
    assert recipes_bench.picture(rows).legends[0].get_title().get_text().endswith("\ntrained on A GPU, Another CPU, A CPU")
    theirs = [line for line in axes.lines if line.get_marker() == "s"]
    assert [(float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in theirs] == [(pytest.approx(70.4), 1)]


def test_accuracy_is_drawn_against_the_images_per_class() -> None:
    def row(recipe: str, accuracy: float) -> dict[str, str]:
        return {"recipe": recipe, "accuracy": str(accuracy), "macro": str(accuracy - 0.1), "data": "birds", "n": "50"} | CPU

    name = "frozen data.val=0.02"
    rows = [row(f"{name} data.per_class={number}", 0.5 + number / 100) for number in (10, 5, 5, 1)] + [row(name, 0.9)]
    found = _few.curves([*rows, row("other data.per_class=1", 0.1), row("other data.per_class=2", 0.2)])
    assert {key: {number: len(group) for number, group in by.items()} for key, by in found.items()} == {
        name: {0: 1, 1: 1, 5: 2, 10: 1}
    }
    axes = _few.picture(name, found[name]).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines["overall"].get_xdata()) == [1, 5, 10]
    assert list(lines["overall"].get_ydata()) == pytest.approx([51, 55, 60])
    assert list(lines["mean per class"].get_ydata()) == pytest.approx([41, 45, 50])
    assert "n = 1 to 2 seeds" in axes.get_title()


def result_row(recipe: str, seed: int, accuracy: float, **changed: str) -> dict[str, str]:
    found = recipes_bench.digest(_headers._changed(recipe.split()[0], recipe.split()[1:]))
    facts = {
        "n": "10000",
        "minutes": "20",
        "precision": "bf16",
        "threads": "1",
        "cpu": "X",
        "device": "cpu",
        "torch": "2",
        "commit": "c",
        "date": "d",
    }
    return {
        "recipe": recipe,
        "digest": found,
        "accuracy": str(accuracy),
        "select_on": "val",
        "seed": str(seed),
        **facts,
        **changed,
    }


def test_results_in_the_comments_of_recipes() -> None:
    name = "cifar10_resnet32_ce"
    rows = [result_row(name, seed, 0.9 + seed / 100) for seed in range(3)]
    rows += [result_row(f"{name} data.val=0.0", 0, 0.95), result_row(f"{name} epochs=2", 0, 0.1)]
    rows += [result_row(name, 3, 0.1, digest="of other settings"), result_row("s3_dfl", 0, 0.5)]
    lines = _headers.results(name, rows)
    assert lines == [
        "# Result: 91 ± 1 % of 10,000 test images (n = 3), 20 minutes, bf16, 1 core of X, torch 2, commit c.",
        "# Result with data.val=0.0: 95 % of 10,000 test images (n = 1), 20 minutes, bf16, 1 core of X, torch 2, commit c.",
    ]
    apart = [result_row(name, 0, 0.9), result_row(name, 1, 0.9, minutes="80", precision="fp32", cpu="Y")]
    assert "(n = 2), 20 to 80 minutes, bf16 and fp32, 1 core of X and Y, torch 2" in _headers.results(name, apart)[0]
    assert "SELECTED ON TEST" in _headers.results(name, [result_row(name, 0, 0.5, select_on="test")])[0]
    text = _headers.updated("# a\n# Result: old.\n# b\nmodel = 1 # Result\n", lines)
    assert text == "\n".join(["# a", "# b", *lines, "model = 1 # Result", ""])
    assert _headers.updated(text, lines) == text


def test_the_comments_of_the_recipes_are_those_of_the_recorded_results() -> None:
    rows = csv_files.read(_tables.RESULTS / "recipes.csv")
    found = {name: _headers.results(name, rows) for name in recipes.shipped()}
    assert sum(map(bool, found.values())) >= 20
    for name, lines in found.items():
        text = recipes.shipped()[name].read_text(encoding="utf-8")
        assert text == _headers.updated(text, lines), f"{name}: run python -m zoo.bench._headers"


def test_reported_experiments_beside_their_analogues() -> None:
    """The settings that most recipes share are compared; other weights and views are no difference."""

    def row(recipe: str, accuracy: float) -> dict[str, str]:
        return {"recipe": recipe, "accuracy": str(accuracy), "data": "caltech101", "n": "50"} | CPU

    rows = [row(f"caltech101_lite0_t weights=a.pt data.size=96 {more}".strip(), 0.8) for more in ("", "", "data.views=2")]
    rows += [row("caltech101_lite0_f2 data.size=96", 0.4), row("caltech101_lite0_t epochs=2", 0.1), row("s4_t2", 0.9)]
    rows += [row(f"s4_{name} epochs=9", 0.1) for name in ("t1", "t2", "a1", "a2")]  # more of them, but no analogues
    common, ours = _analogues.compared(rows)
    assert common == "data.size=96"
    assert {name: len(group) for name, group in ours.items()} == {"caltech101_lite0_f2": 1, "caltech101_lite0_t": 3}
    assert _analogues.reported()["caltech101_lite0_f2"] == ("s4_f2", pytest.approx(56.2046))
    axes = _analogues.picture(common, ours).axes[0]
    assert sorted(patch.get_height() for patch in axes.patches) == pytest.approx([40, 56.2046, 80, 86.2772], abs=1e-3)
    assert "n = 1 to 3 seeds (data.size=96)" in axes.get_title()
    assert _analogues.compared([row("s4_t2", 0.9)]) == ("", {})
