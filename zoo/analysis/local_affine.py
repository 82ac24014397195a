"""A ReLU net is affine around each input: f(x) = W x + b, up to the next kink (Montufar et al. 2014, arXiv:1402.1869)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli._shared import RUN, UserPath, as_json, echo_json, headline

if TYPE_CHECKING:
    from torch import Tensor, nn

EXACT = 4_096
"""Most ReLU units whose hyperplanes are all measured; of larger nets, only the distance along one direction is measured."""


@dataclass(frozen=True)
class Affine:
    """The affine function of one input's region; float64."""

    x: Tensor
    """(D,) the flattened input."""
    output: Tensor
    """(K,) f(x)."""
    weight: Tensor
    """(K, D) W = df/dx, with ReLU'(0) = 0."""
    bias: Tensor
    """(K,) b = f(x) - W x."""
    radius: float
    """Euclidean distance to the nearest kink in any direction; nan if the net has too many units or max pooling."""
    along: float
    """Distance to the first kink on the way along ``direction``; inf if there is none."""
    direction: Tensor
    """(D,) unit vector, by default the gradient of the largest output."""
    error: float
    """Largest |f(x + d) - (W (x + d) + b)| at points before that kink: rounding, unless the net is not piecewise affine."""


def local_affine(model: nn.Module, x: Tensor, direction: Tensor | None = None) -> Affine:
    """W, b and the distance to the next kink of a ReLU net at one input ``x`` (without the batch's dimension).

    A unit's kink is the hyperplane on which its pre-activation z is 0 (ReLU6 has a second one, where it is 6). In the region z
    is affine, so its distance is |z| / ||dz/dx||, and on the way x + t d it comes at t = -z / (dz/dx . d). Max pooling has
    kinks where another element of a window overtakes the largest; those count along the direction only. Batch normalisation
    must be in eval mode.

    Raises:
        ValueError: a model in training mode.
    """
    import torch

    if model.training:
        raise ValueError(
            "the model is in training mode, where dropout and batch statistics are not a function of the input; call eval()"
        )
    model, x = copy.deepcopy(model).double(), x.detach().double()

    def outputs(flat: Tensor) -> Tensor:
        return model(flat.view(1, *x.shape)).flatten()

    flat = x.flatten()
    output = outputs(flat).detach()
    weight = torch.autograd.functional.jacobian(outputs, flat).view(len(output), len(flat))
    steepest = weight[output.argmax()] if direction is None else direction.detach().double().flatten()
    norm = steepest.norm()
    steepest = steepest / norm if norm > 0 else steepest
    along = _first_kink(outputs, flat, steepest)
    bias = output - weight @ flat
    reach = along if math.isfinite(along) else 1.0
    steps = [flat + share * reach * steepest for share in (0.25, 0.5, 0.99)]
    error = max(float((outputs(step).detach() - weight @ step - bias).abs().max()) for step in steps)
    return Affine(flat, output, weight, bias, _radius(outputs, flat), along, steepest, error)


def _radius(outputs: Callable[[Tensor], Tensor], flat: Tensor) -> float:
    """Distance to the nearest hyperplane of all units."""
    import torch

    from zoo.analysis._watch import Watch

    def units(at: Tensor) -> Tensor:
        with Watch() as seen:
            outputs(at)
        if seen.pools:
            raise NotImplementedError
        gaps = [gap.flatten() for unit in seen.units for gap in unit.gaps]
        return torch.cat(gaps) if gaps else at.new_empty(0)

    try:
        values = units(flat).detach()
    except NotImplementedError:
        return math.nan
    if len(values) > EXACT:
        return math.nan
    if not len(values):
        return math.inf
    slopes = torch.autograd.functional.jacobian(units, flat).view(len(values), len(flat)).norm(dim=1)
    moving = slopes > 0
    return float((values[moving].abs() / slopes[moving]).min()) if moving.any() else math.inf


def _first_kink(outputs: Callable[[Tensor], Tensor], flat: Tensor, direction: Tensor) -> float:
    """The smallest t > 0 at which a unit changes sign, or a window its largest element, on flat + t direction."""
    import torch

    from zoo.analysis._watch import Watch

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def seen(at: Tensor) -> tuple[Tensor, ...]:
        with Watch() as watch:
            last = outputs(at)
        calls[:] = [(args, kwargs) for _, args, kwargs in watch.pools]
        gaps = [gap for unit in watch.units for gap in unit.gaps]
        return (*gaps, *(inputs for inputs, *_ in watch.pools), last)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")  # forward mode scripts its formulas
        values, slopes = torch.func.jvp(seen, (flat,), (direction,))  # type: ignore[misc]
    pooled = len(values) - 1 - len(calls)
    times = [_crossing(-z, dz) for z, dz in zip(values[:pooled], slopes[:pooled])]
    for z, dz, (args, kwargs) in zip(values[pooled:-1], slopes[pooled:-1], calls):
        windows, rates = (_windows(each, low, *args, **kwargs) for each, low in ((z, -math.inf), (dz, 0.0)))
        top = windows.argmax(1, keepdim=True)
        gap = windows.gather(1, top) - windows
        inside = gap.isfinite()
        times.append(_crossing(gap[inside], (rates - rates.gather(1, top))[inside]))
    return min(times, default=math.inf)


