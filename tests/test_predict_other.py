"""``zoo predict --onnx`` with files of other tools: their layout, type, normalisation and class names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from PIL import Image
from test_bench_own import colours

from zoo import predictor
from zoo.bench import _subjects as benching
from zoo.cli import cli
from zoo.cli.bench import command as bench
from zoo.data._pixels import square
from zoo.errors import FileError, UsageError
from zoo.export import _guard
from zoo.export._input import GREY

pytest.importorskip("onnxruntime")
HALVES = ["--mean", "0.5", "--std", "0.25"]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def predict(*words: str) -> Result:
    return CliRunner().invoke(cli, ["predict", *words])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a red picture that has a blue border, and names for three outputs; the current folder."""
    monkeypatch.chdir(tmp_path)
    pixels = np.full((70, 90, 3), (10, 20, 250), np.uint8)
    pixels[8:-8, 8:-8] = (230, 30, 20)
    Image.fromarray(pixels).save("red.png")
    Path("rgb.txt").write_text("red\ngreen\nblue\n")
    return tmp_path


def image() -> np.ndarray:
    return np.asarray(Image.open("red.png"))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8])
@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_a_file_gets_the_layout_type_and_batch_that_it_declares(place: Path, last: bool, kind: int, batch: str | int) -> None:
    """The network returns the means of the three channels, so that the input is seen in its outputs."""
    onnx.save(colours((batch, 32, 32, 3) if last else (batch, 3, 32, 32), kind, last=last), "net.onnx")
    given = {} if kind == TensorProto.UINT8 else {"mean": MEAN, "std": STD}
    opened = predictor.load("net.onnx", labels="rgb.txt", **given)
    assert opened.classes == ("red", "green", "blue") and opened.resize == 37
    means = square(image(), 37)[2:34, 2:34].astype(float).mean((0, 1))
    wanted = means if not given else (means / 255 - MEAN) / STD
    powers = np.exp(wanted - wanted.max())
    np.testing.assert_allclose(opened.probabilities(image()), powers / powers.sum(), atol=2e-3)


def test_grey_images(place: Path) -> None:
    onnx.save(colours(("n", 1, 32, 32)), "net.onnx")
    opened = predictor.load("net.onnx", mean=(0.5,), std=(0.25,), resize=32)
    means = (square(image(), 32) @ np.array(GREY)).round().mean()
    np.testing.assert_allclose(opened.fed(image()).mean(), (means / 255 - 0.5) / 0.25, atol=1e-5)
    with pytest.raises(FileError, match="returns one number per image"):
        opened.probabilities(image())


def test_the_command(place: Path) -> None:
    onnx.save(colours(("n", 3, 32, 32)), "net.onnx")
    ran = predict("red.png", "--onnx", "net.onnx", "--classes", "rgb.txt", *HALVES, "--csv")
    assert ran.exit_code == 0, ran.output
    assert "red.png,1,red," in ran.stdout.splitlines()[1]
    numbered = predict("red.png", "--onnx", "net.onnx", *HALVES, "--csv")
    assert "red.png,1,0," in numbered.stdout
    assert "classes  net.onnx has no class names: outputs are numbered from 0 (names: --classes FILE)" in numbered.stderr
    wide = predict("red.png", "--onnx", "net.onnx", *HALVES, "--resize", "70", "--csv")
    share = [float(each.stdout.splitlines()[1].rsplit(",", 1)[1]) for each in (numbered, wide)]
    assert share[1] > share[0], "the centre of the picture has no border"


