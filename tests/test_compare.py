"""Comparison of several runs: differences of single runs and over seeds, in tables and pictures."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex
from PIL import Image
from report_cases import Reader, cells, fake_run

from zoo import metrics, report
from zoo import recipe as recipes
from zoo.cli import cli
from zoo.errors import UsageError
from zoo.report import _blocks, _compare, _draw, _methods, _read


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two equal runs and one that is clearly better, all on the same test images."""
    place = tmp_path_factory.mktemp("three")
    return [
        fake_run(place / "ce", n=200, noise=1),
        fake_run(place / "focal", n=200, noise=2, loss="focal", **{"data.dir": "/elsewhere"}),
        fake_run(place / "better", n=200, noise=3, skill=0.9, loss="focal", seed=1),
    ]


def test_comparison_tells_differences_from_none(three: list[Path], tmp_path: Path) -> None:
    out = report.compare(three, tmp_path / "c.html").page
    page = out.read_text()
    Reader(page)
    verdicts = {tuple(row[:2]): row[-1] for row in cells(page) if row[-1] in ("no difference shown", "better is better")}
    assert verdicts == {
        ("ce", "focal"): "no difference shown",
        ("ce", "better"): "better is better",
        ("focal", "better"): "better is better",
    }
    first, second = (_read.read(path) for path in three[:2])
    b, c, p = metrics.mcnemar(first.right, second.right)
    row = next(row for row in cells(page) if row[:2] == ["ce", "focal"])
    assert row[2:5] == [str(b), str(c), f"{p:.3f}"]
    assert ["run", "seed", "loss.name"] in cells(page), "only what differs"
    assert re.search(r"<tr><td>better</td>.*?<b>", page)
    assert not re.search(r"<tr><td>ce</td>.*?<b>.*?</tr>", page)
    with Image.open(tmp_path / "c_curves.png") as one, Image.open(tmp_path / "c_classes.png") as two:
        assert one.size[0] == two.size[0] == 1280
    assert page.count("data:image/png;base64,") == 4, "with a confusion matrix a method"


def test_the_pairs_that_all_confuse_are_compared(three: list[Path], tmp_path: Path) -> None:
    rows = cells(report.compare(three, tmp_path / "c.html").page.read_text())
    at = next(number for number, row in enumerate(rows) if row[0] == "run" and " and " in row[1])
    first, second = rows[at][1].removesuffix(" %").split(" and ")
    for row, path in zip(rows[at + 1 : at + 4], three):
        run = _read.read(path)
        a, b = run.classes.index(first), run.classes.index(second)
        share = (run.confusion[a, b] + run.confusion[b, a]) / (2 * 200)
        assert row[:2] == [path.name, f"{100 * share:.1f}"]


def test_runs_without_validation_have_no_empty_panel(tmp_path: Path) -> None:
    runs = [_read.read(fake_run(tmp_path / name, val=0, seed=seed)) for seed, name in enumerate(("a", "b"))]
    (axes,) = _compare._curves(runs, ["a", "b"]).axes
    assert axes.get_title().startswith("training accuracy")
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["cross entropy (2 seeds)"]


