"""Reports of generated run folders: pictures, README, page and comparison."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from matplotlib import font_manager
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image
from report_cases import CIFAR, Reader, fake_run, overlaps, write_csv

from zoo import recipe, report
from zoo.errors import DataError, FileError
from zoo.report import _blocks, _compare, _draw, _read


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = fake_run(
        tmp_path_factory.mktemp("runs") / "cifar10-resnet32-focal-s0", loss="focal", **{"loss.class_weights": "effective"}
    )
    report.figures(path)
    report.summary(path)
    report.page(path)
    return path


def test_pictures_are_wide_and_light(run: Path) -> None:
    for name in ("curves.png", "confusion.png", "per_class.png"):
        with Image.open(run / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] == 1280
        assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all(), "white corners"
        assert (pixels < 200).any(2).mean() > 0.005, "something is drawn"
    assert (run / "curves.svg").read_text().lstrip().startswith("<?xml")
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_same_numbers_same_bytes(run: Path) -> None:
    pictures = [run / f"{name}.{kind}" for name in ("curves", "confusion", "per_class") for kind in ("png", "svg")]
    before = [path.read_bytes() for path in pictures]
    assert set(report.figures(run)) <= set(pictures)
    assert [path.read_bytes() for path in pictures] == before


def test_no_text_lies_on_another(run: Path) -> None:
    folder = _read.read(run)
    for draw in (_draw.curves, _draw.confusion, _draw.per_class):
        assert overlaps(draw(folder)) == []
    assert overlaps(_compare._curves([folder] * 3, ["a" * 60] * 3)) == []
    assert overlaps(_compare._bars([folder] * 3, ["a" * 60] * 3)) == []


def test_overlap_is_seen(run: Path) -> None:
    figure = _draw.curves(_read.read(run))
    figure.axes[1].set_ylabel("x" * 200)
    assert overlaps(figure)


def test_curves_say_which_loss(run: Path) -> None:
    figure = _draw.curves(_read.read(run))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["train (focal, effective weights)", "validation (plain cross entropy)"]
    assert figure.axes[2].get_yscale() == "log", "the learning rate spans more than 30x"
    assert figure.axes[0].get_yscale() == "linear"
    assert "12,406 train · 500 val · 1,000 test" in figure._suptitle.get_text()


def test_what_a_rescaled_loss_and_a_sampler_did(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", epochs=12, loss="dynamic_focal", sampler="focal", **{"loss.rescale_every": 5})
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["split"] == "train":
            row |= {"mean_factor": 1 / (1 + row["epoch"]), "focal_scale": 1.0 + row["epoch"], "easy": 0.25, "hard": 0.5}
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = [line for line in report.summary(path).read_text().splitlines() if line.endswith("| 25.0 | 50.0 |")]
    assert table == [
        "| 5 | 0.167 | 6.00 | 25.0 | 50.0 |", "| 10 | 0.091 | 11.00 | 25.0 | 50.0 |", "| 12 | 0.077 | 13.00 | 25.0 | 50.0 |"
    ]  # fmt: skip


def test_confusion_shows_counts_and_names(run: Path) -> None:
    folder = _read.read(run)
    axes = _draw.confusion(folder).axes[0]
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert written == {at: f"{count:,}" for at, count in np.ndenumerate(folder.confusion) if count}
    assert [text.get_text() for text in axes.get_yticklabels()] == list(CIFAR)
    assert np.asarray(axes.images[0].get_array()).sum(1) == pytest.approx(np.ones(10)), "colour is a share of the row"


def test_bars_are_sorted_by_training_images_and_have_intervals(tmp_path: Path) -> None:
    counts = (10, 500, 60, 5000, 1)
    folder = _read.read(fake_run(tmp_path / "r", classes=tuple("abcde"), counts=counts, n=40))
    figure = _draw.per_class(folder)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["d  5,000", "b  500", "c  60", "a  10", "e  1"]
    colours = [_draw.SHOT_COLOURS[name] for name in ("many", "many", "medium", "few", "few")]
    assert [to_hex(bar.get_facecolor()).upper() for bar in axes.containers[0]] == [colour.upper() for colour in colours]
    whiskers = axes.containers[1].lines[2][0].get_segments()
    expected = [[100 * folder.per_class[i][3], 100 * folder.per_class[i][4]] for i in (3, 1, 2, 0, 4)]
    assert np.array([[end[0] for end in segment] for segment in whiskers]) == pytest.approx(np.array(expected))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "few (under 20 training images)" in " ".join(legend)


def test_many_classes_fit(tmp_path: Path) -> None:
    names = tuple(f"class_with_quite_a_long_name_{i}" for i in range(130))
    folder = _read.read(fake_run(tmp_path / "r", classes=names, counts=None, n=3, epochs=2))
    assert len(_draw.order(folder)) == 120
    assert "the 120 weakest of 130 classes" in _draw.per_class(folder)._suptitle.get_text()
    confusion = _draw.confusion(folder).axes[0]
    assert len(confusion.texts) == 0
    assert len(confusion.get_yticklabels()) == 130


def test_a_class_without_test_images(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "r", classes=("a", "b", "c"), counts=(200, 50, 5))
    write_csv(path / "per_class.csv", ["class", "n", "correct", "accuracy", "low", "high"], [["a", 9, 9, 1, 1, 1], ["b", 9, 3, 0, 0, 0], ["c", 0, 0, "", "", ""]])  # fmt: skip
    write_csv(path / "confusion.csv", ["true\\pred", "a", "b", "c"], [["a", 9, 0, 0], ["b", 6, 3, 0], ["c", 0, 0, 0]])
    report.figures(path)
    for text in (report.summary(path).read_text(), report.page(path).read_text()):
        assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()
    assert "no test image" in [text.get_text() for text in _draw.per_class(_read.read(path)).axes[0].texts]


def test_readme_says_what_was_run_and_how_to_repeat_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)
    text = report.summary(run).read_text()
    test = _read.read(run).test
    assert f"{100 * test['accuracy']:.1f} % of 1,000 test images" in text
    assert f"95 % interval {100 * test['low']:.1f} to {100 * test['high']:.1f} %" in text
    assert f"zoo train {run.parent.name}/{run.name}/recipe.toml\n" in text, "short, from here"
    for part in (
        "12,406 training images, 5,000 to 50 per class",
        "focal, effective weights",
        "Weights of epoch 11",
        "](curves.png)",
    ):
        assert part in text
    assert re.search(r"\| many \| 8 \| 800 \|", text)
    assert "12 min 18 s" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| airplane |")}
    assert widths == {7}


def test_page_needs_nothing_else(run: Path) -> None:
    reader = Reader((run / "report.html").read_text())
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not [tag for tag, attributes in reader.tags if tag in ("script", "link") or "href" in attributes]
    assert "http" not in re.sub(r"http-equiv", "", (run / "report.html").read_text().replace("base64,", "")[:4000])
    assert 'imbalance = "exp:0.01"' in reader.text, "the recipe stands in it"


EVIL = ("<script>alert(1)</script>", "a|b`c*d", "$x_{", "new\nline", "quote\"'&amp;", "ファイル", "x" * 255)


def test_names_cannot_break_out(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run <b>&", classes=EVIL, counts=(300, 200, 100, 50, 20, 10, 5), epochs=2)
    report.figures(path)
    page = report.page(path).read_text()
    reader = Reader(page)
    assert "script" not in [tag for tag, _ in reader.tags]
    assert "b" not in [tag for tag, _ in reader.tags]
    assert EVIL[0] in reader.text
    text = report.summary(path).read_text()
    assert "\\<script>" in text
    assert "| a\\|b\\`c\\*d |" in text
    lengths = [
        len(re.split(r"(?<!\\)\|", line)) for line in text.partition("## Classes")[2].splitlines() if line.startswith("|")
    ]
    assert lengths[0] == 8
    assert len(set(lengths[:9])) == 1, "every class is one row of as many cells"
    report.compare([path, fake_run(tmp_path / "$2", classes=EVIL, counts=None, epochs=2)], tmp_path / "c.html")


def test_names_that_the_default_font_lacks_are_drawn_in_another(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "run", classes=("cat", "⌚ watch"), counts=(30, 5), epochs=2)
    figure = _draw.per_class(_read.read(path))
    _draw.save(figure, tmp_path / "a.png")
    fonts = {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text)}
    watch, cat = (next(family for text, family in fonts.items() if name in text) for name in ("⌚", "cat"))
    found = [font_manager.get_font(font_manager.findfont(font_manager.FontProperties([name]))) for name in watch]
    assert any(font.get_char_index(ord("⌚")) for font in found), watch
    assert cat == ["sans-serif"]


def test_an_unfinished_run_has_curves(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "r", finished=False, epochs=3, val=0)
    assert [made.name for made in report.figures(path)] == ["curves.png"]
    assert "**Not finished: 3 of 3 epochs.**" in report.summary(path).read_text()
    Reader(report.page(path).read_text())


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"not a run folder .* make one with: zoo train"):
        report.figures(tmp_path)
    path = fake_run(tmp_path / "r")
    (path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no finished epoch"):
        report.summary(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("per_class.csv", "class,n,correct,accuracy,low,high\na,5,x,1,1,1\n"),
        ("per_class.csv", "class,n,correct,accuracy,low,high\na,5,7,1,1,1\n"),
        ("per_class.csv", "hello"),
        ("per_class.csv", "\x00\x00"),
        ("confusion.csv", "true\\pred,a\na,1\n"),
        ("confusion.csv", "true\\pred,a,b\na,1\nb,2,3\n"),
        ("env.json", "{"),
        ("env.json", "[3]"),
        ("predictions.csv", "a,b\n1,2\n"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    path = fake_run(tmp_path / "r", epochs=1)
    (path / name).write_text(text)
    with pytest.raises(FileError, match=re.escape(name)):
        report.figures(path)


def test_code_in_markdown_is_fenced() -> None:
    assert _blocks.markdown("t", [_blocks.Code("a ``` b")]) == "# t\n\n````\na ``` b\n````\n"


def test_recipe_values_by_key() -> None:
    flat, every = recipe.settings(recipe.Recipe()), list(recipe.options())
    assert flat["loss.beta"] == 0.9999
    plain = {key for key in every if not key.startswith("reported.") and (not key.startswith("loss.") or recipe.is_field(key))}
    own = {f"loss.{name}" for name in recipe.Recipe().loss.options}  # it has no options of other losses
    assert set(flat) == plain | own
    assert tomli_w.dumps(flat)
