"""The whitening layer of airbench94, and where its images come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs
from tests_support import resolve, small
from torch import nn

from zoo.models.airbench import WhiteningConv
from zoo.training import build
from zoo.training.processes import Team
from zoo.training.views import KINDS, AveragedViews


def test_whitened_patches_are_uncorrelated_with_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(600, 3, 9, 9, generator=generator)
    images = images + 0.7 * images.roll(1, 3) + 2 * images.mean(1, keepdim=True)  # neighbours and channels are correlated
    layer = WhiteningConv(3)
    layer.whiten(images)
    out = layer(images).detach().double().permute(1, 0, 2, 3).flatten(1)
    assert torch.equal(out[:12], -out[12:]), "each direction and its negative"
    moments = out[:12] @ out[:12].T / out.shape[1]
    assert torch.allclose(moments, torch.eye(12, dtype=torch.float64), atol=5e-3)
    before = layer.weight.clone()
    layer.whiten(images.clone())
    assert torch.equal(layer.weight, before)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


class FirstImages(nn.Module):
    """Keeps the images that it is initialised from."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 10)
        self.given: list[torch.Tensor] = []

    def initialise_from_images(self, inputs: torch.Tensor) -> None:
        self.given.append(inputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.mean((2, 3)))


def test_training_images_initialise_a_model_only_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FirstImages] = []
    spec = build.sized_spec("cnn_small", 0)

    def sized(name: str, size: int, folder: Path | None = None, model: object = None) -> object:
        import dataclasses

        return dataclasses.replace(spec, build=lambda classes: made.append(FirstImages()) or made[-1], head="linear", stages=())

    monkeypatch.setattr(build, "sized_spec", sized)
    recipe = small("data.imbalance=exp:0.5")
    team = Team()
    session, _ = build.session(recipe, tmp_path, build.place(recipe, team), team)
    (images,) = session.model.given
    assert len(images) == len(session.batches.index)
    first = session.data.train.images[session.batches.index[0]] / 255
    expected = (first - np.array(session.data.mean)) / np.array(session.data.std)
    assert np.allclose(images[0].permute(1, 2, 0).numpy(), expected, atol=1e-5), "normalised, not augmented"


def test_loaded_weights_keep_their_filters(tmp_path: Path) -> None:
    team = Team()
    recipe = resolve("airbench94", "data=synthetic", "data.per_class=10", "ema=0")
    place = build.place(recipe, team)
    first, again = (build.session(recipe, tmp_path, place, team)[0].model for _ in range(2))
    assert torch.equal(first.whiten.weight, again.whiten.weight), "a resumed run starts from the same filters"
    assert not torch.equal(first.whiten.weight, build.sized_spec("airbench94", 0).build(10).whiten.weight)
    torch.nn.init.ones_(first.whiten.weight)
    torch.save(first.state_dict(), tmp_path / "file.pth")
    loaded, _ = build.session(structs.replace(recipe, weights=str(tmp_path / "file.pth")), tmp_path, place, team)
    assert (loaded.model.whiten.weight == 1).all()


def test_shifted_views_are_one_pixel_apart() -> None:
    seen: list[torch.Tensor] = []

    class Net(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.mean((2, 3))

    images = torch.randn(2, 3, 8, 8)
    out = AveragedViews(Net(), 8, "shift")(images)
    assert len(seen) == KINDS["shift"] == 6 and out.shape == (2, 3)
    centre, mirrored, up, _, down, _ = seen
    assert torch.equal(centre, images) and torch.equal(mirrored, images.flip(3))
    assert torch.equal(up[:, :, 1:, 1:], images[:, :, :-1, :-1]) and torch.equal(down[:, :, :-1, :-1], images[:, :, 1:, 1:])
    each = torch.stack([view.mean((2, 3)).softmax(1) for view in seen])
    expected = ((each[:2].mean(0) + each[2:].mean(0)) / 2).log()  # half of the weight on the unshifted views
    assert torch.allclose(out, expected, atol=1e-6)
