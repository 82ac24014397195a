"""``zoo predict --onnx`` needs only the file, agrees with PyTorch, and continues after a bad image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_export import MEAN, STD, Tiny, images, run_of

import zoo.export
from zoo import console, predictor
from zoo.data._pixels import square
from zoo.errors import FileError
from zoo.export._feed import Feed
from zoo.export._input import Input

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", params=["none", "normalize", "full"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A file of each kind with its model."""
    torch.manual_seed(0)
    model = Tiny().eval()
    folder = tmp_path_factory.mktemp(request.param)
    run = run_of(model, folder)
    return zoo.export.onnx(run, preprocess=request.param, softmax=request.param == "full").path, model


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Pictures of several sizes, one of them truncated."""
    found = []
    for number, (height, width) in enumerate([(32, 32), (90, 120), (20, 31)]):
        small = Image.fromarray(images(32).test.images[number])
        found.append(tmp_path / f"{number}.png")
        small.resize((width, height), Image.Resampling.BICUBIC).save(found[-1])
    torn = tmp_path / "torn.png"
    torn.write_bytes(found[1].read_bytes()[:500])
    return [*found[:1], torn, *found[1:]]


def test_many_images_show_progress(
    exported: tuple[Path, torch.nn.Module],
    pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(console, "SILENT_SECONDS", 0.0)
    predictor.predict(exported[0], pictures)
    assert "predict  classified 1 of 4 · left " in capsys.readouterr().err


def test_predicts_as_pytorch_does(exported: tuple[Path, torch.nn.Module], pictures: list[Path]) -> None:
    path, model = exported
    answers = predictor.predict(path, pictures, top=4)
    assert [answer["file"] for answer in answers] == [str(picture) for picture in pictures]
    assert "truncated" in answers[1]["error"]
    for picture, answer in zip(pictures, answers):
        if "error" in answer:
            continue
        pixels = torch.from_numpy(square(np.asarray(Image.open(picture)), 32).copy()).permute(2, 0, 1) / 255
        normal = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        with torch.inference_mode():
            shares = model(normal[None]).softmax(1)[0]
        exact = Image.open(picture).size == (32, 32)
        got = dict(answer["top"])
        assert len(got) == 4
        assert list(got.values()) == sorted(got.values(), reverse=True)
        from zoo.data.synthetic import CLASSES

        for name, share in got.items():
            assert share == pytest.approx(float(shares[CLASSES.index(name)]), abs=2e-6 if exact else 2e-3)


def test_the_example_of_the_documentation_predicts_as_zoo_does(
    exported: tuple[Path, torch.nn.Module], pictures: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").partition("## Use the file without zoo")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    opened = predictor.load(exported[0])
    if opened.input.mean != (0, 0, 0) or opened.input.whole:
        pytest.skip("the example is for the default preprocessing")
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(exported[0].read_bytes())
    for picture in (pictures[0], *pictures[2:]):
        Image.open(picture).save("cat.jpg", quality=95)
        scope: dict[str, Any] = {}
        exec(code, scope)
        powers = np.exp(scope["logits"] - scope["logits"].max())
        image = np.asarray(Image.open("cat.jpg"))
        np.testing.assert_allclose(scope["batch"], opened.fed(image), atol=1.01 / 255)
        want = opened.probabilities(image)
        np.testing.assert_allclose(powers / powers.sum(), want, atol=2e-3)
        assert capsys.readouterr().out.strip() == opened.classes[int(want.argmax())]


def test_no_torch(exported: tuple[Path, torch.nn.Module], pictures: list[Path]) -> None:
    code = (
        "import sys, json; from pathlib import Path; from zoo import predictor\n"
        f"answers = list(predictor.answers({{'model': {str(exported[0])!r}, 'images': [{str(pictures[0])!r}], 'top': 3, 'given': {{}}}}))\n"
        "print(json.dumps([len(answers[1]['top']), *(n for n in ('torch', 'onnx', 'scipy', 'torchvision') if n in sys.modules)]))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [3]


DIGESTS = ("content_sha256", "receipt_sha256")


def change(path: Path, target: Path, key: str, value: str | None) -> Path:
    model = onnx.load(path)
    written = {entry.key: entry.value for entry in model.metadata_props if entry.key not in (key, *DIGESTS)}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, written | ({} if value is None else {key: value}))
    onnx.save(model, target)
    return target


def steps(**changes: object) -> str:
    return json.dumps({"mode": "normalize", "size": 32, "resize": 32, "mean": [0, 0, 0], "std": [1, 1, 1], **changes})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", '["a", "b"]', "classes differ .names 2, model 10"),
        ("classes", None, "no zoo metadata"),
        ("classes", "[1, 2]", r"cannot be used .*Expected `str`, got `int`"),
        ("classes", "[" * 10_000, "cannot be used"),
        ("softmax", '"yes"', "Expected `bool`, got `str`"),
        ("preprocessing", "not json", "cannot be used"),
        ("preprocessing", "{}", "missing required field `mode`"),
        ("preprocessing", steps(resize=8), "size 32 is above resize 8"),
        ("preprocessing", steps(mode="other"), "Invalid enum value 'other'"),
        ("preprocessing", steps(mean=[float("nan"), 0, 0]), "must be finite"),
        ("preprocessing", steps(std=[0, 1, 1]), "std above 0"),
    ],
)
def test_a_strange_file_is_reported(
    exported: tuple[Path, torch.nn.Module], tmp_path: Path, key: str, value: str | None, message: str
) -> None:
    with pytest.raises(FileError, match=message) as caught:
        predictor.predict(change(exported[0], tmp_path / "x.onnx", key, value), [])
    assert len(str(caught.value).replace(str(tmp_path), "")) <= 200


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((9, 9, 3)), r"float64 \(9, 9, 3\)"),
        (np.zeros((9, 9, 3), np.uint16), "uint16"),
        (np.zeros((3, 9, 9), np.uint8), r"uint8 \(3, 9, 9\)"),
        (np.zeros((9, 9), np.uint8), r"uint8 \(9, 9\)"),
        (Image.new("RGB", (9, 9)), "Image"),
    ],
)
def test_only_images_of_bytes_are_classified(exported: tuple[Path, torch.nn.Module], image: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"image is {kind}.*; give an array \(H, W, 3\) of uint8"):
        predictor.load(exported[0]).probabilities(image)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no model file"):
        predictor.predict(tmp_path / "none.onnx", [])


def test_a_changed_bit_is_refused(exported: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    whole = exported[0].read_bytes()
    path = tmp_path / "x.onnx"
    for at in np.linspace(0, len(whole) - 1, 50).astype(int):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(FileError):
            predictor.predict(path, [])


def test_a_model_that_is_not_finite_is_refused(
    exported: tuple[Path, torch.nn.Module], pictures: list[Path], tmp_path: Path
) -> None:
    path = change(exported[0], tmp_path / "x.onnx", "none", None)
    model = onnx.load(path)
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    weight.raw_data = np.full(list(weight.dims), np.nan, np.float32).tobytes()
    onnx.save(model, path)
    with pytest.raises(FileError, match="not finite"):
        predictor.predict(path, pictures[:1])


def test_one_output_is_no_probability() -> None:
    session = SimpleNamespace(run=lambda *_: [np.array([[0.3]], np.float32)])
    feed = Feed("x", (3, 4, 4), "float32", 0, "y")
    known = Input(label="x", shape=(3, 4, 4), dtype="float32", outputs=1, side=4, mean=(0,) * 3, std=(1,) * 3, classes=("a",))
    one = predictor.Predictor(session, feed, known, 4, softmax=False)
    with pytest.raises(FileError, match="model returns one number per image; use a model with an output for each"):
        one.probabilities(np.zeros((4, 4, 3), np.uint8))
