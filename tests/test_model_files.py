"""A model in a user's file: found without running it, imported only if trusted, later used from the run's copy."""

from __future__ import annotations

import importlib.util
import py_compile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import zoo_command
from PIL import Image
from torch import nn

from zoo import model_files, recipe
from zoo.errors import FileError, UsageError
from zoo.training import model_specs

NET = """import torch
from torch import nn

open({mark!r}, "a").write("run")

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.body(x))
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a model that creates a marker file when it runs, and an empty record of trusted code."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_TRUST", raising=False)
    monkeypatch.setattr(model_files, "_LOADED", {})
    (tmp_path / "my_net.py").write_text(NET.format(mark=str(tmp_path / "mark")))
    return tmp_path / "my_net.py"


def test_a_recipe_of_a_file_does_not_run_it(net: Path) -> None:
    made = recipe.resolve(str(net), {"data": "synthetic"})
    assert made.model == f"{net}:Net"
    assert recipe.resolve("demo", {"model": f"{net}:Net"}).model == f"{net}:Net"
    assert not (net.parent / "mark").exists()


def test_the_class_becomes_a_spec(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = model_specs.model_spec(model_files.named(str(net)))
    assert (spec.input, spec.head) == ((3, 32, 32), "fc")
    assert spec.build(7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert spec.params == sum(parameter.numel() for parameter in spec.build(10).parameters())
    assert f"code     runs {net} (sha256 " in capsys.readouterr().err


def test_classes_with_an_indirect_base_are_found(tmp_path: Path) -> None:
    """Derived from another class of the file; one with an imported base is used if it is named or the only one."""
    net = tmp_path / "net.py"
    net.write_text(
        "class A(nn.Module): pass\nclass B(A): pass\nclass C(data.Dataset): pass\nclass D(Exception): pass\nclass E: pass\n"
    )
    for name in "ABC":
        assert model_files.named(f"{net}:{name}") == f"{net}:{name}"
    with pytest.raises(UsageError, match=r"several models in .*\(A, B\)"):
        model_files.named(str(net))
    for name in "DE":
        with pytest.raises(UsageError, match=rf"no model '{name}'"):
            model_files.named(f"{net}:{name}")
    net.write_text("class Mine(torchvision.models.ResNet): pass\n")
    assert model_files.named(str(net)) == f"{net}:Mine"
    assert model_files.entry(f"{net}:Mine") == {}


@pytest.mark.slow
def test_a_user_s_net_goes_the_whole_way(net: Path) -> None:
    """Trained, resumed with more epochs, evaluated, exported, benchmarked, reported, frozen by a glob, like a registered model."""
    train = ("train", str(net), "data=synthetic", "data.imbalance=exp:0.05", "batch_size=250", "device=cpu", "--out", "run")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(net.parent / "image.png")
    for words, says in (
        ((*train, "epochs=1"), "epoch 1/1"),
        ((*train, "epochs=2", "--resume"), "epoch 2/2"),
        (("eval", "run"), "of 1,000 images"),
        (("export", "run", "--onnx"), "agree: 1,000/1,000 classes"),
        (("verify", "run/model.onnx"), "parity with PyTorch  ok"),
        (("bench", "run/model.onnx", "--quick"), "onnxruntime cpu"),
        (("report", "run"), "run/report.html"),
        (("predict", "image.png", "--run", "run"), "image.png"),
        (
            (*train[:-1], "frozen", "epochs=1", "--weights", "run", "--freeze", "body.*"),
            "2 frozen tensors (112 parameters) unchanged",
        ),
    ):
        ran = zoo_command(*words, cwd=net.parent, ZOO_CACHE=str(net.parent / "cache"))
        assert ran.returncode == 0, (words, ran.stderr)
        assert says in ran.stdout + ran.stderr, (words, ran.stdout, ran.stderr)


def test_code_that_nobody_named_is_not_run_without_trust(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = net.parent / "run"
    run.mkdir()
    model_files.keep(f"{net}:Net", run)
    for stored in (None, run):
        with pytest.raises(UsageError, match=r"untrusted model code is not run .*--trust"):
            model_specs.model_spec(f"{net}:Net", stored)
    assert not (net.parent / "mark").exists()
    monkeypatch.setenv("ZOO_TRUST", "1")
    assert model_specs.model_spec(f"{net}:Net", run).head == "fc"


def test_a_run_uses_its_copy_and_says_what_became_of_the_file(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, run = model_files.named(str(net)), net.parent / "run"
    run.mkdir()
    model_files.keep(name, run)
    net.write_text(net.read_text().replace("3, 4, 3", "3, 4, 5"))
    assert model_specs.model_spec(name, run).build(10).body[0].kernel_size == (3, 3)
    assert f"{net} has changed since the run began; the copy in the run folder is used" in capsys.readouterr().err
    net.unlink()
    assert model_specs.model_spec(name, run).build(10).body[0].kernel_size == (3, 3)
    assert f"{net} is gone since the run began" in capsys.readouterr().err
    with pytest.raises(FileError, match="model file is missing"):
        model_specs.model_spec(name, net.parent)


def test_bytecode_of_another_text_is_not_run(net: Path) -> None:
    """A run folder from an unknown source may have the text of a trusted file and bytecode that is not checked against it."""
    name, run = model_files.named(str(net)), net.parent / "run"
    run.mkdir()
    model_files.keep(name, run)
    hostile = net.with_name("hostile.py")
    hostile.write_text(f"open({str(net.parent / 'hacked')!r}, 'w')\n" + net.read_text())
    cached = importlib.util.cache_from_source(str(run / "model.py"))
    py_compile.compile(str(hostile), cfile=cached, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    net.unlink()
    assert model_specs.model_spec(name, run).head == "fc"
    assert not (net.parent / "hacked").exists()


def test_a_model_file_leaves_no_bytecode(net: Path) -> None:
    model_specs.model_spec(model_files.named(str(net)))
    assert (net.parent / "mark").exists()
    assert not (net.parent / "__pycache__").exists()


def test_a_file_is_trusted_where_the_record_cannot_be_written(
    net: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_files, "_NAMED", set())
    monkeypatch.setenv("ZOO_CACHE", "/proc/no_such_folder")
    assert model_specs.model_spec(model_files.named(str(net))).head == "fc"
    assert "trusted in this process only (cannot write (/proc/no_such_folder" in capsys.readouterr().err


FAULTS = [
    ("x = 1", "no model in "),
    ("SPECS = {'a': ModelSpec(data='synthetic')}", r"cannot use SPECS .*'a' has data = 'synthetic': expected array, got str"),
    ("class A(nn.Module): pass\nclass B(nn.Module): pass", "several models in .* \\(A, B\\); name one"),
    ("def", "cannot read the model file"),
]


@pytest.mark.parametrize(("text", "says"), FAULTS)
def test_files_that_name_no_model(net: Path, text: str, says: str) -> None:
    net.write_text(text)
    with pytest.raises(UsageError, match=says):
        recipe.resolve(str(net), {})


def test_names_that_are_not_there(net: Path) -> None:
    with pytest.raises(UsageError, match=r"no model 'Nett' in .*did you mean Net"):
        recipe.resolve(f"{net}:Nett", {})
    with pytest.raises(UsageError, match="no model file"):
        recipe.resolve(str(net.parent / "gone.py"), {})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("import torch\n", "import torch, no_such_package\n", "cannot be imported .*ModuleNotFoundError"),
        ("self.fc(self.body(x))", "self.body(x)[:, :, None]", r"returns \(2, 4, 1\) for 2 images"),
        ("def __init__(self, classes):", "def __init__(self, a, b):", "fails on images"),
        ("    def __init__", "    input = (1, 32, 32)\n    def __init__", r"Net has input = \(1, 32, 32\); .*\(3, S, S\)"),
        ("    def __init__", "    input = (3, 48, 64)\n    def __init__", r"Net has input = \(3, 48, 64\)"),
        ("class Net", "SPECS = {'Net': type('', (), {'input': (1, 8, 8)})}\nclass Net", r"Net has input = \(1, 8, 8\)"),
        ("import torch\n", "import sys\nsys.exit('no')\nimport torch\n", r"cannot be imported \(.*, SystemExit: no\)"),
        ("nn.Linear(4, classes)", "nn.LazyLinear(classes)", r"lazy layer \(fc\); give its number of inputs"),
    ],
)
def test_models_with_another_signature(net: Path, old: str, new: str, says: str) -> None:
    net.write_text(net.read_text().replace(old, new))
    with pytest.raises(UsageError, match=says) as caught:
        model_specs.model_spec(model_files.named(str(net)))
    assert "\n" not in str(caught.value)


SPEC = """
from zoo.spec import ModelSpec
SPECS = {"mine": ModelSpec(build=Net, input=(3, 32, 32), params=1, macs=1, paper="", head="fc", data=())}
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return self.fc(self.body(x))", "return self.fc(self.body(x))[:, :3]", r"returns \(2, 3\) for 2 images"),
        ("return self.fc(self.body(x))", "return (self.fc(self.body(x)),)", "returns tuple for 2 images"),
        ("super().__init__()", "raise KeyError('weights')", r"fails on images \(3, 32, 32\) \(KeyError: 'weights'\)"),
        ('head="fc"', 'head="top"', "has no module 'top'; correct its head, e.g. 'fc'"),
    ],
)
def test_a_spec_in_a_file_is_tried(net: Path, old: str, new: str, says: str) -> None:
    net.write_text((net.read_text() + SPEC).replace(old, new))
    with pytest.raises(UsageError, match=f"model my_net.py:mine {says}"):
        model_specs.model_spec(model_files.named(str(net)))


@pytest.mark.parametrize("parameters", ["self, classes", "self, classes=7", "self"])
def test_a_model_with_a_fixed_number_of_outputs(net: Path, parameters: str) -> None:
    net.write_text(net.read_text().replace("self, classes", parameters).replace("nn.Linear(4, classes)", "nn.Linear(4, 7)"))
    spec = model_specs.model_spec(model_files.named(str(net)))
    assert spec.classes == 7
    assert spec.build(7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(UsageError, match=r"my_net.py:Net returns 7 logits, but the data has 10 classes; give it 10 outputs"):
        spec.build(10)


def test_a_network_that_ends_in_softmax_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for layers, warned in (((), False), ((nn.Softmax(1),), True)):
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5), *layers)
        model_files.object_spec(net)
        assert ("Sequential returns probabilities, but the losses take logits" in capsys.readouterr().err) == warned


def test_a_sigmoid_at_the_end_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    nn.init.constant_(net[1].bias, 0.5)  # logits of black images are between 0 and 1 too
    for model, warned in ((net, False), (nn.Sequential(net, nn.Sigmoid()), True)):
        model_files.object_spec(model, 8)
        assert ("warning  Sequential returns numbers from 0 to 1, as a sigmoid does" in capsys.readouterr().err) == warned