def test_two_seeds_of_a_recipe_get_a_mean(three: list[Path], tmp_path: Path) -> None:
    page = report.compare(three, tmp_path / "c.html").page.read_text()
    values = [100 * _read.read(path).test["accuracy"] for path in three[1:]]
    expected = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} (n = 2)"
    assert ["focal", "0, 1", expected] in [row[:3] for row in cells(page)]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods of three seeds each, the second clearly better."""
    place = tmp_path_factory.mktemp("seeds")
    methods = (("ce", "cross_entropy", 0.6), ("focal", "focal", 0.9))
    return [
        fake_run(place / f"{name}-s{s}", n=100, noise=s, seed=s, skill=skill, loss=loss, epochs=3)
        for name, loss, skill in methods
        for s in range(3)
    ]


def test_methods_are_tested_over_their_seeds(seeds: list[Path], tmp_path: Path) -> None:
    page = report.compare(seeds, tmp_path / "c.html").page.read_text()
    first, second = ([100 * _read.read(path).test["accuracy"] for path in part] for part in (seeds[:3], seeds[3:]))
    row = next(row for row in cells(page) if row[:2] == ["focal", "cross entropy"])
    gaps = np.subtract(second, first)
    half = 4.30265 * gaps.std(ddof=1) / np.sqrt(3)
    assert row[2:5] == ["3 seeds, paired", f"{gaps.mean():+.2f}", f"{gaps.mean() - half:+.2f} to {gaps.mean() + half:+.2f}"]
    assert row[-1] == "focal is better"
    pairs = [row for row in cells(page) if row[0].startswith("ce-s") and row[1].startswith("focal-s")]
    assert [(row[0][-1], row[1][-1]) for row in pairs] == [("0", "0"), ("1", "1"), ("2", "2")], "same seed, two methods"
    assert page.count("data:image/png;base64,") == 4, "curves, classes, and a confusion matrix a method"


def test_methods_stand_by_their_means_and_a_seed_trained_twice_is_one(seeds: list[Path]) -> None:
    runs = [_read.read(path) for path in seeds]
    again = msgspec.structs.replace(runs[0].recipe, compile=True)
    twice = [*runs, dataclasses.replace(runs[0], recipe=again, test={**runs[0].test, "accuracy": 0.0})]
    table = next(block for block in _methods.over_seeds(twice) if isinstance(block, _blocks.Table))
    own = [run.test["accuracy"] for run in runs[:3]]
    assert [row[:2] for row in table.rows] == [("focal", "0, 1, 2"), ("cross entropy", "0, 1, 2")]
    assert (
        table.rows[1][2]
        == f"{100 * np.mean([own[0] / 2, *own[1:]]):.2f} ± {100 * np.std([own[0] / 2, *own[1:]], ddof=1):.2f} (n = 3)"
    )
    assert _methods.names(twice)[0] == "cross entropy (3 seeds)"


@pytest.mark.parametrize("other", [{0: 0.83, 1: 0.84}, {2: 0.83, 3: 0.83}], ids=["paired", "Welch"])
def test_without_variation_there_is_no_test(
    other: dict[int, float], seeds: list[Path], recwarn: pytest.WarningsRecorder
) -> None:
    first = {0: 0.85, 1: 0.86} if 0 in other else {0: 0.85, 1: 0.85}
    assert _methods.difference(first, other)[1:] == (pytest.approx(2.0), None)
    low, high, _ = _methods.difference({0: 0.95, 1: 0.75}, {0: 0.75, 1: 0.75})[2] or (0, 0, 0)
    assert (low, high) == (-100, 100), "t from two seeds reaches further than accuracies can differ"
    low, high, p = _methods.difference({0: 0.85, 1: 0.85}, {2: 0.83, 3: 0.84})[2] or (0, 0, 0)
    assert low < 1.5 < high
    assert 0 < p < 1
    runs = [_read.read(path) for path in seeds]
    alike = [dataclasses.replace(run, test={**run.test, "accuracy": 0.5 + 0.1 * (at < 3)}) for at, run in enumerate(runs)]
    methods, tests = (block for block in _methods.over_seeds(alike) if isinstance(block, _blocks.Table))
    assert [row[3] for row in methods.rows] == ["", ""]
    assert tests.rows[0][3:] == ("+10.00", "", "", "", "not tested: no variation between seeds")
    assert not recwarn.list


def test_a_method_has_one_colour_in_every_picture(seeds: list[Path]) -> None:
    runs = [_read.read(path) for path in seeds]
    names = _compare.labels(runs)
    drawn = [line for line in _compare._curves(runs, names).axes[0].lines if len(line.get_xdata()) == 3]
    colours = [to_hex(line.get_color()).upper() for line in drawn]
    assert colours == [_draw.BLUE] * 3 + [_draw.ORANGE] * 3
    bars = [box for box in _compare._bars(runs, names).axes[0].containers if hasattr(box, "patches")]
    assert [to_hex(box.patches[0].get_facecolor()).upper() for box in bars] == [_draw.BLUE, _draw.ORANGE], "a bar a method"
    first = 100 * np.mean([run.per_class[0][2] for run in runs[:3]])
    assert min(abs(patch.get_width() - first) for patch in bars[0].patches) < 1e-9, "the mean over its seeds"
    for figure in (_compare._curves(runs, names), _compare._bars(runs, names)):
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cross entropy (3 seeds)", "focal (3 seeds)"]


def test_names_of_methods_say_what_tells_them_apart_and_no_more(seeds: list[Path]) -> None:
    run = _read.read(seeds[0])

    def changed(options: dict = {}, **loss: object) -> _read.Folder:  # noqa: B006
        settings = {key: value for key, value in loss.items() if key in ("epochs", "seed")}
        rest = {key: value for key, value in loss.items() if key not in settings}
        kept = run.recipe.loss.options if rest.get("name", run.recipe.loss.name) == run.recipe.loss.name else {}
        made = msgspec.structs.replace(run.recipe.loss, **rest, options=kept | options)
        return dataclasses.replace(run, recipe=msgspec.structs.replace(run.recipe, **settings, loss=made))

    runs = [
        run,
        changed(seed=1),
        changed({"label_smoothing": 0.1}, epochs=9),
        changed(epochs=9, beta=0.9),
        changed(name="ldam"),
    ]
    assert _methods.names(runs) == [
        "cross entropy, epochs=3 (2 seeds)",
        "cross entropy, epochs=3 (2 seeds)",
        "cross entropy, epochs=9, loss.beta=0.9999 (1 seed)",
        "cross entropy, epochs=9, loss.beta=0.9 (1 seed)",
        "ldam (1 seed)",
    ]


def test_speed_and_place_make_no_method(seeds: list[Path]) -> None:
    runs = [_read.read(path) for path in seeds]
    other = [msgspec.structs.replace(run.recipe, compile=True, device="cuda", precision="fp32") for run in runs[1:]]
    assert _methods.numbers([runs[0], *(dataclasses.replace(run, recipe=new) for run, new in zip(runs[1:], other))]) == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]


def test_data_that_was_moved_is_the_same_data(three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The digest tells, and the images are compared by their paths inside the folder."""
    one, two = (shutil.copytree(three[0], tmp_path / name) for name in ("one", "two"))
    for place, name in ((one, "photos"), (two, "copy of photos")):
        env = json.loads((place / "env.json").read_text()) | {"data_digest": "abc", "data_dir": f"/x/{name}"}
        (place / "env.json").write_text(json.dumps(env))
        recipe = recipes.changed(recipes.read(place / "recipe.toml"), {"data.name": "folder", "data.dir": f"/x/{name}"})
        (place / "recipe.toml").write_text(recipes.dump(recipe))
        text = (place / "predictions.csv").read_text().splitlines()
        (place / "predictions.csv").write_text("\n".join([text[0], *(f"/x/{name}/{line}" for line in text[1:])]) + "\n")
    a, b = _read.read(one), _read.read(two)
    assert a.same_set(b) and _compare.same_images(a, b)
    made = report.compare([one, two], tmp_path / "c.html")
    assert not [text for text in made.remarks if "different data" in text or "not tested" in text]
    other = dataclasses.replace(b, env={**b.env, "data_digest": "other"})
    assert not _compare.same_images(a, other), "other images, whose files have the same names"


