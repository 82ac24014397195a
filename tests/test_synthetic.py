"""The built-in data set: the same on every machine, and too hard for a linear model."""

from __future__ import annotations

import numpy as np
import pytest
from data_cases import build, check

from zoo.data import synthetic
from zoo.spec import DataSet

SYNTHETIC = "80c8f9938f8efa22d27c66737eb0ff98b1da37202a45a282b2d5b32762e8b5bc"


@pytest.fixture(scope="module")
def made() -> DataSet:
    return build("synthetic", None, size=32, val=1 / 7)


def test_synthetic_is_the_same_everywhere(made: DataSet) -> None:
    check(made)
    assert made.digest == SYNTHETIC
    assert (len(made.train), len(made.val), len(made.test)) == (6000, 1000, 1000)
    for split, count in ((made.train, 600), (made.val, 100), (made.test, 100)):
        assert np.bincount(split.targets).tolist() == [count] * 10
    assert made.notes == ()


def test_the_validation_split_follows_the_seed_and_the_pixels_do_not(made: DataSet) -> None:
    other = build("synthetic", None, size=32, val=1 / 7, seed=1)
    assert other.digest == made.digest
    assert other.val.files != made.val.files
    assert np.array_equal(other.test.images, made.test.images)


def test_synthetic_statistics(made: DataSet) -> None:
    values = np.asarray(made.train.images) / 255
    assert np.allclose(values.mean((0, 1, 2)), made.mean, atol=0.02)
    assert np.allclose(values.std((0, 1, 2)), made.std, atol=0.06)


def test_shape_and_texture_change_only_the_figure() -> None:
    zeros = np.zeros(20, np.int64)
    disc, ring, dots = (synthetic.paint(zeros + s, zeros + t, 9) for s, t in ((0, 0), (4, 0), (0, 1)))
    for other in (ring, dots):
        changed = (disc != other).any(-1).mean((1, 2))
        assert (changed > 0).all()
        assert changed.max() < 0.5
    assert synthetic.CLASSES[2 * synthetic.SHAPES.index("ring") + synthetic.TEXTURES.index("dotted")] == "dotted ring"


def test_synthetic_is_beyond_a_linear_model(made: DataSet) -> None:
    """Ridge regression on the pixels: far below the 45 % that would make the set too easy."""
    flat = np.asarray(made.train.images)[:, ::2, ::2].reshape(6000, -1) / 255.0 - 0.5
    weights = np.linalg.solve(flat.T @ flat + 30 * np.eye(flat.shape[1]), flat.T @ np.eye(10)[made.train.targets])
    test = np.asarray(made.test.images)[:, ::2, ::2].reshape(1000, -1) / 255.0 - 0.5
    assert ((test @ weights).argmax(1) == made.test.targets).mean() < 0.3


def test_synthetic_at_another_size() -> None:
    images, _ = synthetic.make(20, 0, 48)
    assert images.shape == (20, 48, 48, 3)
