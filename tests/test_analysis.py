"""Tools that look into convolutions and networks, held to worked examples and to torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from zoo.analysis import conv_matrix, local_affine
from zoo.analysis.conv_matrix import Shape
from zoo.cli import cli

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
    assert refused.exit_code == 2 and "neither a number nor two" in refused.output


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
    model(torch.randn(64, 2, 8, 8))  # statistics of its own
    return model.eval()


def test_the_first_kink_is_where_the_function_bends() -> None:
    model, x = net(), torch.randn(2, 8, 8)

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
