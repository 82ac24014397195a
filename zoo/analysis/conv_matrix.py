"""A convolution as a sparse matrix (Dumoulin and Visin 2016, arXiv:1603.07285, section 4)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli._shared import UserPath, as_json, echo_json

if TYPE_CHECKING:
    from torch import Tensor

MOST = 10_000_000
"""Largest number of entries of a matrix; each takes 24 bytes, and more during construction."""


@dataclass(frozen=True)
class Shape:
    """A convolution without its weights; pairs are height and width."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    channels: tuple[int, int] = (1, 1)
    """In and out."""
    groups: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError unless it has an output, the groups divide the channels, and the matrix is not too large."""
        if self.groups < 1 or any(count < 1 or count % self.groups for count in self.channels):
            raise ValueError(f"channels {self.channels} must be positive multiples of groups {self.groups}")
        positive = (*self.size, *self.kernel, *self.stride, *self.dilation)
        if min(positive) < 1 or min(self.padding) < 0:
            raise ValueError(f"sizes must be at least 1 and padding at least 0, not {positive} and {self.padding}")
        if min(self.out) < 1:
            raise ValueError(f"the kernel {self.kernel} does not fit into {self.size} with padding {self.padding}")
        if (entries := math.prod(self.weight) * math.prod(self.out)) > MOST:
            raise ValueError(f"the matrix would have up to {entries:,} entries, over {MOST:,}")

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(self.size, self.kernel, self.stride, self.padding, self.dilation)
        )
        return height, width

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """Shape (C_out, C_in / groups, k_h, k_w) of the weights."""
        return self.channels[1], self.channels[0] // self.groups, *self.kernel

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows C_out * H_out * W_out and columns C_in * H * W of the matrix."""
        return self.channels[1] * self.out[0] * self.out[1], self.channels[0] * self.size[0] * self.size[1]


