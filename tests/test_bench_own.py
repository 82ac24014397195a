"""``zoo bench FILE.onnx --data NAME``: the accuracy of a file from elsewhere on labelled images."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import helper
from PIL import Image

import zoo.bench
from zoo.bench import Images, _agreement, _own, _runtimes, _subjects, _timing, inference
from zoo.bench._budget import Budget
from zoo.cli import cli
from zoo.errors import DataError, DiskError, FileError, UsageError
from zoo.export import _session
from zoo.export._input import GREY, Input

COLOURS = {"blue": (20, 30, 220), "green": (30, 210, 40), "red": (230, 30, 20)}
HALVES = ["--mean", "0.5", "--std", "0.5"]
WORDS = ["net.onnx", "--data", "photos", "--classes", "rgb.txt", *HALVES]


def colours(
    shape: tuple[object, ...], kind: int = onnx.TensorProto.FLOAT, last: bool = False, tail: bool = False
) -> onnx.ModelProto:
    """A network whose outputs are the means of the red, green and blue pixels."""
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT)]
    nodes += (
        [helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2])]
        if last
        else [helper.make_node("Identity", ["f"], ["t"])]
    )
    nodes += [helper.make_node("GlobalAveragePool", ["t"], ["p"])]
    nodes += [helper.make_node("Identity", ["p"], ["y"])] if tail else [helper.make_node("Flatten", ["p"], ["y"])]
    ends = helper.make_tensor_value_info("x", kind, shape), helper.make_empty_tensor_value_info("y")
    ends[1].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    graph = helper.make_graph(nodes, "g", [ends[0]], [ends[1]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos of three colours; the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    Path("rgb.txt").write_text("red\ngreen\nblue\n")
    return tmp_path


def bench(*words: str) -> Result:
    fast = ["--quick", "--batches", "2", "--devices", "cpu", "--out", "x.csv"]
    return CliRunner().invoke(cli, ["bench", *words, *fast])


@pytest.mark.parametrize(
    ("shape", "kind", "last", "tail", "scale"),
    [
        (("n", 3, 32, 32), onnx.TensorProto.FLOAT, False, False, (0.5,)),
        (("n", 32, 32, 3), onnx.TensorProto.FLOAT, True, True, (0.5, 0.5, 0.5)),
        ((2, 3, 32, 32), onnx.TensorProto.UINT8, False, False, ()),
        (("n", 32, 32, 3), onnx.TensorProto.UINT8, True, False, ()),
        (("n", 3, 32, 32), onnx.TensorProto.FLOAT16, False, True, (0.4, 0.5, 0.6)),
    ],
)
def test_every_form_of_input_gives_the_accuracy(
    place: Path, shape: tuple[object, ...], kind: int, last: bool, tail: bool, scale: tuple[float, ...]
) -> None:
    onnx.save(colours(shape, kind, last, tail), "net.onnx")
    given = Images(data="photos", labels=Path("rgb.txt"), mean=scale, std=scale)
    with _subjects.opened("net.onnx", ("fp32",), given=given) as subject:
        found = subject.images()
        assert found is not None
        inputs = found[0][:2].clone()
        call = _runtimes.run(_session.open_session(Path("net.onnx")), inputs.numpy())
        assert _agreement.correct(call, inputs, *found) == (6, 6)


def test_the_table_has_the_accuracy_and_a_guessed_order_of_outputs_is_said(place: Path) -> None:
    onnx.save(colours(("n", 3, 32, 32)), "net.onnx")
    ran = bench("net.onnx", "--data", "photos", *HALVES)
    assert ran.exit_code == 0, ran.output
    (accuracy,) = {(row["accuracy"], row["images"]) for row in _timing.read_csv(Path("x.csv"))}
    assert accuracy == ("0.3333", "6"), "red and blue are exchanged"
    assert "in the order of the data: blue, green, red" in ran.output
    assert "6 test images of photos" in ran.output and "--split all" in ran.output


def test_a_scenario_measures_the_accuracy_on_the_images_too(place: Path) -> None:
    onnx.save(colours(("n", 3, 32, 32)), "net.onnx")
    ran = CliRunner().invoke(
        cli, ["bench", "net.onnx", "--data", "photos", "--classes", "rgb.txt", *HALVES, "--scenario", "single", "--quick", "--seconds", "1", "--out", "x.csv"]
    )  # fmt: skip
    assert ran.exit_code == 0, (ran.output, ran.exception)
    assert {(row["accuracy"], row["images"]) for row in _timing.read_csv(Path("x.csv"))} == {("1.0", "6")}


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["--data", "photos"], UsageError, "normalisation that the model expects is not known (net.onnx)"),
        (["--data", "photos", "--mean", "0.5"], UsageError, "--mean and --std belong together"),
        (["--data", "photos", "--mean", "0.5,0.5", "--std", "0.5"], UsageError, "--mean has 2 numbers for 3 channels"),
        (["--data", "photos", "--mean", "0.5", "--std", "0"], UsageError, "--std must be above 0"),
        (["--data", "photos", "--classes", "two.txt", *HALVES], FileError, "2 class names for 3 outputs (two.txt)"),
        (["--data", "pair", "--classes", "same.txt", *HALVES], FileError, "two outputs have the name of a class (same.txt, 'red')"),
        (["--data", "photos", "--classes", "other.txt", *HALVES], DataError, "class of the data is not one of the model's (photos, 'blue'"),
        (["--data", "more", *HALVES], DataError, "4 classes of more for 3 outputs (net.onnx)"),
        (["--data", "nowhere", *HALVES], UsageError, "nowhere"),
        (["--classes", "rgb.txt"], UsageError, "describe the images of --data; name it"),
        (["--data", "photos", "--serve"], UsageError, "do not measure accuracy"),
    ],
)  # fmt: skip
def test_one_line_per_fault(place: Path, words: list[str], kind: type[Exception], says: str) -> None:
    onnx.save(colours(("n", 3, 32, 32)), "net.onnx")
    Path("two.txt").write_text("red\ngreen\n")
    Path("same.txt").write_text("red\nblue\nred\n")
    Path("other.txt").write_text("red\ngreen\nsky\n")
    for name in ("red", "blue"):
        shutil.copytree(place / "photos" / name, place / "pair" / name)
    for name in ("a", "b", "c", "d"):
        Path("more", name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (40, 40)).save(Path("more", name, f"{number}.png"))
    ran = CliRunner().invoke(cli, ["bench", "net.onnx", *words, "--quick"])
    assert isinstance(ran.exception, kind), (ran.output, ran.exception)
    assert says in str(ran.exception) and "\n" not in str(ran.exception)


def test_models_that_do_not_classify_images_are_refused(place: Path) -> None:
    onnx.save(colours(("n", 3, 32, 16)), "wide.onnx")
    map_of_scores = colours(("n", 3, 32, 32))
    del map_of_scores.graph.node[2:]
    map_of_scores.graph.node[1].output[0] = "y"
    onnx.save(map_of_scores, "map.onnx")
    for name, says in (("wide.onnx", "3 x 32 x 16"), ("map.onnx", "output is not one score per class")):
        ran = bench(name, "--data", "photos", *HALVES)
        assert isinstance(ran.exception, FileError) and says in str(ran.exception), ran.exception
    ran = bench("cnn_small", "--data", "photos")
    assert isinstance(ran.exception, UsageError) and "random weights" in str(ran.exception)


def test_a_grey_input_gets_the_brightness_of_a_pixel(place: Path) -> None:
    given = Images(data="photos", mean=(0.5,), std=(0.25,))
    model = Input(label="x", shape=(1, 32, 32), dtype="float32", outputs=3, side=32)
    found, targets = _own.images(given, model).take(100)
    assert found.shape == (6, 1, 32, 32) and targets.tolist() == [0, 0, 1, 1, 2, 2]
    expected = (np.array(list(COLOURS.values())) @ GREY / 255 - 0.5) / 0.25
    np.testing.assert_allclose(found.mean((1, 2, 3)).view(3, 2).mean(1), expected, atol=0.05)


def test_a_file_without_preprocessing_knows_its_classes(place: Path) -> None:
    """In the order of the file, not in that of the data; a list that contradicts the file is an error."""
    file = colours(("n", 3, 32, 32))
    entry = file.metadata_props.add()
    entry.key, entry.value = "classes", '["red", "green", "blue"]'
    onnx.save(file, "net.onnx")
    words = ["net.onnx", "--data", "photos", "--split", "all", *HALVES]
    found = bench(*words)
    assert found.exit_code == 0, found.output
    assert {row["accuracy"] for row in _timing.read_csv(Path("x.csv"))} == {"1.0"}
    assert "in the order of the data" not in found.stderr
    assert bench(*words, "--classes", "rgb.txt").exit_code == 0
    Path("other.txt").write_text("blue\ngreen\nred\n")
    result = bench(*words, "--classes", "other.txt")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == "--classes other.txt differs from the class names in the file (net.onnx); omit it"


def test_metadata_of_another_tool_is_not_that_of_zoo(place: Path) -> None:
    file = colours(("n", 3, 32, 32))
    helper.set_model_props(file, {"preprocessing": "[1"})
    onnx.save(file, "net.onnx")
    ran = bench(*WORDS)
    assert ran.exit_code == 0, ran.output


def test_unreadable_images_can_be_skipped(place: Path) -> None:
    onnx.save(colours(("n", 3, 32, 32)), "net.onnx")
    Path("photos/red/0.png").write_bytes(b"")
    assert "or use --skip-bad" in str(bench(*WORDS, "--split", "all").exception)
    assert bench(*WORDS, "--split", "all", "--skip-bad").exit_code == 0
    assert {row["images"] for row in _timing.read_csv(Path("x.csv"))} == {"29"}


def test_a_file_of_zoo_knows_its_classes_and_preprocessing(place: Path) -> None:
    """Its accuracy is that of the run, in each of the three forms of preprocessing; a run accepts other images too."""
    import zoo
    from zoo import run as engine

    run = zoo.train("cnn_small", data__name="photos", epochs=2, out="run", precision="fp32")
    right = engine.evaluate(run)
    for mode in ("none", "normalize", "full"):
        ran = CliRunner().invoke(cli, ["export", "run", "--preprocess", mode, "--out", f"{mode}.onnx"])
        assert ran.exit_code == 0, (ran.output, ran.exception)
        with _subjects.opened(f"{mode}.onnx", ("fp32",), given=Images(data="photos")) as subject:
            found = subject.images()
            assert found is not None
            session = _session.open_session(subject.files["fp32"])
            (logits,) = session.run(None, {session.get_inputs()[0].name: found[0].numpy()})
            np.testing.assert_allclose(logits, np.asarray(right[1]), atol=2e-4)
            assert torch.equal(found[1], torch.as_tensor(right[2]))
        refused = bench(f"{mode}.onnx", "--data", "photos", *HALVES)
        assert isinstance(refused.exception, UsageError) and "known from the model" in str(refused.exception)
    with _subjects.opened("run", ("fp32",), given=Images(data="photos", split="all")) as subject:
        found = subject.images()
        assert found is not None and len(found[1]) == 30


def test_an_accuracy_on_few_images_or_none_for_lack_of_time_is_reported(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(colours(("n", 3, 32, 32)), "net.onnx")
    given = Images(data="photos", labels=Path("rgb.txt"), mean=(0.5,), std=(0.5,))
    with _subjects.opened("net.onnx", ("fp32",), given=given) as subject:
        where = inference._Place(torch.device("cpu"))
        measure = inference._Bench(subject, where, 1, True, True, False, Budget(total=60))
        inputs = measure._inputs(2)
        found = _agreement.agreeing(measure.contenders, inputs, None, {}, measure.device)
        measure._count_right(found, inputs, -1.0)
        assert not measure.accuracy, "one image of 6 is no accuracy"
        ticks = iter([0.0, 2.0, 9.0])  # 2 s per call of 2 images
        with monkeypatch.context() as patch:
            patch.setattr(inference, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
            measure._count_right(found, inputs, 4.0)
        assert measure.accuracy["onnxruntime cpu"][1] == 4
    assert (
        f"accuracy on 4 of {len(subject.images()[0])} images (no time for more within --seconds 60)" in capsys.readouterr().err
    )
    monkeypatch.setattr(inference._Bench, "_count_right", lambda *arguments: 0.0)
    assert "skipped  accuracy (no time for it within --seconds" in bench(*WORDS, "--seconds", "10").stderr


def test_a_result_that_cannot_be_written_is_an_error_before_measuring(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(colours(("n", 3, 32, 32)), "net.onnx")
    Path("file").write_text("")
    monkeypatch.setenv("ZOO_RUNS", "file")
    monkeypatch.setattr(inference, "main", lambda *arguments, **options: pytest.fail("measured"))
    with pytest.raises(DiskError, match="file/bench"):
        zoo.bench.command("net.onnx")