def _crossing(gap: Tensor, rate: Tensor) -> float:
    """The smallest positive gap / rate, 0 where a gap of 0 opens at once (on the kink itself ReLU'(0) is 0)."""
    gap, rate = gap.detach(), rate.detach()
    if ((gap == 0) & (rate > 0)).any():
        return 0.0
    when = gap / rate
    when = when[(rate != 0) & (when > 0)]
    return float(when.min()) if len(when) else math.inf


def _windows(
    images: Tensor, outside: float, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **_: Any
) -> Tensor:
    """Windows of a max pooling, (N, elements, windows * C), positions outside the image being ``outside``."""
    import torch.nn.functional as F

    high, wide = padding if isinstance(padding, tuple) else (padding, padding)
    padded = F.pad(images, (wide, wide, high, high), value=outside)
    n, c = padded.shape[:2]
    unfolded = F.unfold(padded.view(n * c, 1, *padded.shape[2:]), kernel_size, dilation=dilation, stride=stride or kernel_size)
    return unfolded.permute(1, 0, 2).reshape(1, unfolded.shape[1], -1)


def worked_example() -> nn.Module:
    """The net of a reported exercise: 1 -> 2 -> 2 -> 1 with W1 = (1.5, .5), b1 = (0, 1), W2 = [[1, 2], [2, 1]], b2 = (0, 1),
    W3 = (1, 1), b3 = -1: 0 up to x = -2, 1.5 x + 3 up to 0, then 6 x + 3."""
    import torch
    from torch import nn

    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    numbers = ([[1.5], [0.5]], [0.0, 1.0], [[1.0, 2.0], [2.0, 1.0]], [0.0, 1.0], [[1.0, 1.0]], [-1.0])
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), numbers):
            parameter.copy_(torch.tensor(value))
    return net.eval()


@click.command("local-affine")
@click.argument("run", required=False, type=RUN)
@click.option("--image", type=UserPath(), help="Image at which the network of RUN is analysed.")
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    default="local_affine.png",
    show_default=True,
    help="Picture file.",
)
@as_json
def command(run: str | None, image: Path | None, out: Path, as_json: bool) -> None:
    """Show the affine function of a ReLU network around an input.

    The function W x + b is valid up to the nearest kink; the distance to the kink is printed. Without RUN and --image, the command
    solves the exercise 1 -> 2 -> 2 -> 1 of the reported experiments (S2-Q2).

    \b
    zoo analyze local-affine
    zoo analyze local-affine latest --image cat.png
    """
    from zoo.errors import UsageError

    if image is None:
        if run is not None:
            raise UsageError(f"no image at which to analyse the run's net ({run}); give --image FILE")
        _exercise(as_json)
        return
    headline()
    from zoo import run as engine
    from zoo import run_folders
    from zoo.report import _analysis

    loaded = engine.load(run_folders.find(run))
    pixels, x = engine.read_input(loaded, image)
    found = local_affine(loaded.model, x)
    top = int(found.output.argmax())
    facts = {
        "run": str(loaded.path), "image": str(image), "class": loaded.classes[top], "logit": float(found.output[top]),
        "w_x": float(found.weight[top] @ found.x), "b": float(found.bias[top]), "kink": found.along, "error": found.error,
    }  # fmt: skip
    _analysis.weight_map(pixels, found.weight[top].view_as(x).numpy(), facts, out)
    if as_json:
        echo_json(facts)
        return
    click.echo(f"class     {facts['class']}, logit {facts['logit']:.4f} = W x + b = {facts['w_x']:.4f} + {facts['b']:.4f}")
    click.echo(
        f"kink      {found.along:.3g} away in the direction that raises the logit fastest; |x| is {float(found.x.norm()):.3g} (normalised)"
    )
    click.echo(
        f"check     f - (W x + b) up to it: at most {found.error:.1e}{'' if found.error < 1e-6 else ': not piecewise affine'}"
    )
    click.echo(f"picture   {out}")


def _exercise(as_json: bool) -> None:
    import torch

    from zoo import tables

    net = worked_example()
    rows = []
    for x in (2.0, 1.0, -1.0, -3.0):
        found = local_affine(net, torch.tensor([x]))
        rows.append({"x": x, "h": float(found.output), "W": float(found.weight), "b": float(found.bias), "kink": found.radius})
    if as_json:
        echo_json(rows)
        return
    click.echo("net       1 -> 2 -> 2 -> 1, ReLU; h(x) = W x + b up to the next kink")
    cells = [tuple(f"{value:g}" for value in row.values()) for row in rows]
    tables.out().print(tables.make((">x", ">h(x)", ">W", ">b", ">next kink at distance"), cells))
