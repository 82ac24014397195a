"""Augmentation: every op against a plain loop over images; each sample's result is independent of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo import sampling
from zoo.data import _augment, _ops, _trivial
from zoo.errors import UsageError

MEAN, STD = (0.49, 0.48, 0.44), (0.25, 0.24, 0.26)
ZERO, ONE = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
"""With these statistics the normalised values are the pixel values."""
OPS = ["crop", "crop:8", "rcrop:24", "rcrop", "flip", "colour", "cutout", "v2:RandomGrayscale", "v2:RandomRotation(degrees=30)"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def draws() -> Tensor:
    return torch.from_numpy(sampling.uniforms(0, 0, 24, _augment.DRAWS))


def pixels(images: Tensor, draws: Tensor, *ops: str) -> np.ndarray:
    """The augmented pixels, (N, H, W, 3)."""
    return _augment.augment(images, draws, ops, ZERO, ONE).permute(0, 2, 3, 1).numpy()


def test_no_op_is_normalisation(images: Tensor, draws: Tensor) -> None:
    out = _augment.augment(images, draws, [], MEAN, STD)
    expected = ((images.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, _augment.normalise(images, MEAN, STD))
    assert _augment.normalise(images, MEAN, STD, torch.bfloat16).dtype == torch.bfloat16


def test_normalise_cuts_the_centre_only_of_larger_images(images: Tensor) -> None:
    cut = _augment.normalise(images, MEAN, STD, size=28)
    assert torch.equal(cut, _augment.normalise(images[:, 2:30, 2:30], MEAN, STD))
    assert _augment.normalise(images, MEAN, STD, size=64).shape[-1] == 32


def test_crop_is_reflection_padding_and_a_window(images: Tensor, draws: Tensor) -> None:
    out = pixels(images, draws, "crop:4")
    for i, image in enumerate(images.numpy()):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        top, left = (int(draws[i, column] * 9) for column in (0, 1))
        assert np.array_equal(out[i], padded[top : top + 32, left : left + 32])


def test_every_offset_occurs() -> None:
    n = 4000
    ramp = torch.arange(32, dtype=torch.uint8)[None, :, None, None].expand(n, 32, 32, 3)
    rows = pixels(ramp, torch.from_numpy(sampling.uniforms(1, 0, n, _augment.DRAWS)), "crop:4")[:, 16, 0, 0] - 16
    found, counts = np.unique(rows, return_counts=True)
    assert found.tolist() == list(range(-4, 5))
    assert counts.min() > 0.8 * n / 9


def test_rcrop_is_a_window(images: Tensor, draws: Tensor) -> None:
    out = pixels(images, draws, "rcrop:24")
    for i, image in enumerate(images.numpy()):
        top, left = (int(draws[i, column] * 9) for column in (0, 1))
        assert np.array_equal(out[i], image[top : top + 24, left : left + 24])
    assert pixels(images, draws, "rcrop").shape[1] == 28


@pytest.mark.parametrize("size", [28, 32, 64, 96, 127, 128, 224, 299])
def test_rcrop_undoes_the_stored_eighth(size: int) -> None:
    from zoo.data._folders import stored_side

    images = torch.zeros((1, stored_side(size), stored_side(size), 3), dtype=torch.uint8)
    assert pixels(images, torch.zeros(1, _augment.DRAWS), "rcrop").shape == (1, size, size, 3)


def test_flip_mirrors_where_the_draw_says(images: Tensor, draws: Tensor) -> None:
    out = pixels(images, draws, "flip")
    mirrored = draws[:, 2].numpy() < 0.5
    assert 0 < mirrored.sum() < len(mirrored)
    for i, image in enumerate(images.numpy()):
        assert np.array_equal(out[i], image[:, ::-1] if mirrored[i] else image)


def test_altflip_mirrors_each_image_in_every_second_epoch() -> None:
    """Which half begins is random; batches of any order and size get the same flips, and other columns are those of ``flip``."""
    n, order = 400, np.arange(400)[::-1]
    drawn = [_augment.draws(3, epoch, order, n, ("altflip", "crop:2")) for epoch in range(4)]
    mirrored = [each[:, 2] < 0.5 for each in drawn]
    assert np.array_equal(mirrored[0], mirrored[2]) and np.array_equal(mirrored[1], mirrored[3])
    assert np.array_equal(mirrored[0], ~mirrored[1]) and 150 < mirrored[0].sum() < 250
    assert np.array_equal(_augment.draws(3, 1, order[37:90], n, ("altflip",)), drawn[1][37:90])
    plain = _augment.draws(3, 1, order, n, ("flip", "crop:2"))
    columns = [at for at in range(_augment.DRAWS) if at != 2]
    assert np.array_equal(plain[:, columns], drawn[1][:, columns])
    assert not np.array_equal(plain[:, 2] < 0.5, mirrored[1])
    assert (mirrored[0] != (_augment.draws(4, 0, order, n, ("altflip",))[:, 2] < 0.5)).any(), "the seed decides"


def test_moves_compose_in_their_order(images: Tensor, draws: Tensor) -> None:
    crop, flip = draws.clone(), draws.clone()
    first = torch.from_numpy(pixels(images, crop, "crop").astype(np.uint8))
    assert np.array_equal(pixels(images, draws, "crop", "flip"), pixels(first, flip, "flip"))


def test_cutout_sets_one_square_to_the_mean(images: Tensor, draws: Tensor) -> None:
    out = _augment.augment(images, draws, ["cutout:8"], MEAN, STD)
    plain = _augment.normalise(images, MEAN, STD)
    for i in range(len(images)):
        top, left = (int(draws[i, column] * 32) - 4 for column in (3, 4))
        inside = np.zeros((32, 32), bool)
        inside[max(top, 0) : top + 8, max(left, 0) : left + 8] = True
        assert (out[i][:, inside] == 0).all()
        assert torch.equal(out[i][:, ~inside], plain[i][:, ~inside])


def test_colour_changes_within_its_reach(images: Tensor, draws: Tensor) -> None:
    middle = torch.full_like(draws, 0.5)
    assert np.allclose(pixels(images, middle, "colour"), images.numpy(), atol=0.01)
    out = pixels(images, draws, "colour:20")
    assert out.min() >= 0 and out.max() <= 255
    grey = torch.full((24, 8, 8, 3), 100, dtype=torch.uint8)
    bright = pixels(grey, draws, "colour:20").reshape(24, -1)
    assert np.allclose(bright.std(1), 0, atol=1e-3)  # grey stays grey
    assert np.allclose(bright[:, 0], 100 * (0.8 + 0.4 * draws[:, 9].numpy()), atol=0.01)


@pytest.mark.parametrize("level", [0, 3, 17, 30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_trivial_ops_are_torchvision_s(images: Tensor, level: int, sign: int) -> None:
    from torchvision.transforms.v2 import functional as vision

    planes, m = images.permute(0, 3, 1, 2).contiguous(), level / 30
    moves = {"fill": [float(_trivial.GREY)] * 3}
    lean, way = float(np.degrees(np.arctan(0.99 * m * sign))), int(32 * m) * sign
    expected = [
        planes, vision.affine(planes, 0, [0, 0], 1, [lean, 0], **moves), vision.affine(planes, 0, [0, 0], 1, [0, lean], **moves),
        vision.affine(planes, 0, [way, 0], 1, [0, 0], **moves), vision.affine(planes, 0, [0, way], 1, [0, 0], **moves),
        vision.rotate(planes, 135 * m * sign, **moves), vision.adjust_brightness(planes, 1 + 0.99 * m * sign),
        vision.adjust_saturation(planes, 1 + 0.99 * m * sign), vision.adjust_contrast(planes, 1 + 0.99 * m * sign),
        vision.adjust_sharpness(planes, 1 + 0.99 * m * sign), vision.posterize(planes, 8 - round(6 * m)),
        vision.solarize(planes, 255 * (1 - m)), vision.autocontrast(planes), vision.equalize(planes),
    ]  # fmt: skip
    assert len(expected) == len(_trivial.OPS)
    for number, wanted in enumerate(expected):
        chosen = torch.tensor([(number + 0.5) / 14, (level + 0.5) / 31, 0.5 + 0.25 * sign]).repeat(len(images), 1)
        made = _trivial.trivial(images, chosen).permute(0, 3, 1, 2)
        far = (made.int() - wanted.int()).abs()
        assert (far > 1).float().mean() < 0.01, number  # a nearest pixel may be a tie
        assert (far > 0).float().mean() < 0.05, number


@pytest.mark.parametrize("op", OPS)
def test_a_result_depends_on_its_own_sample_only(images: Tensor, draws: Tensor, op: str) -> None:
    whole = pixels(images, draws, op)
    back = pixels(images.flip(0), draws.flip(0), op)[::-1]
    alone = np.concatenate([pixels(images[i : i + 1], draws[i : i + 1], op) for i in range(len(images))])
    assert np.allclose(whole, back, atol=1e-3)
    assert np.allclose(whole, alone, atol=1e-3)
    assert not np.array_equal(whole, pixels(images, draws.roll(1, 0), op))


def test_adding_an_op_leaves_the_draws_of_the_others(images: Tensor, draws: Tensor) -> None:
    plain, more = (_augment.augment(images, draws, ops, MEAN, STD) for ops in (["crop"], ["crop", "cutout:4"]))
    kept = more != 0
    assert torch.equal(plain[kept], more[kept])


def test_v2_leaves_the_global_generator_alone(images: Tensor, draws: Tensor) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    pixels(images, draws, "v2:RandomHorizontalFlip")
    assert torch.equal(torch.rand(4), expected)


def test_size_cuts_what_the_ops_left_larger(images: Tensor, draws: Tensor) -> None:
    assert _augment.augment(images, draws, ["flip"], MEAN, STD, size=28).shape[-1] == 28


@pytest.mark.parametrize(
    "op", ["crap", "crop:", "crop:x", "crop:-1", "crop:0", "v2:", "v2:NoSuch", "v2:open('x')", "v2:RandomRotation", "v2:Grayscale(1+1)"]
)  # fmt: skip
def test_a_wrong_op_is_reported_before_training(op: str) -> None:
    with pytest.raises(UsageError, match="no augmentation") as caught:
        _ops.check(["flip", op])
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    ("op", "says"),
    [
        ("crop:32", "does not"),
        ("rcrop:33", "does not"),
        ("v2:RandomZoomOut", "augmentation v2:RandomZoomOut must return square uint8 images of one size"),
    ],
)
def test_an_op_that_does_not_fit_is_reported(images: Tensor, draws: Tensor, op: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pixels(images, draws, op)


def test_known_ops_pass_the_check() -> None:
    _ops.check(OPS)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.4, 1.0), (0.0, 0.0)])
def test_mix_blends_neighbours_and_says_how_much(mixup: float, cutmix: float) -> None:
    n = 400
    values = torch.arange(n).float()[:, None, None, None].expand(n, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(n) % 10
    draws = torch.from_numpy(sampling.uniforms(2, 0, n, _augment.DRAWS))
    mixed, soft = _augment.mix(values, targets, 10, draws, mixup=mixup, cutmix=cutmix)
    assert torch.allclose(soft.sum(1), torch.ones(n), atol=1e-6) and (soft >= 0).all()
    share = (mixed.mean((1, 2, 3)) - values.roll(1, 0).mean((1, 2, 3))) / (values - values.roll(1, 0)).mean((1, 2, 3))
    assert torch.allclose(share, soft[torch.arange(n), targets], atol=1e-3)
    patched = (mixed == values).any(1).flatten(1).any(1) & (mixed != values).any(1).flatten(1).any(1)
    if mixup and cutmix:
        assert 100 < patched.sum() < 300
    if not mixup and not cutmix:
        assert torch.equal(mixed, values)


def test_mix_blends_in_the_partners_that_are_given() -> None:
    """A partner's image and label enter with the same share; the draws of the other columns keep their meaning."""
    n = 200
    draws = torch.from_numpy(sampling.uniforms(2, 0, n, _augment.DRAWS))
    zeros, ones = torch.zeros(n, 3, 16, 16), torch.ones(n, 3, 16, 16)
    mixed, soft = _augment.mix(zeros, torch.zeros(n, dtype=torch.int64), 3, draws, (ones, torch.full((n,), 2)), cutmix=1.0)
    assert torch.allclose(mixed.mean((1, 2, 3)), soft[:, 2], atol=1e-6) and torch.allclose(soft[:, 0], 1 - soft[:, 2])
    assert 0.2 < soft[:, 2].mean() < 0.8
    with_itself, _ = _augment.mix(ones, torch.zeros(n, dtype=torch.int64), 3, draws, cutmix=1.0)
    assert torch.equal(with_itself, ones)


