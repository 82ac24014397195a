"""Reports of made-up run folders: pictures, README, page and comparison."""

from __future__ import annotations

import csv
import html.parser
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from zoo import metrics, recipe, report
from zoo.report import _blocks, _compare, _draw, _read
from zoo.spec import DataError, FileError, UsageError

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TAIL = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)


def write_csv(path: Path, header: list, rows: list) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def fake_run(
    path: Path, *, classes: tuple[str, ...] = CIFAR, counts: tuple[int, ...] | None = TAIL, n: int = 100, epochs: int = 12,
    skill: float = 0.8, seed: int = 0, noise: int = 0, finished: bool = True, val: int = 500, **settings: object,
) -> Path:  # fmt: skip
    """A run folder whose test predictions are right with probability ``skill``, less for rare classes; ``noise`` moves them."""
    path.mkdir(parents=True)
    chance = np.random.default_rng(noise)
    changes = {
        "epochs": epochs,
        "seed": seed,
        "data": "cifar10",
        "data.imbalance": "exp:0.01" if counts else "none",
        **settings,
    }
    (path / "recipe.toml").write_text(recipe.dump(recipe.resolve("resnet32", changes)))
    env = {
        "zoo": "0.1.0", "python": "3.11", "torch": "2.15", "device": "cpu", "cpu": "a <fast> one", "threads": 2, "precision": "fp32",
        "data_train": sum(counts or (0,)), "data_val": val, "data_test": n * len(classes), "command": "zoo train x", "data_digest": "ab" * 32,
    }  # fmt: skip
    (path / "env.json").write_text(json.dumps(env | ({"counts": list(counts)} if counts else {})))
    rows = [row for epoch in range(1, epochs + 1) for row in epoch_rows(epoch, epochs, skill, val)]
    if finished:
        rows.append(write_test(path, classes, n, skill, chance) | {"epoch": max(1, epochs - 1)})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def epoch_rows(epoch: int, epochs: int, skill: float, val: int) -> list[dict]:
    far = 1 - math.exp(-4 * epoch / epochs)
    lr = 0.05 * (1 + math.cos(math.pi * (epoch - 1) / epochs)) + 1e-5
    train = {"split": "train", "loss": 2.3 - 2 * far, "accuracy": far, "lr": lr, "images_per_s": 900.0, "seconds": 61.5}
    check = {"split": "val", "loss": 2.2 - 1.6 * far * skill, "accuracy": far * skill}
    return [{"epoch": epoch, **row} for row in ([train, check] if val else [train])]


