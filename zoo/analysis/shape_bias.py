"""Measure whether a net relies on shape or texture, with images in which one of the two is changed; no download.

After Geirhos et al. 2019 (arXiv:1811.12231) and Geirhos et al. 2018 (arXiv:1808.08750). Their stimuli were made with style
transfer and by hand; these are approximations: the cue conflict swaps Fourier amplitudes, edges are Sobel's, a silhouette is
Otsu's
threshold with the border's side as background. Compare the numbers between nets, not with those of the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoo.cli._shared import RUN, UserPath, as_json, echo_json, headline

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from zoo.run import Run

    Stimulus = Callable[[Tensor, float, torch.Generator], Tensor]
    """(N, 3, H, W) in [0, 1], a strength and draws, to images of the same shape."""

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601's luma."""


@dataclass(frozen=True)
class Score:
    """Accuracy on one kind of changed images, with Wilson's 95 % interval."""

    kind: str
    strength: float
    n: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Conflict:
    """Decisions on images with the phases (shape) of one class and the amplitudes (texture) of another."""

    n: int
    shape: int
    texture: int
    bias: float
    """shape / (shape + texture), nan if neither was ever chosen."""
    low: float
    high: float


def _grey(images: Tensor) -> Tensor:
    import torch

    weights = torch.tensor(GREY, dtype=images.dtype).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def greyscale(images: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """Without colour."""
    return _grey(images).expand_as(images)


def contrast(images: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """``strength`` (a share of 1) of the contrast around mid grey."""
    return 0.5 + strength * (images - 0.5)


def low_pass(images: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """Blurred with a Gaussian of ``strength`` pixels' standard deviation."""
    import numpy as np
    from torchvision.transforms import v2

    return v2.functional.gaussian_blur(images, [2 * int(np.ceil(3 * strength)) + 1] * 2, [strength, strength])


def high_pass(images: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """The detail that a blur of ``strength`` pixels removes, around the image's mean."""
    return images - low_pass(images, strength, chance) + images.mean((2, 3), keepdim=True)


def phase_noise(images: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """Phases moved by up to ``strength`` degrees, the same in all colours."""
    import torch

    noise = torch.rand(len(images), 1, *images.shape[2:], generator=chance)
    angle = torch.fft.fft2(noise).angle()  # of real noise, so odd in the frequency, as it must be for a real image
    odd = (angle - torch.roll(angle.flip(2, 3), (1, 1), (2, 3))) / 2  # and 0 where a frequency is its own negative
    return torch.fft.ifft2(torch.fft.fft2(images) * torch.exp(1j * odd * (strength / 180))).real


def patch_shuffle(images: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """``strength`` x ``strength`` patches in another order for each image, the rest at right and bottom cut off."""
    import torch
    import torch.nn.functional as F

    grid = int(strength)
    n, c, height, width = images.shape
    h, w = height // grid, width // grid
    cut = images[:, :, : h * grid, : w * grid].reshape(n, c, grid, h, grid, w)
    patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, c, h, w)
    order = torch.rand(n, grid * grid, generator=chance).argsort(1)
    shuffled = patches.gather(1, order.view(n, -1, 1, 1, 1).expand_as(patches)).view(n, grid, grid, c, h, w)
    whole = shuffled.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h * grid, w * grid)
    return F.pad(whole, (0, width - w * grid, 0, height - h * grid), value=0.5)


def edges(images: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """Dark lines on white where Sobel's gradient is steep, the steepest of each image black."""
    import torch
    import torch.nn.functional as F

    down = torch.tensor([[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]])
    kernels = torch.stack([down, down.T])[:, None]
    gradient = F.conv2d(F.pad(_grey(images), (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1, keepdim=True)
    return (1 - gradient / gradient.amax((2, 3), keepdim=True).clamp(min=1e-6)).expand_as(images)


def silhouette(images: Tensor, strength: float, chance: torch.Generator) -> Tensor:
    """Black on white by Otsu's threshold (1979); the side to which most of the border belongs is white."""
    import torch

    made = []
    for grey in _grey(images)[:, 0]:
        above = grey > otsu(grey)
        border = torch.cat([above[0], above[-1], above[:, 0], above[:, -1]]).float().mean()
        made.append(above if border >= 0.5 else ~above)
    return torch.stack(made)[:, None].float().expand_as(images)


def otsu(grey: Tensor) -> float:
    """The threshold of grey levels (H, W) in [0, 1] that separates two classes best: largest variance between them."""
    import torch

    counts = torch.histc(grey, 256, 0, 1)
    levels = (torch.arange(256) + 0.5) / 256
    below = counts.cumsum(0)
    above = below[-1] - below
    first, second = (counts * levels).cumsum(0) / below.clamp(min=1), (counts * levels).flip(0).cumsum(0).flip(0)
    second = (second - counts * levels) / above.clamp(min=1)
    return float(levels[(below * above * (first - second) ** 2).argmax()] + 0.5 / 256)


STIMULI: dict[str, tuple[Stimulus, tuple[float, ...]]] = {
    "greyscale": (greyscale, (1.0,)),
    "edges": (edges, (1.0,)),
    "silhouette": (silhouette, (1.0,)),
    "contrast": (contrast, (0.5, 0.3, 0.15, 0.05)),
    "low pass (px)": (low_pass, (0.5, 1.0, 1.5, 2.5)),
    "high pass (px)": (high_pass, (3.0, 1.5, 1.0, 0.5)),
    "phase noise (degrees)": (phase_noise, (30.0, 60.0, 90.0, 150.0)),
    "patch shuffle (grid)": (patch_shuffle, (2.0, 4.0, 8.0)),
}
"""Kinds of changed images with their strengths, the mildest first."""


def changed(images: np.ndarray, seed: int = 0) -> Iterator[tuple[str, float, np.ndarray]]:
    """Kind, strength and the images (N, H, W, 3) uint8, first as they are (``unchanged``), then by every one of :data:`STIMULI`."""
    import torch

    yield "unchanged", 0.0, images
    floats = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    for kind, (make, strengths) in STIMULI.items():
        for strength in strengths:
            yield kind, strength, _stored(make(floats, strength, torch.Generator().manual_seed(seed)))


def score(kind: str, strength: float, right: Sequence[bool] | np.ndarray) -> Score:
    """The share of correct predictions."""
    import numpy as np

    from zoo import metrics

    n, hits = len(right), int(np.sum(right))
    return Score(kind, strength, n, hits / n, *metrics.wilson(hits, n))


def conflicts(images: np.ndarray, targets: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, H, W, 3) uint8 with the phases of each image and the amplitudes of a random one of another class, the class of
    the phases (shape) and that of the amplitudes (texture).

    Phases carry the places of edges, amplitudes how much of each spatial frequency there is (Oppenheim and Lim 1981).

    Raises:
        ValueError: images of a single class.
    """
    import numpy as np
    import torch

    if len(np.unique(targets)) < 2:
        raise ValueError("a conflict needs images of at least two classes")
    chance = np.random.default_rng(seed)
    partner = np.array([chance.choice(np.flatnonzero(targets != target)) for target in targets])
    spectrum = torch.fft.fft2(torch.tensor(images).permute(0, 3, 1, 2).float() / 255)
    mixed = torch.fft.ifft2(torch.polar(spectrum[partner].abs(), spectrum.angle())).real
    return _stored(mixed), targets, targets[partner]


def judge(predicted: np.ndarray, shape: np.ndarray, texture: np.ndarray) -> Conflict:
    """Numbers of predictions of the shape's and of the texture's class; other predictions count for neither."""
    from zoo import metrics

    by_shape, by_texture = int((predicted == shape).sum()), int((predicted == texture).sum())
    decided = by_shape + by_texture
    low, high = metrics.wilson(by_shape, decided) if decided else (float("nan"), float("nan"))
    return Conflict(len(predicted), by_shape, by_texture, by_shape / decided if decided else float("nan"), low, high)


def _stored(images: Tensor) -> np.ndarray:
    import torch

    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def of_run(run: Run, *, images: int = 2_000, seed: int = 0) -> tuple[list[Score], Conflict, dict[str, np.ndarray]]:
    """Results of a run on changed test images and on cue conflicts, and eight images of each kind at its second strength.

    Raises:
        UsageError: test images of a single class.
    """
    import numpy as np

    from zoo.console import counted
    from zoo.errors import UsageError
    from zoo.run import evaluate
    from zoo.spec import Split

    data = run.dataset()
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data.test))[:images])
    pixels, targets = data.test.images[chosen], data.test.targets[chosen]
    names = [data.test.files[i] for i in chosen]
    try:
        mixed, shape, texture = conflicts(pixels, targets, seed)
    except ValueError as error:
        raise UsageError(f"{error} ({len(pixels)} test images of {data.name}); use more, with --images") from error

    def answers(pictures: np.ndarray) -> np.ndarray:
        _, logits, _ = evaluate(run, "test", replace(data, test=Split(pictures, targets, names)))
        return logits.argmax(1).numpy()

    scores: list[Score] = []
    samples: dict[str, np.ndarray] = {}
    eight = np.linspace(0, len(pixels) - 1, 8).astype(int)
    total = 1 + sum(len(strengths) for _, strengths in STIMULI.values())
    for kind, strength, made in counted(changed(pixels, seed), total, "images   answered kind"):
        if sum(each.kind == kind for each in scores) < 2:
            samples[kind] = made[eight]
        scores.append(score(kind, strength, answers(made) == targets))
    samples["cue conflict"] = mixed[eight]
    return scores, judge(answers(mixed), shape, texture), samples


@click.command("shape-bias")
@click.argument("run", required=False, type=RUN)
@click.option(
    "--images", type=click.IntRange(2), default=2_000, show_default=True, help="Number of test images, drawn at random."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the choice of images.")
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    help="CSV file (default: shape_bias.csv in the run folder); pictures are written next to it.",
)
@as_json
def command(run: str | None, images: int, seed: int, out: Path | None, as_json: bool) -> None:
    """Test whether a run relies on shape or texture.

    The test images are modified: they lack colour, contrast, fine or coarse detail; show only edges or silhouettes; have shuffled
    patches; or combine the shape of one class with the texture of another.

    \b
    zoo analyze shape-bias
    zoo analyze shape-bias cifar10-resnet32 --images 500 --json
    """
    headline()
    from zoo import run as engine
    from zoo import run_folders, tables
    from zoo.bench import _timing
    from zoo.console import print_line
    from zoo.report import _analysis

    loaded = engine.load(run_folders.find(run))
    print_line(f"run      {loaded.path}")
    scores, conflict, samples = of_run(loaded, images=images, seed=seed)
    path = out or loaded.path / "shape_bias.csv"
    rows = [asdict(each) for each in scores]
    _timing.write_csv(path, rows)
    title = f"{loaded.recipe.model} on {loaded.recipe.data.label}, {conflict.n:,} test images"
    _analysis.severities(scores, conflict, title, path.with_suffix(".png"))
    _analysis.samples(samples, path.with_name(f"{path.stem}_images.png"))
    if as_json:
        echo_json({"scores": rows, "conflict": asdict(conflict)})
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
        "stimuli   edges: Sobel, silhouette: Otsu, conflict: Fourier amplitudes swapped; not those of Geirhos et al. 2019"
    )
    click.echo(f"table     {path}   pictures  {path.with_suffix('.png')}  {path.stem}_images.png")