def test_the_command_prints_the_remarks(three: list[Path], tmp_path: Path) -> None:
    other = fake_run(tmp_path / "other", n=50, data="cifar100", val=0)
    ran = CliRunner().invoke(cli, ["report", str(three[0]), str(other), "--out", str(tmp_path / "c.html")])
    assert ran.exit_code == 0 and "note     The runs use different data (cifar10, cifar100)" in ran.stderr
    assert "1 of 1 pairs are not tested" in ran.stderr


def test_tables_of_a_replaced_run_are_not_shown(three: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(three[0], tmp_path / "run")
    rows = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"test"' not in line]
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    found = _read.read(run)
    assert (found.test, found.classes, found.confusion, found.predictions) == ({}, (), None, [])


def test_a_loss_from_python_is_a_method_of_its_own(seeds: list[Path]) -> None:
    runs = [_read.read(path) for path in seeds]
    own = dataclasses.replace(runs[1], env={**runs[1].env, "loss_given": "MyLoss"})
    assert _methods.numbers([runs[0], own])[1] == 1 and _methods.numbers(runs[:2]) == [0, 0]
    assert "MyLoss (1 seed)" in _methods.names([runs[0], own])


def test_other_test_images_are_not_paired(three: list[Path], tmp_path: Path) -> None:
    other = fake_run(tmp_path / "other", n=50, data="cifar100", val=0)
    page = report.compare([three[0], other], tmp_path / "c.html").page.read_text()
    assert "1 of 1 pairs are not tested" in page
    assert "different data (cifar10, cifar100)" in page
    assert "is better" not in page
    (three_again := fake_run(tmp_path / "again", n=200)).joinpath("predictions.csv").unlink()
    assert "not tested" in report.compare([three[0], three_again], tmp_path / "c.html").page.read_text()


def test_an_unfinished_run_in_a_comparison(three: list[Path], tmp_path: Path) -> None:
    page = report.compare([three[0], fake_run(tmp_path / "new", finished=False)], tmp_path / "c.html").page.read_text()
    assert "not finished" in page


def test_a_comparison_needs_two(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs two runs \(got 1\)"):
        report.compare([three[0], three[0] / "."], tmp_path / "c.html")
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_name_are_distinguished(tmp_path: Path) -> None:
    runs = [_read.read(fake_run(tmp_path / place / "run", epochs=1)) for place in ("a", "b")]
    assert _compare.labels(runs) == ["a/run", "b/run"]


def test_holm_by_hand() -> None:
    assert metrics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert metrics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert metrics.holm([]) == []


def test_the_command_prints_what_the_page_begins_with(
    seeds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    line = ["report", *map(str, seeds), "--out", str(tmp_path / "c.html")]
    result = CliRunner().invoke(cli, line).stdout
    assert result.splitlines()[-1] == f"report    {tmp_path / 'c.html'}"
    assert "ce-s0" in result and "focal is better" in result and "3 seeds, paired" in result
    found = json.loads(CliRunner().invoke(cli, [*line, "--json"]).stdout)
    assert [row["run"] for row in found["runs"]] == [path.name for path in seeds]
    (stored,) = (row for row in map(json.loads, (seeds[0] / "metrics.jsonl").open()) if row["split"] == "test")
    first = found["runs"][0]
    assert (first["test images"], first["accuracy %"]) == (stored["n"], round(100 * stored["accuracy"], 1)), "numbers"
    assert first["95 % interval"] == [round(100 * stored[end], 1) for end in ("low", "high")]
    assert 0 <= found["pairs"][0]["p"] <= 1
    assert [row["seeds"] for row in found["methods"]] == ["0, 1, 2"] * 2
    assert [row["verdict"] for row in found["tests"]] == ["focal is better"]
    assert len(found["pairs"]) == 3
    alone = shutil.copytree(seeds[0], tmp_path / "alone")
    (alone / "result.json").write_text('{"accuracy": 0.5}')
    assert json.loads(CliRunner().invoke(cli, ["report", str(alone), "--json"]).stdout) == {"accuracy": 0.5}


def test_one_large_loss_does_not_flatten_the_others() -> None:
    from matplotlib.figure import Figure

    scales = []
    for values in ([2.3, 1.9, 1.5, 1.2], [40.0, 1.9, 1.5, 1.2], [1.0, float("nan"), 0.9, 0.0]):
        axes = Figure().subplots()
        axes.plot(values)
        _draw.spread_axis(axes, values)
        scales.append(axes.get_yscale())
    assert scales == ["linear", "log", "linear"]


def own_run(path: Path, digest: str, place: str, **settings: object) -> Path:
    """A run on the user's folder at ``place``."""
    run = fake_run(path, classes=("a", "b"), counts=None, n=20, epochs=2, **{"data": "folder", "data.dir": "imgs", **settings})
    env = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(env | {"data_digest": digest, "data_dir": place}))
    return run


def test_folders_of_one_name_do_not_look_alike(tmp_path: Path) -> None:
    one = own_run(tmp_path / "one", "aa", "/data/birds/imgs")
    two = own_run(tmp_path / "two", "bb", "/data/cats/imgs", seed=1)
    for run, name in ((one, "birds/imgs"), (two, "cats/imgs")):
        assert f"on {name}: " in report.summary(run).read_text()
        assert _read.read(run).headline.startswith(f"{name}, ")
    page = report.compare([one, two], tmp_path / "c.html").page.read_text()
    assert "different data (birds/imgs, cats/imgs)" in page
    assert len(set(_methods.names([_read.read(each) for each in (one, two)]))) == 2, "two sets are no seeds of one method"


@pytest.mark.parametrize(
    ("digest", "place", "names"),
    [
        ("aa", "/moved/birds/imgs", ["birds/imgs"]),
        ("bb", "/data/birds/imgs", ["birds/imgs"]),  # for a net of another input size
        ("bb", "/other/birds/imgs", ["data/birds/imgs", "other/birds/imgs"]),
        ("bb", "", ["birds/imgs", "imgs"]),
    ],
)
def test_one_set_has_one_name(digest: str, place: str, names: list[str], tmp_path: Path) -> None:
    runs = [own_run(tmp_path / "one", "aa", "/data/birds/imgs"), own_run(tmp_path / "two", digest, place)]
    assert list(dict.fromkeys(_read.set_names([_read.read(run) for run in runs]))) == names
    older = [own_run(tmp_path / f"old{name}", name, "") for name in ("aa", "bb")]
    assert _read.set_names([_read.read(run) for run in older]) == ["imgs [aa]", "imgs [bb]"]
