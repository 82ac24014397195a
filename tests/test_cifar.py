"""CIFAR-10 and CIFAR-100 from archives and folders."""

from __future__ import annotations

import hashlib
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import build, check, refused, tree

from zoo.data import cifar


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a small archive folder in the official format, and set the digests to those of its files."""
    from torchvision import datasets

    def make(name: str) -> Path:
        kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        folder = tmp_path / name / kind.base_folder
        folder.mkdir(parents=True)
        names = [f"class{i:02}" for i in range(100 if name == "cifar100" else 10)]
        key = "fine_labels" if name == "cifar100" else "labels"

        def write(file: str, content: dict[str, Any]) -> list[str]:
            (folder / file).write_bytes(pickle.dumps(content))
            return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

        def batch(seed: int) -> dict[str, Any]:
            labels = list(range(len(names)))
            pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
            return {"data": pixels, key: labels}

        monkeypatch.setattr(kind, "train_list", [write(file, batch(i)) for i, (file, _) in enumerate(kind.train_list)])
        monkeypatch.setattr(kind, "test_list", [write(file, batch(9)) for file, _ in kind.test_list])
        meta = write(kind.meta["filename"], {kind.meta["key"]: names})
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta[1]})
        known = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        monkeypatch.setitem(cifar.SHA256, name, known)
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_official_archive(official: Callable[[str], Path], name: str) -> None:
    root = official(name)
    data = build(name, root, size=32, val=0.0)
    check(data)
    assert data.classes[3] == "class03"
    first = np.random.default_rng(0).integers(0, 256, (len(data.classes), 3072), dtype=np.uint8)[1].reshape(3, 32, 32)
    assert np.array_equal(data.train.images[1], first.transpose(1, 2, 0))
    assert data.train.files[1] == "train[1]"
    inner = next(root.iterdir())
    assert build(name, inner, size=32, val=0.0).digest == data.digest
    assert build(name, root.parent, size=32, val=0.0).digest == data.digest
    assert build(name, root, size=40).train.images.shape[1:] == (40, 40, 3)


def test_an_altered_archive_is_never_opened(
    official: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    root = official("cifar10")
    target = next(root.iterdir()) / "data_batch_3"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    target.write_bytes(pickle.dumps(Bomb()))
    forged = [[name, hashlib.md5((target.parent / name).read_bytes()).hexdigest()] for name, _ in CIFAR10.train_list]
    monkeypatch.setattr(CIFAR10, "train_list", forged)  # the check of the published MD5 is disabled
    assert "data_batch_3" in refused("differs from its published checksum", "cifar10", root)
    target.unlink()
    refused("data_batch_3 is missing", "cifar10", root)
    assert not (tmp_path / "ran").exists()


def test_cifar10_classes_keep_the_official_order(tmp_path: Path) -> None:
    from zoo.data.cifar import CLASSES

    root = tree(tmp_path / "cifar10", classes=tuple(reversed(CLASSES)), n=2)
    data = build("cifar10", tmp_path, size=32)
    check(data)
    assert data.classes == CLASSES == tuple(sorted(CLASSES))
    assert "20 training images, where cifar10 has 50,000" in data.notes
    (root / "train" / "ship").rename(root / "train" / "boat")
    refused("class in test but not in train", "cifar10", root)
    (root / "test" / "ship").rename(root / "test" / "boat")
    refused("classes are not those of cifar10", "cifar10", root)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "caltech101"])
def test_without_a_network_one_line_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_DATA_DIR", raising=False)
    text = refused(r"cannot download https://\S+ \(Network is unreachable\)", name, None)
    assert "--data-dir" in text
    assert socket.getdefaulttimeout() is None


def test_the_data_dir_variable_and_the_cache_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.data.cifar import CLASSES

    tree(tmp_path / "here" / "cifar10", classes=CLASSES, n=1)
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "here"))
    assert "here" in build("cifar10", None, size=32, val=0.0).test.files[0]
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    tree(tmp_path / "cache" / "data" / "cifar10", classes=CLASSES, n=1)
    assert "cache" in build("cifar10", None, size=32, val=0.0).test.files[0]
