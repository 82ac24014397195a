"""Transfer: stored features, views, few images per class, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo import sampling
from zoo.training.feature_cache import FeatureCache, digest, image_key


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    return tmp_path / "features"


def features(places: Sequence[int]) -> Tensor:
    return torch.tensor([[float(place), 1.0] for place in places])


def test_features_are_kept_by_image(cache_folder: Path) -> None:
    asked: list[list[int]] = []

    def compute(places: list[int]) -> Tensor:
        asked.append(places)
        return features(places)

    cache = FeatureCache.read("abc")
    assert torch.equal(cache.get([10, 11, 12], compute), features([0, 1, 2]))
    cache.write()
    again = FeatureCache.read("abc")
    assert torch.equal(again.get([12, 13, 10], compute), torch.tensor([[2.0, 1], [1, 1], [0, 1]]))
    assert asked == [[0, 1, 2], [1]], "only the image that is new is computed"


def test_damaged_features_are_computed_again(cache_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = FeatureCache.read("abc")
    cache.get([10], features)
    cache.write()
    raw = bytearray(cache.path.read_bytes())
    raw[-1] ^= 1
    cache.path.write_bytes(raw)
    assert FeatureCache.read("abc").rows == {}
    assert "stored features are not used, and are computed again: checksum differs" in capsys.readouterr().err


def test_a_disk_that_takes_nothing_costs_only_time(cache_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache_folder.write_text("a file")
    cache = FeatureCache("abc")
    cache.get([10], features)
    cache.write()
    assert "features are not kept on disk" in capsys.readouterr().err


def test_digests_see_what_features_depend_on() -> None:
    weights = {"a": torch.ones(2), "b": torch.zeros(2)}
    same = digest(weights, {"size": 224})
    assert same == digest(dict(weights), {"size": 224})
    others = [
        digest({"a": torch.ones(2), "b": torch.tensor([0.0, -0.0])}, {"size": 224}),
        digest({"a": torch.ones(2), "c": torch.zeros(2)}, {"size": 224}),
        digest(weights, {"size": 192}),
    ]
    assert same not in others
    image, draws = np.zeros((4, 4, 3), np.uint8), np.zeros(3)
    changed = image.copy()
    changed[3, 3, 2] = 1
    keys = {
        image_key(image, draws, ()), image_key(changed, draws, ()), image_key(image, draws, ["flip"]), image_key(image, draws + 1, ["flip"]),
    }  # fmt: skip
    assert len(keys) == 4
    assert image_key(image, draws, ()) == image_key(image, draws + 1, ()), "without augmentation there are no draws"


def test_few_images_per_class() -> None:
    targets = np.repeat([0, 1, 2], [50, 7, 30])
    few = sampling.per_class(targets, 10, seed=3)
    assert np.bincount(targets[few]).tolist() == [10, 7, 10]
    assert few.tolist() == sorted(few.tolist())
    assert set(sampling.per_class(targets, 5, seed=3)) < set(few), "fewer images are among those of more"
    assert not np.array_equal(few, sampling.per_class(targets, 10, seed=4))
    assert len(sampling.per_class(targets, 0, seed=3)) == len(targets)