@pytest.mark.parametrize("ends", ["Identity", "Softmax"])
def test_a_softmax_in_the_file_is_not_repeated(place: Path, ends: str) -> None:
    file = colours(("n", 3, 32, 32))
    file.graph.node[-1].output[0] = "scores"
    file.graph.node.append(helper.make_node(ends, ["scores"], ["y"]))
    onnx.save(file, "net.onnx")
    opened = predictor.load("net.onnx", mean=MEAN, std=STD)
    scores = opened.fed(image()).mean((0, 2, 3)).astype(np.float64)
    powers = np.exp(scores - scores.max())
    np.testing.assert_allclose(opened.probabilities(image()), powers / powers.sum(), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "words", "code", "says"),
    [
        (("n", 3, 32, 32), [], UsageError, "the normalisation that the model expects is not known (net.onnx)"),
        (("n", 3, 32, 32), ["--mean", "0.5"], UsageError, "--mean and --std belong together"),
        (("n", 3, 32, 32), ["--mean", "0.5,0.5", "--std", "1,1"], UsageError, "--mean has 2 numbers for 3 channels"),
        (("n", 3, 32, 32), ["--mean", "0.5", "--std", "0"], UsageError, "--std must be above 0"),
        (("n", 3, 32, 32), [*HALVES, "--resize", "16"], UsageError, "--resize 16 is below the size of the input"),
        (("n", 3, 32, 32), [*HALVES, "--classes", "two.txt"], FileError, "2 class names for 3 outputs (two.txt)"),
        (("n", 3, 32, 32), [*HALVES, "--classes", "red.png"], FileError, "not a text file (red.png)"),
        (("n", 3, 32, 16), HALVES, FileError, "input is not a square image with 1 or 3 channels (net.onnx, 3 x 32 x 16)"),
        (("n", 4, 32, 32), HALVES, FileError, "(net.onnx, 4 x 32 x 32); run it in onnxruntime"),
    ],
)  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_named(
    place: Path, shape: tuple[object, ...], words: list[str], code: type[Exception], says: str
) -> None:
    Path("two.txt").write_text("a\nb\n")
    onnx.save(colours(shape), "net.onnx")
    ran = predict("red.png", "--onnx", "net.onnx", *words)
    assert type(ran.exception) is code and says in str(ran.exception), ran.exception
    assert "\n" not in str(ran.exception)


def test_a_map_of_scores_is_no_classifier(place: Path) -> None:
    file = colours(("n", 3, 32, 32))
    del file.graph.node[2:]
    file.graph.node[1].output[0] = "y"
    onnx.save(file, "net.onnx")
    with pytest.raises(FileError, match=r"output is not one score per class \(net.onnx, y: float32 3 x 32 x 32\)"):
        predictor.load("net.onnx", mean=MEAN, std=STD)


def test_labels_are_no_classifier(place: Path) -> None:
    """A file that returns numbers of classes instead of scores."""
    file = colours(("n", 3, 32, 32))
    file.graph.node[-1].output[0] = "scores"
    file.graph.node.append(helper.make_node("Cast", ["scores"], ["y"], to=TensorProto.INT64))
    file.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, None))
    onnx.save(file, "net.onnx")
    with pytest.raises(FileError, match=r"outputs are not floats \(net.onnx, y: int64\)"):
        predictor.load("net.onnx", mean=MEAN, std=STD)


def test_a_run_states_all_of_it(place: Path) -> None:
    ran = predict("red.png", *HALVES)
    assert ran.exit_code == 2 and "--mean describes an ONNX file without metadata; give --onnx too" in ran.output


def test_an_interrupt_keeps_the_rows_of_a_csv(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[dict[str, object]]:
        yield {"file": "red.png", "top": [("red", 0.9)]}
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor, "stream", interrupted)
    ran = predict("red.png", "red.png", "--onnx", "net.onnx", "--csv")
    assert ran.stdout.splitlines() == ["file,rank,class,probability", "red.png,1,red,0.9"] and ran.exit_code


def test_of_several_outputs_the_one_with_the_classes_is_used(place: Path) -> None:
    file = colours(("n", 3, 32, 32))
    file.graph.node.append(helper.make_node("Concat", ["y", "y"], ["more"], axis=1))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", n)) for name, n in (("more", 6), ("y", 3))]
    del file.graph.output[:]
    file.graph.output.extend(outputs)
    onnx.save(file, "net.onnx")
    named = predict("red.png", "--onnx", "net.onnx", "--classes", "rgb.txt", *HALVES, "--csv")
    assert "red.png,1,red," in named.stdout and "output   net.onnx has 2 outputs: y is used" in named.stderr
    first = predictor.load("net.onnx", mean=(0.5,), std=(0.25,))
    assert len(first.classes) == 6 and first.remarks == ("output   net.onnx has 2 outputs: more is used",)


