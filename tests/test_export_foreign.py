"""``zoo export MODEL --weights FILE``: any network with its weights, images and class names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import zoo
from zoo.cli import cli
from zoo.errors import BusyError, DataError, FileError, UsageError
from zoo.export import _foreign, _web

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.body(x))
"""
SCALE = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, its weights for three classes, and photos of them; the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    Path("my_net.py").write_text(NET)
    names: dict[str, Any] = {}
    exec(NET, names)
    torch.manual_seed(3)
    torch.save(names["Net"](3).state_dict(), "net.pth")
    torch.save({name: value for name, value in torch.load("net.pth").items() if name != "fc.bias"}, "part.pth")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "fox"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path


def test_weights_and_photos_make_a_file_that_answers_like_the_network(place: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    ran = CliRunner().invoke(cli, ["export", "my_net.py:Net", "--weights", "net.pth", "--data", "photos", *SCALE])
    assert ran.exit_code == 0, ran.output
    session = onnxruntime.InferenceSession(place / "Net.onnx")
    written = session.get_modelmeta().custom_metadata_map
    assert '"fox"' in written["classes"] and written["preprocess"] == "normalize"
    names: dict[str, Any] = {}
    exec(NET, names)
    net = names["Net"](3)
    net.load_state_dict(torch.load("net.pth"))
    images = torch.rand(2, 3, 32, 32)
    expected = net.eval()((images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / 0.2)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    again = CliRunner().invoke(cli, ["export", "my_net.py:Net", "--weights", "net.pth", *SCALE])
    assert isinstance(again.exception, BusyError) and "--force" in str(again.exception)


def test_an_int8_file_is_calibrated_on_training_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "export",
        "my_net.py:Net",
        "--weights",
        "net.pth",
        "--data",
        "photos",
        *SCALE,
        "--precision",
        "int8",
        "--max-drop",
        "100",
    ]
    ran = CliRunner().invoke(cli, [*words, "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)["calibration"]
    assert found["split"] == "calibration" and "calibration images" in found["chosen_on"]
    assert "optimistic" not in ran.stderr
    module, given = _foreign.model("my_net.py", "net.pth", data="photos", mean=(0.5,) * 3, std=(0.2,) * 3, calibrated=True)
    learned, tested = ({each.tobytes() for each in given[key]} for key in ("calibration", "images"))
    assert learned and tested and not learned & tested
    del given["calibration"]
    receipt = zoo.export.onnx(module, "own.onnx", precision="int8", preprocess="normalize", max_drop=100, **given)
    assert receipt.calibration["split"] == "given"
    assert "int8 is calibrated on the images that it is tested on: its accuracy is optimistic" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"calibration does not fit the images \(uint8 \(4, 50, 50, 3\), images uint8 \("):
        zoo.export.onnx(module, "no.onnx", precision="int8", calibration=np.zeros((4, 50, 50, 3), np.uint8), **given)


def test_without_images_names_come_from_a_file_and_noise_is_compared(place: Path) -> None:
    Path("names.txt").write_text("\ufeffeins\nzwei\n\ndrei\n", encoding="utf-8")
    ran = CliRunner().invoke(
        cli, ["export", "my_net.py", "--weights", "net.pth", "--classes", "names.txt", *SCALE, "--preprocess", "full", "--out", "x.onnx"]
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "noise" in ran.output and "test " not in ran.output
    module, given = _foreign.model("my_net.py", "net.pth", mean=(0.5,) * 3, std=(0.2,) * 3)
    assert (given["classes"], given["input"], module.fc.out_features) == (None, (3, 32, 32), 3), "as many as the weights have"


def test_class_names_in_another_order_belong_to_the_outputs(place: Path) -> None:
    """The accuracy is of the names, so that an order which the weights do not have is seen; names that the data lacks are an error."""
    Path("order.txt").write_text("fox\ncat\ndog\n")
    _, given = _foreign.model("my_net.py", "net.pth", data="photos", labels=Path("order.txt"), mean=(0.5,) * 3, std=(0.2,) * 3)
    _, plain = _foreign.model("my_net.py", "net.pth", data="photos", mean=(0.5,) * 3, std=(0.2,) * 3)
    assert [given["classes"][number] for number in given["targets"]] == [
        plain["classes"][number] for number in plain["targets"]
    ]
    Path("order.txt").write_text("fox\ncat\nwolf\n")
    with pytest.raises(DataError, match=r"class of the data is not in --classes \(photos, 'dog'"):
        _foreign.model("my_net.py", "net.pth", data="photos", labels=Path("order.txt"), mean=(0.5,) * 3, std=(0.2,) * 3)


def test_a_server_gets_the_class_names_of_the_data(place: Path) -> None:
    words = ["export", "my_net.py:Net", "--weights", "net.pth", "--data", "photos", *SCALE, "--triton", "models"]
    ran = CliRunner().invoke(cli, words)
    assert ran.exit_code == 0, ran.output
    assert Path("models/Net/labels.txt").read_text().split() == ["cat", "dog", "fox"]
    assert Path("models/Net/config.pbtxt").read_text().startswith('name: "Net"\n')
    assert Path("models/Net/1/model.onnx").is_file() and not Path("Net.onnx").exists()


def test_a_page_of_a_network_without_a_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime, which npm would download, is a file here."""
    dist = place / "dist"
    dist.mkdir()
    for part in _web.RUNTIME:
        (dist / part).write_text("")
    monkeypatch.setattr(_web, "_archive", Path)
    monkeypatch.setattr(_web, "_unpacked", lambda *_: dist)
    ran = CliRunner().invoke(
        cli, ["export", "my_net.py:Net", "--weights", "net.pth", "--data", "photos", *SCALE, "--web", "page"]
    )
    assert ran.exit_code == 0, ran.output
    assert json.loads(Path("page/model.json").read_text()) == {"classes": ["cat", "dog", "fox"], "resize": 37, "size": 32}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["my_net.py", "--weights", "net.pth"], 2, "normalisation .* not known .*--mean"),
        (["my_net.py", "--weights", "net.pth", "--mean", "1,2,3"], 2, "--mean and --std belong together"),
        (["my_net.py", "--weights", "net.pth", "--mean", "a"], 2, "not a list of numbers"),
        (["my_net.py", "--weights", "net.pth", "--classes", "two.txt", *SCALE], 4, "3 classes, expected 2.*--classes FILE or --data"),
        (["my_net.py", "--weights", "gone.pth", *SCALE], 4, "no weights file"),
        (["my_net.py", "--weights", "part.pth", *SCALE], 4, r"fc.bias missing in the weights \(part.pth\); use the complete file"),
        (["my_net.py", "--weights", "net.pth", "--data", "nowhere", *SCALE], 2, "no data set, folder or file 'nowhere'"),
        (["my_net.py", "--weights", "net.pth", "--hub", "x"], 2, "--hub needs a run"),
        (["my_net.py", "--weights", "net.pth", "--fastest"], 2, "--fastest needs a run"),
        (["nope", "--weights", "net.pth"], 2, "no model 'nope'"),
        (["--weights", "net.pth"], 2, "--weights needs a model"),
        (["my_net.py", "--data", "photos"], 2, "--data describes a model without a run"),
    ],
)  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_one_line(place: Path, arguments: list[str], code: int, says: str) -> None:
    Path("two.txt").write_text("a\nb\n")
    with pytest.raises(Exception, match=says) as caught:
        CliRunner().invoke(cli, ["export", *arguments], catch_exceptions=False, standalone_mode=False)
    assert getattr(caught.value, "code", getattr(caught.value, "exit_code", None)) == code
    assert not list(place.glob("*.onnx"))


def test_files_that_are_not_text_or_not_weights(place: Path) -> None:
    Path("names.bin").write_bytes(b"\xff\xfe\xfa\x00")
    with pytest.raises(FileError, match=r"not a text file .*names\.bin"):
        _foreign.model("my_net.py", "net.pth", labels=Path("names.bin"), mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(UsageError, match="no model 'resnet'"):
        _foreign.model("resnet", "net.pth")
