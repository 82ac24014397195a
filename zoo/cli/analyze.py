"""Look into convolutions and networks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from zoo.cli._shared import RUN, as_json, headline

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
            self.fail(f"{value!r} is neither a number nor two, such as 3x5.", param, ctx)
        return int(found[1]), int(found[2] or found[1])


PAIR = Pair()


@click.group("analyze")
def command() -> None:
    """Look into convolutions and networks.

    \b
    zoo analyze conv-matrix --size 3 --kernel 3 --stride 4 --padding 2
    zoo analyze local-affine RUN --image cat.png
    """


@command.command("conv-matrix")
@click.option("--size", type=PAIR, default="3", show_default=True, help="Of the input.")
@click.option("--kernel", type=PAIR, default="3", show_default=True)
@click.option("--stride", type=PAIR, default="1", show_default=True)
@click.option("--padding", type=PAIR, default="0", show_default=True, help="Zeros around the input.")
@click.option("--dilation", type=PAIR, default="1", show_default=True)
@click.option("--channels", type=PAIR, default="1x1", show_default=True, help="In and out, e.g. 3x16.")
@click.option("--groups", type=click.IntRange(1), default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="CSV of the entries; a picture goes beside it.")
@as_json
def _conv_matrix(out: Path | None, as_json: bool, **shape: Any) -> None:
    """Write a convolution (cross-correlation, as F.conv2d) as a matrix A: vec(conv2d(x)) = A vec(x).

    \b
    zoo analyze conv-matrix --size 3 --kernel 3 --stride 4 --padding 2
    zoo analyze conv-matrix --size 8x6 --channels 4x8 --groups 2 --out a.csv
    """
    from zoo import tables
    from zoo.analysis import conv_matrix
    from zoo.bench import _timing
    from zoo.errors import UsageError
    from zoo.report import _analysis

    try:
        made = conv_matrix.Shape(**shape)
    except ValueError as error:
        raise UsageError(f"{error}; change --size, --kernel, --padding, --channels or --groups") from error
    row, column, tap = conv_matrix.entries(made)
    called, checked = conv_matrix.names(made, tap), conv_matrix.errors(made)
    entries = list(zip(row.tolist(), column.tolist(), called))
    if not entries:
        raise UsageError("the kernel meets the padding alone, so the matrix is all 0; lower --padding or --stride")
    if out is not None:
        _timing.write_csv(out, [dict(zip(("row", "column", "weight"), entry)) for entry in entries])
        _analysis.spy(made.matrix, row.tolist(), column.tolist(), out.with_suffix(".png"))
    if as_json:
        _echo({"shape": made.matrix, "output": made.out, "entries": entries, "errors": checked})
        return
    n, m = made.matrix
    click.echo(f"matrix    {n} x {m}, {len(entries)} of {n * m:,} entries · output {made.out[0]} x {made.out[1]}")
    if max(n, m) <= SHOWN:
        cells = [["0"] * m for _ in range(n)]
        for at, to, name in entries:
            cells[at][to] = name
        tables.out().print(tables.make(("", *(f">{to}" for to in range(m))), [(at, *line) for at, line in enumerate(cells)]))
    for what, most in checked.items():
        click.echo(f"check     {what}: at most {most:.1e} in float64, random weights")
    if out is not None:
        click.echo(f"table     {out}   picture  {out.with_suffix('.png')}")


@command.command("local-affine")
@click.argument("run", required=False, type=RUN)
@click.option("--image", type=click.Path(path_type=Path), help="Image at which the run's net is taken apart.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default="local_affine.png", show_default=True, help="Picture."
)
@as_json
def _local_affine(run: str | None, image: Path | None, out: Path, as_json: bool) -> None:
    """Show the affine function W x + b that a ReLU net is around an input, and how far the next kink is.

    Without a run and an image: the exercise 1 -> 2 -> 2 -> 1 of the reported experiments (S2-Q2).

    \b
    zoo analyze local-affine
    zoo analyze local-affine latest --image cat.png
    """
    from zoo.errors import UsageError

    if image is None:
        if run is not None:
            raise UsageError("an image is needed to take a run's net apart; give --image FILE")
        _exercise(as_json)
        return
    headline()
    from zoo import run as engine
    from zoo import run_folders
    from zoo.analysis import local_affine
    from zoo.report import _analysis

    loaded = engine.load(run_folders.find(run))
    pixels, x = engine.read_input(loaded, image)
    found = local_affine.local_affine(loaded.model, x)
    top = int(found.output.argmax())
    facts = {
        "run": str(loaded.path), "image": str(image), "class": loaded.classes[top], "logit": float(found.output[top]),
        "w_x": float(found.weight[top] @ found.x), "b": float(found.bias[top]), "kink": found.along, "error": found.error,
    }  # fmt: skip
    _analysis.weight_map(pixels, found.weight[top].view_as(x).numpy(), facts, out)
    if as_json:
        _echo(facts)
        return
    click.echo(f"class     {facts['class']}, logit {facts['logit']:.4f} = W x + b = {facts['w_x']:.4f} + {facts['b']:.4f}")
    click.echo(
        f"kink      {found.along:.3g} away in the direction that raises the logit fastest; |x| is {float(found.x.norm()):.3g} (normalised)"
    )
    click.echo(
        f"check     f - (W x + b) up to it: at most {found.error:.1e}{'' if found.error < 1e-6 else ': not piecewise affine'}"
    )
    click.echo(f"picture   {out}")


@command.command("dead-relu")
@click.argument("run", required=False, type=RUN)
@click.option("--images", type=click.IntRange(2), default=1_000, show_default=True, help="Images over which a unit must be 0.")
@click.option(
    "--epochs", type=click.IntRange(1), default=5, show_default=True, help="Of the small nets, where no run is named."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="dead_relu.csv",
    show_default=True,
    help="CSV; a picture goes beside it.",
)
@as_json
def _dead_relu(run: str | None, images: int, epochs: int, out: Path, as_json: bool) -> None:
    """Count the ReLU units of RUN that no image switches on; without one, train small nets that show what makes such units.

    \b
    zoo analyze dead-relu
    zoo analyze dead-relu cifar10-resnet32 --images 2000
    """
    headline()
    from dataclasses import asdict

    from zoo import analyses, run_folders, tables
    from zoo import run as engine
    from zoo.bench import _timing
    from zoo.report import _analysis

    columns: list[str]
    if run is not None:
        layers = analyses.dead_relu(engine.load(run_folders.find(run)), images=images)
        rows = [_layer(each) for each in layers]
        columns = [">layer", "shape", ">units", ">dead", ">%", ">dead channels"]
        cells = [[*[*row.values()][:4], tables.percent(row["dead"] / row["units"]), row["dead_channels"]] for row in rows]
    else:
        found = analyses.dead_relu_causes(images=images, epochs=epochs)
        rows = [asdict(each) for each in found]
        columns, cells = _analysis.causes(found)
        _analysis.dead_units(found, images, out.with_suffix(".png"))
    _timing.write_csv(out, rows)
    if as_json:
        _echo(rows)
        return
    tables.out().print(tables.make(columns, cells))
    if run is None:
        click.echo(
            "revived   0 for every image after one epoch, not after the next: dead is not for good while the layers before it learn"
        )
    click.echo(f"table     {out}" + ("" if run else f"   picture  {out.with_suffix('.png')}"))


def _layer(layer: Any) -> dict[str, Any]:
    dead = int(layer.dead.sum())
    shape = "x".join(map(str, layer.shape))
    return {"layer": layer.name, "shape": shape, "units": layer.units, "dead": dead, "dead_channels": layer.channels}


@command.command("shape-bias")
@click.argument("run", required=False, type=RUN)
@click.option("--images", type=click.IntRange(2), default=2_000, show_default=True, help="Test images, drawn at random.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV (default: shape_bias.csv in the run); pictures beside it.",
)
@as_json
def _shape_bias(run: str | None, images: int, seed: int, out: Path | None, as_json: bool) -> None:
    """Test a run on images without colour, contrast, fine or coarse detail, on edges, silhouettes and shuffled patches, and on
    images with one class's shape and another's texture.

    \b
    zoo analyze shape-bias
    zoo analyze shape-bias cifar10-resnet32 --images 500 --json
    """
    headline()
    from dataclasses import asdict

    from zoo import analyses, run_folders, tables
    from zoo import run as engine
    from zoo.bench import _timing
    from zoo.console import print_line
    from zoo.report import _analysis

    loaded = engine.load(run_folders.find(run))
    print_line(f"run      {loaded.path}")
    scores, conflict, samples = analyses.shape_bias(loaded, images=images, seed=seed)
    path = out or loaded.path / "shape_bias.csv"
    rows = [asdict(each) for each in scores]
    _timing.write_csv(path, rows)
    title = f"{loaded.recipe.model} on {loaded.recipe.data.label}, {conflict.n:,} test images"
    _analysis.severities(scores, conflict, title, path.with_suffix(".png"))
    _analysis.samples(samples, path.with_name(f"{path.stem}_images.png"))
    if as_json:
        _echo({"scores": rows, "conflict": asdict(conflict)})
        return
    cells = [
        (
            each.kind,
            f"{each.strength:g}" if each.kind in _analysis.graded(scores) else "",
            tables.percent(each.accuracy),
            f"{tables.percent(each.low)} to {tables.percent(each.high)}",
        )
        for each in scores
    ]
    tables.out().print(tables.make(("images", ">strength", ">%", "95 % interval"), cells))
    click.echo(
        f"conflict  shape bias {tables.percent(conflict.bias)} % [{tables.percent(conflict.low)}, {tables.percent(conflict.high)}]: "
        f"{conflict.shape:,} by shape, {conflict.texture:,} by texture, of {conflict.n:,}"
    )
    click.echo(
        "stand-ins edges: Sobel, silhouette: Otsu, conflict: Fourier amplitudes swapped; not the stimuli of Geirhos et al. 2019"
    )
    click.echo(f"table     {path}   pictures  {path.with_suffix('.png')}  {path.stem}_images.png")


def _exercise(as_json: bool) -> None:
    import torch

    from zoo import tables
    from zoo.analysis import local_affine

    net = local_affine.worked_example()
    rows = []
    for x in (2.0, 1.0, -1.0, -3.0):
        found = local_affine.local_affine(net, torch.tensor([x]))
        rows.append({"x": x, "h": float(found.output), "W": float(found.weight), "b": float(found.bias), "kink": found.radius})
    if as_json:
        _echo(rows)
        return
    click.echo("net       1 -> 2 -> 2 -> 1, ReLU; h(x) = W x + b up to the next kink")
    cells = [tuple(f"{value:g}" for value in row.values()) for row in rows]
    tables.out().print(tables.make((">x", ">h(x)", ">W", ">b", ">next kink at distance"), cells))


def _echo(value: Any) -> None:
    """Print JSON, null for what is no finite number: its standard knows none."""
    click.echo(json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None)))