def test_open_sizes_are_said_and_can_be_set(place: Path) -> None:
    onnx.save(colours(("n", 3, "h", "w")), "net.onnx")
    ran = predict("red.png", "--onnx", "net.onnx", *HALVES)
    assert ran.exit_code == 0 and "input    net.onnx leaves sizes open: 3 x 224 x 224 is used" in ran.stderr
    assert predictor.load("net.onnx", mean=MEAN, std=STD, size=32).fed(image()).shape == (1, 3, 32, 32)
    ran = predict("red.png", "--onnx", "net.onnx", *HALVES, "--size", "32", "--resize", "70")
    assert ran.exit_code == 0 and "3 x 32 x 32 is used" in ran.stderr
    onnx.save(colours(("n", 3, 32, 32)), "net.onnx")
    with pytest.raises(UsageError, match=r"--size is known from the model \(net.onnx\)"):
        predictor.load("net.onnx", mean=MEAN, std=STD, size=64)


def test_metadata_of_another_tool_is_not_that_of_zoo(place: Path) -> None:
    file = colours(("n", 3, 32, 32))
    helper.set_model_props(file, {"preprocessing": "[1", "classes": '["red", "green", "blue"]'})
    onnx.save(file, "net.onnx")
    assert predictor.load("net.onnx", mean=MEAN, std=STD).classes == ("red", "green", "blue")


def test_bytes_are_not_normalised(place: Path) -> None:
    onnx.save(colours(("n", 3, 32, 32), TensorProto.UINT8), "net.onnx")
    with pytest.raises(
        UsageError, match=r"the model reads bytes, which are not normalised \(net.onnx\); omit --mean and --std"
    ):
        predictor.load("net.onnx", mean=MEAN, std=STD)


def test_one_image_is_no_batch(place: Path) -> None:
    """The channels of an input (3, H, W) were taken for a batch of three."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["m", "zero"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", (3, 32, 32)), ("y", (1, 3)))
    ]
    zero = helper.make_tensor("zero", TensorProto.INT64, (1,), [0])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net.onnx")
    says = r"input has no batch axis \(net.onnx, 3 x 32 x 32\)"
    with pytest.raises(FileError, match=says):
        predictor.load("net.onnx", mean=MEAN, std=STD)
    with pytest.raises(FileError, match=says):
        _guard.trial(Path("net.onnx"))


@pytest.mark.parametrize("kind", [[], ["--serve"], ["--scenario", "single"], ["--self-check"]])
def test_a_benchmark_of_another_size(place: Path, kind: list[str]) -> None:
    onnx.save(colours(("n", 3, "h", "w")), "net.onnx")
    onnx.save(colours(("n", 3, 32, 32)), "fixed.onnx")
    sizes: list[tuple[int, ...]] = []
    plain, request = benching.opened, [*kind, "--quick", "--seconds", "5", "--out", "out.csv"]
    with pytest.MonkeyPatch.context() as patch:

        @contextlib.contextmanager
        def seen(*given: Any, **named: Any) -> Iterator[Any]:
            with plain(*given, **named) as subject:
                sizes.append(subject.shape)
                yield None  # nothing is measured

        patch.setattr(benching, "opened", seen)
        with contextlib.suppress(AttributeError):
            bench.main(["net.onnx", "--size", "48", *request], standalone_mode=False)
        with pytest.raises(UsageError, match=r"--size is known from the model \(fixed.onnx\)"):
            bench.main(["fixed.onnx", "--size", "48", *request], standalone_mode=False)
        with pytest.raises(UsageError, match=r"--size applies to an ONNX file that leaves sizes open \(cnn_small is none\)"):
            bench.main(["cnn_small", "--size", "48", *request], standalone_mode=False)
    assert sizes == [(3, 48, 48)]


def test_a_file_without_an_ending_is_known_by_its_content(place: Path) -> None:
    """As in the cache of the Hugging Face hub, whose files are named by their digest."""
    onnx.save(colours(("n", 3, 32, 32)), "0a1b2c", format="protobuf")
    Path("text").write_text("no model")
    assert _guard.is_onnx("0a1b2c") and not _guard.is_onnx("text") and not _guard.is_onnx(".") and not _guard.is_onnx("none")
    with benching.opened("0a1b2c", ("fp32",)) as subject:
        assert subject.shape == (3, 32, 32)


def test_the_ending_of_a_file_in_capitals(place: Path) -> None:
    onnx.save(colours(("n", 3, 32, 32)), "net.ONNX")
    assert _guard.is_onnx("net.ONNX") and not _guard.is_onnx("resnet32")
    with benching.opened("net.ONNX", ("fp32",)) as subject:
        assert subject.shape == (3, 32, 32)