@pytest.mark.parametrize(("mixup", "cutmix"), [(2.0, 0.0), (0.0, 1.0), (2.0, 1.0)])
def test_mix_prob_is_the_share_of_samples_that_are_mixed(mixup: float, cutmix: float) -> None:
    """The other samples keep pixels and label; with mixup and cutmix, half of the mixed ones get each."""
    n = 4000
    draws = torch.from_numpy(sampling.uniforms(2, 0, n, _augment.DRAWS))
    zeros, partners = torch.zeros(n, 3, 16, 16), (torch.ones(n, 3, 16, 16), torch.ones(n, dtype=torch.int64))
    mixed, soft = _augment.mix(
        zeros, torch.zeros(n, dtype=torch.int64), 2, draws, partners, mixup=mixup, cutmix=cutmix, prob=0.3
    )
    blended = ((mixed > 0) & (mixed < 1)).flatten(1).any(1)
    pasted = (mixed == 1).flatten(1).any(1)
    untouched = ~blended & ~pasted
    assert torch.equal(soft[untouched, 0], torch.ones(int(untouched.sum())))
    assert 0.67 < untouched.float().mean() < 0.74  # boxes can be smaller than a pixel
    if mixup and cutmix:
        assert 0.4 < blended.sum() / (blended | pasted).sum() < 0.6


