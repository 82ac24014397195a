"""The analysis tools, against worked examples and torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from zoo import recipe as recipes
from zoo import run as engine
from zoo import training
from zoo.analysis import conv_matrix, dead_relu, local_affine, shape_bias
from zoo.analysis.conv_matrix import Shape
from zoo.cli import _shared, cli
from zoo.errors import UsageError
from zoo.report import _analysis
from zoo.spec import DataSet, Split

# ---- a convolution as a matrix ----


def test_the_reported_convolution() -> None:
    shape = Shape((3, 3), (3, 3), (4, 4), (2, 2))
    row, column, tap = conv_matrix.entries(shape)
    assert shape.matrix == (4, 9)
    assert list(zip(row.tolist(), column.tolist(), conv_matrix.names(shape, tap))) == [
        (0, 0, "w22"),
        (1, 2, "w20"),
        (2, 6, "w02"),
        (3, 8, "w00"),
    ]


@pytest.mark.parametrize(
    "shape",
    [
        Shape((5, 5), (3, 3)),
        Shape((7, 6), (2, 3), (2, 1), (1, 2)),
        Shape((9, 7), (3, 2), (2, 3), (1, 2), (2, 1), (4, 6), 2),
        Shape((4, 4), (1, 1), channels=(6, 6), groups=6),
        Shape((5, 5), (2, 2), (3, 3)),
    ],
    ids=str,
)
def test_matrix_equals_convolution_and_its_transpose_the_gradient(shape: Shape) -> None:
    assert max(conv_matrix.errors(shape).values()) < 1e-13
    weight = torch.randn(shape.weight, dtype=torch.float64)
    x = torch.randn(1, shape.channels[0], *shape.size, dtype=torch.float64, requires_grad=True)
    out = torch.nn.functional.conv2d(x, weight, None, shape.stride, shape.padding, shape.dilation, shape.groups)
    y = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, x, y)
    a = conv_matrix.matrix(shape, weight)
    assert tuple(a.shape) == shape.matrix == (out.numel(), x.numel())
    torch.testing.assert_close(a.t() @ y.flatten(), gradient.flatten(), rtol=0, atol=1e-13)


def test_an_impossible_convolution() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Shape((2, 2), (5, 5))
    with pytest.raises(ValueError, match="multiples of groups 2"):
        Shape((5, 5), (3, 3), channels=(3, 4), groups=2)
    with pytest.raises(ValueError, match=r"weight must be \(1, 1, 3, 3\), not \(3, 3\)"):
        conv_matrix.matrix(Shape((5, 5), (3, 3)), torch.zeros(3, 3))


def test_a_matrix_too_large_or_of_nothing_is_refused_before_it_is_made() -> None:
    with pytest.raises(ValueError, match="up to 37,748,736 entries, over 10,000,000"):
        Shape((32, 32), (3, 3), padding=(1, 1), channels=(64, 64))
    ran = CliRunner().invoke(cli, ["analyze", "conv-matrix", "--size", "1", "--kernel", "1", "--stride", "2", "--padding", "1"])
    assert isinstance(ran.exception, UsageError) and "covers only padding" in str(ran.exception)


def test_what_a_tool_cannot_look_into_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, np.int64)
    part = Split(images, targets, ["a"] * 4)
    data = DataSet("one", ("a", "b"), part, part, part, (0.5,) * 3, (0.5,) * 3, "")
    monkeypatch.setattr(engine.Run, "dataset", lambda run: data)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2), nn.GELU())
    run = engine.Run(Path("r"), model, recipes.Recipe(model="curved"), ("a", "b"), (3, 32, 32), (0.5,) * 3, (0.5,) * 3, [], {})
    with pytest.raises(UsageError, match=r"no ReLU.*\(curved\); name a run whose model has ReLUs"):
        dead_relu.of_run(run)
    with pytest.raises(UsageError, match=r"two classes.*\(4 test images of one\); use more"):
        shape_bias.of_run(run)


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    _shared.echo_json({"kink": math.inf, "bias": [math.nan, 1.0]})
    assert capsys.readouterr().out == '{"kink": null, "bias": [null, 1.0]}\n'


def test_the_matrix_command(tmp_path: Path) -> None:
    words = ["analyze", "conv-matrix", "--stride", "4", "--padding", "2", "--out", str(tmp_path / "a.csv")]
    ran = CliRunner().invoke(cli, words)
    assert ran.exit_code == 0, ran.output
    assert "4 x 9, 4 of 36 entries" in ran.output and "w20" in ran.output
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "0,0,w22"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] == 1280
    assert json.loads(CliRunner().invoke(cli, [*words, "--json"]).output)["entries"][1] == [1, 2, "w20"]
    refused = CliRunner().invoke(cli, ["analyze", "conv-matrix", "--size", "three"])
    assert refused.exit_code == 2 and "is not N or NxM" in refused.output


# ---- a ReLU net as an affine function ----


@pytest.mark.parametrize(
    ("x", "h", "weight", "bias", "radius"),
    [(2, 15, 6, 3, 2), (1, 9, 6, 3, 1), (-1, 1.5, 1.5, 3, 1), (-3, 0, 0, 0, 1), (-2, 0, 0, 0, 0), (0, 3, 1.5, 3, 0)],
)
def test_the_reported_net(x: float, h: float, weight: float, bias: float, radius: float) -> None:
    found = local_affine.local_affine(local_affine.worked_example(), torch.tensor([float(x)]))
    assert (float(found.output), float(found.weight), float(found.bias)) == (h, weight, bias)
    assert found.radius == pytest.approx(radius)
    assert found.error < 1e-14
    assert found.along == (1.0 if x == -1 else 0.0 if x == 0 else math.inf)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    model = nn.Sequential(*layers, nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    model(torch.randn(64, 2, 8, 8))  # non-trivial statistics
    return model.eval()


def test_the_model_of_the_caller_stays_as_it_is() -> None:
    model = net()
    local_affine.local_affine(model, torch.randn(2, 8, 8))
    assert model(torch.randn(1, 2, 8, 8)).dtype == torch.float32


def test_the_first_kink_is_where_the_function_bends() -> None:
    model, x = net().double(), torch.randn(2, 8, 8)

    def bend(found: local_affine.Affine, t: float) -> float:
        point = found.x + t * found.direction
        with torch.no_grad():
            return float((model(point.view(1, 2, 8, 8)).flatten() - found.weight @ point - found.bias).abs().max())

    bent = 0
    for seed in range(20):
        direction = torch.randn(128, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = local_affine.local_affine(model, x, direction)
        assert max(found.error, bend(found, 0.999 * found.along)) < 1e-12, "affine up to the kink"
        bent += bend(found, found.along + 0.001) > 1e-9
        assert math.isnan(found.radius), "with max pooling"
    assert bent >= 5, "the others are of units that a pooling leaves out"


def test_the_radius_is_the_nearest_of_all_directions() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    x = torch.randn(3)
    radius = local_affine.local_affine(model, x).radius
    found = [local_affine.local_affine(model, x, torch.randn(3)).along for _ in range(300)]
    assert radius <= min(found) < 1.2 * radius


def test_what_is_not_piecewise_affine_is_found_out() -> None:
    curved = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    assert local_affine.local_affine(curved, torch.randn(3)).error > 1e-6
    with pytest.raises(ValueError, match="training mode"):
        local_affine.local_affine(curved.train(), torch.randn(3))


def test_the_exercise_of_the_command() -> None:
    rows = json.loads(CliRunner().invoke(cli, ["analyze", "local-affine", "--json"]).output)
    assert [(row["x"], row["W"], row["b"]) for row in rows] == [(2, 6, 3), (1, 6, 3), (-1, 1.5, 3), (-3, 0, 0)]
    refused = CliRunner().invoke(cli, ["analyze", "local-affine", "arun"])
    assert "give --image FILE" in str(refused.exception)


# ---- units that no input activates ----


def test_dead_units_are_counted_over_all_batches() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ReLU())
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        net[3].weight.fill_(-1.0)
        net[3].bias.copy_(torch.tensor([0.0, 1.5, -1.0]))
    batches = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    first, second = dead_relu.census(net, batches)
    assert first.dead.tolist() == [False, True, False, True], "the third is on for the second batch alone"
    assert second.dead.tolist() == [True, False, True]
    assert (first.units, first.channels) == (4, 2)
    assert net.training, "the caller's model stays as it is"
    with pytest.raises(ValueError, match="no ReLU"):
        dead_relu.census(nn.Linear(2, 2), batches)


def test_relu_functions_are_seen_and_channels_counted() -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.nn.functional.relu(x) - 1)

    images = torch.tensor([[[-1.0, -1.0], [-2.0, 3.0]], [[-1.0, -1.0], [0.5, 0.5]]]).view(2, 2, 1, 2)
    first, second = dead_relu.census(Functional(), [images])
    assert first.dead.flatten().tolist() == [True, True, False, False] and first.channels == 1
    assert second.dead.flatten().tolist() == [True, True, True, False]


def test_clipped_units_are_dead_at_either_bound() -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu6(x)

    class Clipped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = torch.ones(()).clamp(max=2.0)  # of the model, not an activation
            return x.clamp(-1.0, 1.0) * scale + nn.functional.hardtanh(x, max_val=5.0) + x.clamp(min=x.min())

    z = torch.tensor([[-1.0, 7.0, 3.0, 9.0], [-2.0, 6.0, 7.0, 5.0]])
    for relu6 in (nn.ReLU6(inplace=True), Functional()):
        (layer,) = dead_relu.census(relu6, [z.clone()])
        assert layer.dead.tolist() == [True, True, False, False]
    both, hard = dead_relu.census(Clipped(), [z])
    assert both.dead.tolist() == [True, True, True, True] and hard.dead.tolist() == [True, True, False, True]


def test_the_kinks_of_a_relu6_are_0_and_6() -> None:
    model = nn.ReLU6().eval()
    for x, kink in ((-2.0, 2.0), (1.0, 1.0), (4.0, 2.0), (8.0, 2.0)):
        found = local_affine.local_affine(model, torch.tensor([x]), torch.tensor([1.0]))
        assert found.radius == pytest.approx(kink) and found.error == 0.0
        assert found.along == {-2.0: 2.0, 1.0: 5.0, 4.0: 2.0, 8.0: math.inf}[x]


def test_negative_biases_kill_and_normalisation_saves() -> None:
    chance = torch.Generator().manual_seed(0)
    images, targets = torch.randn(64, 3, 16, 16, generator=chance), torch.randint(0, 3, (64,), generator=chance)
    settings = [
        dead_relu.Setting("plain"),
        dead_relu.Setting("negative", bias=-20.0),
        dead_relu.Setting("saved", bias=-20.0, norm=True, batch=4),
        dead_relu.Setting("lost", lr=1e6, batch=8),
    ]
    rows = dead_relu.ablate(images, targets, 3, settings=settings, epochs=3)
    start = {s.name: sum(r.dead for r in rows if r.setting == s.name and r.epoch == 0) for s in settings}
    units = sum(row.units for row in rows if row.setting == "plain" and row.epoch == 0)
    assert start["plain"] < 0.1 * units and start["negative"] == units
    assert sum(r.dead for r in rows if r.setting == "saved" and r.epoch == 3) < 0.1 * units
    assert sum(r.revived for r in rows if r.setting == "saved") > 0.9 * units, "they come back"
    lost = [row for row in rows if row.setting == "lost"]
    assert not math.isfinite(lost[-1].loss) and lost[-1].epoch < 3
    columns, cells = _analysis.causes(rows)
    assert columns[-2:] == [">revived units", ">last loss"] and [line[-1] for line in cells][-1] == "diverged"


def test_the_dead_relu_command(tmp_path: Path) -> None:
    out = str(tmp_path / "d.csv")
    ran = CliRunner().invoke(cli, ["analyze", "dead-relu", "--images", "60", "--epochs", "1", "--out", out])
    assert ran.exit_code == 0, ran.output
    assert "Xavier init" in ran.output and "units can recover" in ran.output
    assert len((tmp_path / "d.csv").read_text().splitlines()) == 1 + 6 * 2 * 4
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.size[0] == 1280


# ---- shape or texture ----


def pictures(n: int = 6, side: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(3))


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_nothing_is_changed_at_no_strength() -> None:
    images = pictures()
    for make, none in ((shape_bias.contrast, 1.0), (shape_bias.phase_noise, 0.0), (shape_bias.patch_shuffle, 1.0)):
        torch.testing.assert_close(make(images, none, chance()), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        shape_bias.low_pass(images, 1.0, chance()) + shape_bias.high_pass(images, 1.0, chance()),
        images + images.mean((2, 3), keepdim=True),
        rtol=0,
        atol=1e-5,
    )


def test_phase_noise_keeps_amplitudes() -> None:
    images = pictures()
    noisy = shape_bias.phase_noise(images, 90.0, chance())
    torch.testing.assert_close(torch.fft.fft2(noisy).abs(), torch.fft.fft2(images).abs(), rtol=1e-3, atol=1e-3)
    assert (noisy - images).abs().max() > 0.1


def test_shuffled_patches_are_the_same_patches() -> None:
    image = torch.arange(3 * 8 * 8).float().view(1, 3, 8, 8)
    shuffled = shape_bias.patch_shuffle(image, 4.0, chance())
    assert not torch.equal(shuffled, image)
    assert torch.equal(shuffled.flatten().sort().values, image.flatten())
    corner = shuffled[0, 0, :2, :2]
    assert torch.equal(corner - corner[0, 0], torch.tensor([[0.0, 1.0], [8.0, 9.0]])), "within a patch nothing moves"


def test_a_bright_disc_on_dark_ground_becomes_black_on_white() -> None:
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    disc = ((y - 8) ** 2 + (x - 8) ** 2 < 25).float()
    image = (0.2 + 0.6 * disc)[None, None].expand(1, 3, 16, 16)
    assert torch.equal(shape_bias.silhouette(image, 1.0, chance())[0, 0], 1 - disc)
    assert torch.equal(shape_bias.silhouette(1 - image, 1.0, chance())[0, 0], 1 - disc), "whichever side is the brighter"
    lines = shape_bias.edges(image, 1.0, chance())[0, 0]
    assert lines[8, 8] == 1.0 and lines.min() < 1e-6 and disc[lines < 0.5].mean() > 0.2


def test_otsu_separates_two_groups() -> None:
    grey = torch.cat([torch.full((50,), 0.2), torch.full((20,), 0.8)]).view(7, 10)
    assert torch.equal(grey > shape_bias.otsu(grey), grey == 0.8)


def test_a_conflict_has_one_images_phases_and_anothers_amplitudes() -> None:
    images = (pictures(4, 8) * 0.2 + 0.4).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    mixed, shape, texture = shape_bias.conflicts(images, np.array([0, 0, 1, 1]))
    assert shape.tolist() == [0, 0, 1, 1] and (texture == 1 - shape).all()
    spectrum, sources = (np.fft.fft2(each / 255.0, axes=(1, 2)) for each in (mixed, images))
    assert np.abs(spectrum[:, 0, 0] - sources[:, 0, 0]).min(1).shape == (4,)
    for row, other in zip(spectrum, texture):
        assert min(np.abs(np.abs(row) - np.abs(source)).max() for source in sources[np.array([0, 0, 1, 1]) == other]) < 0.3
    with pytest.raises(ValueError, match="two classes"):
        shape_bias.conflicts(images, np.zeros(4, int))


def test_decisions_for_neither_do_not_count() -> None:
    found = shape_bias.judge(np.array([0, 0, 1, 2]), np.array([0, 0, 0, 0]), np.array([1, 1, 1, 1]))
    assert (found.shape, found.texture, found.n) == (2, 1, 4)
    assert found.bias == pytest.approx(2 / 3) and found.low < 2 / 3 < found.high
    assert math.isnan(shape_bias.judge(np.array([2]), np.array([0]), np.array([1])).bias)


def test_the_command_on_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    how = {"data": "synthetic", "data.imbalance": "exp:0.01", "epochs": 1, "batch_size": 500, "device": "cpu"}
    training.train(recipes.resolve("cnn_small", how), out=tmp_path / "r")
    ran = CliRunner().invoke(cli, ["analyze", "shape-bias", "r", "--images", "40", "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert [row["kind"] for row in found["scores"]][:4] == ["unchanged", "greyscale", "edges", "silhouette"]
    assert found["conflict"]["n"] == 40
    assert len((tmp_path / "r" / "shape_bias.csv").read_text().splitlines()) == 1 + len(found["scores"])
    dead = CliRunner().invoke(cli, ["analyze", "dead-relu", "r", "--images", "40", "--json", "--out", str(tmp_path / "d.csv")])
    assert [row["shape"] for row in json.loads(dead.stdout)] == ["32x32x32", "64x16x16", "96x8x8", "128x4x4"]
    for name in ("shape_bias.png", "shape_bias_images.png"):
        with Image.open(tmp_path / "r" / name) as picture:
            assert picture.size[0] == 1280