def write_test(path: Path, classes: tuple[str, ...], n: int, skill: float, chance: np.random.Generator) -> dict:
    size = len(classes)
    targets = np.repeat(np.arange(size), n)
    sure = skill + 0.18 - 0.4 * targets / size
    others = (targets + 1 + np.minimum(chance.geometric(0.4, len(targets)), size - 1) - 1) % size
    predicted = np.where(chance.random(len(targets)) < sure, targets, others)
    confusion = np.zeros((size, size), np.int64)
    np.add.at(confusion, (targets, predicted), 1)
    table = [metrics.class_row(int(row.sum()), int(row[i])) for i, row in enumerate(confusion)]
    write_csv(
        path / "per_class.csv", ["class", "n", "correct", "accuracy", "low", "high"], [[c, *r] for c, r in zip(classes, table)]
    )
    write_csv(path / "confusion.csv", ["true\\pred", *classes], [[c, *r.tolist()] for c, r in zip(classes, confusion)])
    answers = [[f"test[{i}]", classes[t], classes[p], 0.5] for i, (t, p) in enumerate(zip(targets, predicted))]
    write_csv(path / "predictions.csv", ["file", "target", "predicted", "probability"], answers)
    right, total = int(confusion.trace()), len(targets)
    low, high = metrics.wilson(right, total)
    macro = float(np.mean([row[2] for row in table]))
    return {
        "split": "test", "loss": 0.9, "accuracy": right / total, "n": total, "low": low, "high": high, "macro": macro, "ece": 0.05,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = fake_run(
        tmp_path_factory.mktemp("runs") / "cifar10-resnet32-focal-s0", loss="focal", **{"loss.class_weights": "effective"}
    )
    report.figures(path)
    report.summary(path)
    report.page(path)
    return path


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text; fails on a tag that closes another."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def overlaps(figure: object) -> list[tuple[str, str]]:
    """Titles and axis labels that lie on each other or stick out of the picture."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [figure._suptitle, *(text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label))]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    whole = figure.bbox
    found = [(name, "edge") for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > whole.x1 or box.y1 > whole.y1]
    return found + [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.overlaps(two)]


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
    before = {path: path.read_bytes() for path in run.glob("c*.*g")}
    before[run / "per_class.png"] = (run / "per_class.png").read_bytes()
    assert len(before) == 4
    assert {path: path.read_bytes() for path in report.figures(run)} == before


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
        "12,406 training images, 5,000 to 50 a class",
        "focal, effective weights",
        "Epoch 11 was kept",
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


def test_an_unfinished_run_has_curves(tmp_path: Path) -> None:
    path = fake_run(tmp_path / "r", finished=False, epochs=3, val=0)
    assert [made.name for made in report.figures(path)] == ["curves.png", "curves.svg"]
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


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in nothing, one that is clearly better; all on the same test images."""
    place = tmp_path_factory.mktemp("three")
    return [
        fake_run(place / "ce", n=200, noise=1),
        fake_run(place / "focal", n=200, noise=2, loss="focal", **{"data.dir": "/elsewhere"}),
        fake_run(place / "better", n=200, noise=3, skill=0.9, loss="focal", seed=1),
    ]


def cells(page: str) -> list[list[str]]:
    """Rows of all tables of a page, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def test_comparison_tells_differences_from_none(three: list[Path], tmp_path: Path) -> None:
    out = report.compare(three, tmp_path / "c.html")
    page = out.read_text()
    Reader(page)
    verdicts = {tuple(row[:2]): row[-1] for row in cells(page) if row[-1] in ("not a difference", "better is better")}
    assert verdicts == {
        ("ce", "focal"): "not a difference",
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
    rows = cells(report.compare(three, tmp_path / "c.html").read_text())
    at = next(number for number, row in enumerate(rows) if row[0] == "run" and " and " in row[1])
    first, second = rows[at][1].removesuffix(" %").split(" and ")
    for row, path in zip(rows[at + 1 : at + 4], three):
        run = _read.read(path)
        a, b = run.classes.index(first), run.classes.index(second)
        share = (run.confusion[a, b] + run.confusion[b, a]) / (2 * 200)
        assert row[:2] == [path.name, f"{100 * share:.1f}"]


def test_runs_without_validation_have_no_empty_panel(tmp_path: Path) -> None:
    runs = [_read.read(fake_run(tmp_path / name, val=0)) for name in ("a", "b")]
    (axes,) = _compare._curves(runs, ["a", "b"]).axes
    assert axes.get_title().startswith("training accuracy")
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["cross entropy (2 seeds)"]


def test_two_seeds_of_a_recipe_get_a_mean(three: list[Path], tmp_path: Path) -> None:
    page = report.compare(three, tmp_path / "c.html").read_text()
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
    page = report.compare(seeds, tmp_path / "c.html").read_text()
    first, second = ([100 * _read.read(path).test["accuracy"] for path in part] for part in (seeds[:3], seeds[3:]))
    row = next(row for row in cells(page) if row[:2] == ["cross entropy", "focal"])
    gaps = np.subtract(first, second)
    half = 4.30265 * gaps.std(ddof=1) / np.sqrt(3)
    assert row[2:5] == ["3 seeds, paired", f"{gaps.mean():+.2f}", f"{gaps.mean() - half:+.2f} to {gaps.mean() + half:+.2f}"]
    assert row[-1] == "focal is better"
    pairs = [row for row in cells(page) if row[0].startswith("ce-s") and row[1].startswith("focal-s")]
    assert [(row[0][-1], row[1][-1]) for row in pairs] == [("0", "0"), ("1", "1"), ("2", "2")], "same seed, two methods"
    assert page.count("data:image/png;base64,") == 4, "curves, classes, and a confusion matrix a method"


def test_a_method_has_one_colour_in_every_picture(seeds: list[Path]) -> None:
    runs = [_read.read(path) for path in seeds]
    names = _compare.labels(runs)
    drawn = [line for line in _compare._curves(runs, names).axes[0].lines if len(line.get_xdata()) == 3]
    colours = [to_hex(line.get_color()).upper() for line in drawn]
    assert colours == [_draw.BLUE] * 3 + [_draw.ORANGE] * 3
    bars = [box for box in _compare._bars(runs, names).axes[0].containers if hasattr(box, "patches")]
    assert [to_hex(box.patches[0].get_facecolor()).upper() for box in bars] == colours
    labels = [text.get_text() for text in _compare._curves(runs, names).legends[0].get_texts()]
    assert labels == ["cross entropy (3 seeds)", "focal (3 seeds)"]


def test_other_test_images_are_not_paired(three: list[Path], tmp_path: Path) -> None:
    other = fake_run(tmp_path / "other", n=50, data="cifar100", val=0)
    page = report.compare([three[0], other], tmp_path / "c.html").read_text()
    assert "1 of 1 pairs are not tested" in page
    assert "different data (cifar10, cifar100)" in page
    assert "is better" not in page
    (three_again := fake_run(tmp_path / "again", n=200)).joinpath("predictions.csv").unlink()
    assert "not tested" in report.compare([three[0], three_again], tmp_path / "c.html").read_text()


def test_an_unfinished_run_in_a_comparison(three: list[Path], tmp_path: Path) -> None:
    page = report.compare([three[0], fake_run(tmp_path / "new", finished=False)], tmp_path / "c.html").read_text()
    assert "not finished" in page


def test_a_comparison_needs_two(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs two runs \(got 1\)"):
        report.compare([three[0], three[0] / "."], tmp_path / "c.html")
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [_read.read(fake_run(tmp_path / place / "run", epochs=1)) for place in ("a", "b")]
    assert _compare.labels(runs) == ["a/run", "b/run"]


def test_holm_by_hand() -> None:
    assert _compare.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert _compare.holm([0.9, 0.8]) == [1.0, 1.0]
    assert _compare.holm([]) == []


def test_code_in_markdown_is_fenced() -> None:
    assert _blocks.markdown("t", [_blocks.Code("a ``` b")]) == "# t\n\n````\na ``` b\n````\n"


def test_recipe_values_by_key() -> None:
    flat, every = recipe.settings(recipe.Recipe()), recipe.keys()
    assert flat["loss.beta"] == 0.9999
    assert set(flat) == {key for key in every if not key.startswith("reported.")}
    assert tomli_w.dumps(flat)