def entries(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and flat index of the weight of every entry of A that is not zero by construction, each (entries,) int64.

    A vec(x) = vec(conv2d(x)) with vec in memory order, so a row is an output (channel, y, x) and a column an input.
    """
    import torch

    taps = torch.arange(torch.Size(shape.weight).numel())
    out, inside, u, v = torch.unravel_index(taps, shape.weight)
    y, x = torch.meshgrid(torch.arange(shape.out[0]), torch.arange(shape.out[1]), indexing="ij")
    rows, columns, which = [], [], []
    per_group = shape.channels[1] // shape.groups
    for tap in taps.tolist():
        line = y * shape.stride[0] - shape.padding[0] + u[tap] * shape.dilation[0]
        column = x * shape.stride[1] - shape.padding[1] + v[tap] * shape.dilation[1]
        hit = (line >= 0) & (line < shape.size[0]) & (column >= 0) & (column < shape.size[1])
        channel = inside[tap] + out[tap] // per_group * shape.weight[1]
        rows.append(((out[tap] * shape.out[0] + y) * shape.out[1] + x)[hit])
        columns.append(((channel * shape.size[0] + line) * shape.size[1] + column)[hit])
        which.append(torch.full((int(hit.sum()),), tap))
    row, column, tap_of = torch.cat(rows), torch.cat(columns), torch.cat(which)
    order = (row * shape.matrix[1] + column).argsort()
    return row[order], column[order], tap_of[order]


def matrix(shape: Shape, weight: Tensor) -> Tensor:
    """The sparse COO matrix A (C_out * H_out * W_out, C_in * H * W) of ``weight`` (C_out, C_in / groups, k_h, k_w).

    Raises:
        ValueError: a weight of another shape.
    """
    import torch

    if tuple(weight.shape) != shape.weight:
        raise ValueError(f"weight must be {shape.weight}, not {tuple(weight.shape)}")
    row, column, tap = entries(shape)
    return torch.sparse_coo_tensor(
        torch.stack([row, column]), weight.flatten()[tap], shape.matrix, check_invariants=False
    ).coalesce()


def names(shape: Shape, tap: Tensor) -> list[str]:
    """Names of the entries: ``w02`` is row 0, column 2 of the kernel; with several channels ``w[out,in,0,2]``."""
    import torch

    places = torch.stack(torch.unravel_index(tap, shape.weight), 1).tolist()
    single = shape.weight[:2] == (1, 1) and max(shape.kernel) <= 10
    return [f"w{u}{v}" if single else f"w[{out},{inside},{u},{v}]" for out, inside, u, v in places]


def errors(shape: Shape, seed: int = 0) -> dict[str, float]:
    """Largest differences in float64 for random weights: A x against F.conv2d, and A^T y against its gradient, the transposed
    convolution of y."""
    import torch
    import torch.nn.functional as F

    chance = torch.Generator().manual_seed(seed)
    weight, x, y = (
        torch.randn(size, dtype=torch.float64, generator=chance)
        for size in (shape.weight, (1, shape.channels[0], *shape.size), (1, shape.channels[1], *shape.out))
    )
    a = matrix(shape, weight)
    stride, padding, dilation, groups = list(shape.stride), list(shape.padding), list(shape.dilation), shape.groups
    forward = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    spare = [
        n + 2 * p - d * (k - 1) - 1 - (out - 1) * s
        for n, out, k, s, p, d in zip(shape.size, shape.out, shape.kernel, stride, padding, dilation)
    ]  # rows and columns that the stride skips at the end
    back = F.conv_transpose2d(y, weight, None, stride, padding, spare, groups, dilation)
    return {
        "A x - conv2d(x)": float((a @ x.flatten() - forward.flatten()).abs().max()),
        "A^T y - conv_transpose2d(y)": float((a.t() @ y.flatten() - back.flatten()).abs().max()),
    }


SHOWN = 18
"""Largest number of rows and columns of a matrix that is printed."""


class Pair(click.ParamType):
    """``3`` or ``3x5``: height and width."""

    name = "N or HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Two integers; click's error, exit 2, if it is neither."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value))
        if not found:
            self.fail(f"{value!r} is not N or NxM, e.g. 3 or 3x5.", param, ctx)
        return int(found[1]), int(found[2] or found[1])


PAIR = Pair()


@click.command("conv-matrix")
@click.option("--size", type=PAIR, default="3", show_default=True, help="Height and width of the input, in pixels.")
@click.option("--kernel", type=PAIR, default="3", show_default=True, help="Height and width of the kernel.")
@click.option("--stride", type=PAIR, default="1", show_default=True, help="Pixels between two windows.")
@click.option("--padding", type=PAIR, default="0", show_default=True, help="Zeros on each side of the input, in pixels.")
@click.option("--dilation", type=PAIR, default="1", show_default=True, help="Pixels between two taps of the kernel.")
@click.option("--channels", type=PAIR, default="1x1", show_default=True, help="Input and output channels, e.g. 3x16.")
@click.option("--groups", type=click.IntRange(1), default=1, show_default=True, help="Groups of channels.")
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    help="CSV file of the entries (default: none); a picture is written next to it.",
)
@as_json
def command(out: Path | None, as_json: bool, **shape: Any) -> None:
    """Write a convolution as a matrix.

    The convolution is F.conv2d (a cross-correlation); the matrix A satisfies vec(conv2d(x)) = A vec(x).

    \b
    zoo analyze conv-matrix --size 3 --kernel 3 --stride 4 --padding 2
    zoo analyze conv-matrix --size 8x6 --channels 4x8 --groups 2 --out a.csv
    """
    from zoo import tables
    from zoo.bench import _timing
    from zoo.errors import UsageError
    from zoo.report import _analysis

    try:
        made = Shape(**shape)
    except ValueError as error:
        raise UsageError(f"{error}; change --size, --kernel, --padding, --channels or --groups") from error
    row, column, tap = entries(made)
    called, checked = names(made, tap), errors(made)
    found = list(zip(row.tolist(), column.tolist(), called))
    if not found:
        raise UsageError("the kernel covers only padding (all entries are 0); lower --padding or --stride")
    if out is not None:
        _timing.write_csv(out, [dict(zip(("row", "column", "weight"), entry)) for entry in found])
        _analysis.spy(made.matrix, row.tolist(), column.tolist(), out.with_suffix(".png"))
    if as_json:
        echo_json({"shape": made.matrix, "output": made.out, "entries": found, "errors": checked})
        return
    n, m = made.matrix
    click.echo(f"matrix    {n} x {m}, {len(found)} of {n * m:,} entries · output {made.out[0]} x {made.out[1]}")
    if max(n, m) <= SHOWN:
        cells = [["0"] * m for _ in range(n)]
        for at, to, name in found:
            cells[at][to] = name
        tables.out().print(tables.make(("", *(f">{to}" for to in range(m))), [(at, *line) for at, line in enumerate(cells)]))
    for what, most in checked.items():
        click.echo(f"check     {what}: at most {most:.1e} in float64, random weights")
    if out is not None:
        click.echo(f"table     {out}   picture  {out.with_suffix('.png')}")