def test_partners_are_rare_classes_in_inverse_proportion_to_their_images() -> None:
    """Classes of 900, 90 and 10 images: the partners' classes are as 1/900 : 1/90 : 1/10, every image of a class equally often."""
    targets = np.repeat([0, 1, 2], [900, 90, 10])
    draws = sampling.uniforms(1, 0, 40_000, _augment.DRAWS)
    found = _augment.partner(draws, sampling.rare_odds(targets))
    share = np.bincount(targets[found], minlength=3) / len(found)
    expected = 1 / np.array([900, 90, 10])
    assert np.allclose(share, expected / expected.sum(), atol=0.01)
    each = np.bincount(found, minlength=1000)[990:]
    assert each.min() > 0.9 * each.mean()
    assert found.max() <= 999 and _augment.partner(np.full((1, _augment.DRAWS), 1 - 2.0**-24), np.ones(3)).item() == 2


def test_mixup_weights_are_beta_distributed() -> None:
    from scipy.stats import beta, kstest

    draws = torch.from_numpy(sampling.uniforms(4, 0, 2000, _augment.DRAWS))
    targets = torch.arange(2000) % 2
    _, soft = _augment.mix(torch.zeros(2000, 3, 4, 4), targets, 2, draws, mixup=0.4)
    weights = soft[torch.arange(2000), targets].double().numpy()
    assert kstest(weights, beta(0.4, 0.4).cdf).pvalue > 0.001


class Counted(TorchDispatchMode):
    """Counts the operations that are called."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("ops", [["crop", "flip"], ["crop", "flip", "trivial", "cutout:16"]])
def test_a_large_batch_takes_no_more_operations_than_a_small_one(images: Tensor, ops: list[str]) -> None:
    counts = []
    for n in (64, 512):
        draws = torch.from_numpy(sampling.uniforms(0, 0, n, _augment.DRAWS))
        with Counted() as counted:
            _augment.augment(images.repeat(30, 1, 1, 1)[:n], draws, ops, MEAN, STD, torch.bfloat16)
        counts.append(counted.calls)
    assert counts[1] <= 1.5 * counts[0], "image by image it would be 8 times as many"


@pytest.mark.gpu
def test_the_device_gives_the_same(images: Tensor, draws: Tensor) -> None:
    ops = ["crop", "flip", "trivial", "colour", "cutout"]
    here = _augment.augment(images, draws, ops, MEAN, STD)
    there = _augment.augment(images.cuda(), draws.cuda(), ops, MEAN, STD)
    assert torch.allclose(here, there.cpu(), atol=1e-4)
