"""A ReLU net is affine around each input: f(x) = W x + b, up to the next kink (Montufar et al. 2014, arXiv:1402.1869)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.analysis._watch import Watch

EXACT = 4_096
"""Most ReLU units whose hyperplanes are all measured; of larger nets only the distance along one direction is."""


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
    """Euclidean distance to the nearest kink in any direction; nan where the net has too many units or max pooling."""
    along: float
    """Distance to the first kink on the way along ``direction``; inf if there is none."""
    direction: Tensor
    """(D,) unit vector, by default the gradient of the largest output."""
    error: float
    """Largest |f(x + d) - (W (x + d) + b)| at points before that kink: rounding, unless the net is not piecewise affine."""


def local_affine(model: nn.Module, x: Tensor, direction: Tensor | None = None) -> Affine:
    """W, b and the distance to the next kink of a ReLU net at one input ``x`` (without the batch's dimension).

    A unit's kink is the hyperplane on which its pre-activation z is 0. In the region z is affine, so its distance is
    |z| / ||dz/dx||, and on the way x + t d it comes at t = -z / (dz/dx . d). Max pooling has kinks where another element of a
    window overtakes the largest; those count along the direction only. Batch normalisation must be in eval mode.

    Raises:
        ValueError: a model in training mode.
    """
    if model.training:
        raise ValueError("the model is in training mode, in which dropout and batch statistics make no function; call eval()")
    model, x = model.double(), x.detach().double()

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

    def units(at: Tensor) -> Tensor:
        with Watch() as seen:
            outputs(at)
        if seen.pools:
            raise NotImplementedError
        return torch.cat([unit.flatten() for unit in seen.units]) if seen.units else at.new_empty(0)

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
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def seen(at: Tensor) -> tuple[Tensor, ...]:
        with Watch() as watch:
            last = outputs(at)
        calls[:] = [(args, kwargs) for _, args, kwargs in watch.pools]
        return (*watch.units, *(inputs for inputs, *_ in watch.pools), last)

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
    """Windows of a max pooling, (N, elements, windows * C), what lies outside of the image being ``outside``."""
    high, wide = padding if isinstance(padding, tuple) else (padding, padding)
    padded = F.pad(images, (wide, wide, high, high), value=outside)
    n, c = padded.shape[:2]
    unfolded = F.unfold(padded.view(n * c, 1, *padded.shape[2:]), kernel_size, dilation=dilation, stride=stride or kernel_size)
    return unfolded.permute(1, 0, 2).reshape(1, unfolded.shape[1], -1)


def worked_example() -> nn.Module:
    """The net of a reported exercise: 1 -> 2 -> 2 -> 1 with W1 = (1.5, .5), b1 = (0, 1), W2 = [[1, 2], [2, 1]], b2 = (0, 1),
    W3 = (1, 1), b3 = -1: 0 up to x = -2, 1.5 x + 3 up to 0, then 6 x + 3."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    numbers = ([[1.5], [0.5]], [0.0, 1.0], [[1.0, 2.0], [2.0, 1.0]], [0.0, 1.0], [[1.0, 1.0]], [-1.0])
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), numbers):
            parameter.copy_(torch.tensor(value))
    return net.eval()
