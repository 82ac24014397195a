"""Train a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo.cli._shared import Name, headline, recipe_names, registered, start


@click.command("train")
@click.argument("what", required=False, type=Name(registered("models"), recipe_names))
@click.argument("settings", nargs=-1)
@click.option(
    "--data",
    type=Name(registered("data")),
    help="Data set, torchvision:NAME, or a folder of class folders, a CSV list or an .npz file.",
)
@click.option("--data-dir", help="Where the data set lies; without it zoo looks in its cache and downloads.")
@click.option("--skip-bad", is_flag=True, default=None, help="Leave out images that cannot be read; the result says how many.")
@click.option("--imbalance", help="Long tail, e.g. exp:0.01 or step:0.01.")
@click.option("--loss", type=Name(registered("losses")), help="Loss.")
@click.option("--focal-gamma", type=float, help="Exponent of the focal loss.")
@click.option("--class-weights", help="none, effective, inverse, sqrt_inverse, or given with loss.given_weights=[...].")
@click.option("--beta", type=float, help="Of the effective number of samples (Cui et al. 2019), in [0, 1).")
@click.option("--drw-epoch", type=int, help="Epochs before the class weights act (deferred re-weighting).")
@click.option("--sampler", help="none, class_balanced, square_root, progressive or focal.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--lr-head", type=float, help="Factor on the rate of the new head.")
@click.option(
    "--layer-decay", type=float, help="Factor on the rate of each stage (of timm: layer) once more per stage below the top."
)
@click.option("--lr-gamma", type=float, help="Factor of the step and multistep schedules.")
@click.option("--seed", type=int)
@click.option("--weights", help="none, default (download) or a file to start from.")
@click.option("--freeze", help="What is frozen: conv, fc, fc:all, backbone, bn, stage<=N, a glob, none.")
@click.option("--allow-random-frozen", is_flag=True, default=None, help="Freeze weights that are random all the same.")
@click.option("--precision", help="auto, fp32, bf16 or fp16.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@click.option("--select-on", help="val (default) or test: what chooses the epoch to keep; test is stamped on the result.")
@click.option("--deterministic", is_flag=True, default=None, help="Use only operations that give the same bits again.")
@click.option(
    "--compile",
    is_flag=True,
    default=None,
    help="Train with torch.compile: a minute at first; ResNets gain, nets with max pooling can lose.",
)
@click.option("--allow-empty-class", is_flag=True, default=None, help="Train although a class has no images.")
@click.option("--save-every", type=int, help="Steps between saved states (default: one at the end of each epoch).")
@click.option("--on-full", help="On a full disk: stop, or keep-training and try again with the next save.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder (default: runs/<name made from the settings>).")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the latest run.")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and what may surprise in it, and stop.")
def command(
    what: str | None, settings: tuple[str, ...], out: Path | None, resume: bool, force: bool, dry_run: bool, **flags: Any
) -> None:
    """Train WHAT: a model, a recipe that comes with zoo, or a recipe file; SETTINGS are key=value.

    \b
    zoo train resnet32 --data cifar10 --epochs 20
    zoo train cifar10lt_resnet32_focal optim.lr=0.05 seed=1
    zoo train --resume
    torchrun --nproc-per-node 2 -m zoo train resnet32
    """
    from zoo import recipe as recipes
    from zoo import run_folders, tables
    from zoo.console import first_ten, leading, print_line
    from zoo.training import lint

    if what and "=" in what:
        settings, what = (what, *settings), None
    overrides = _overrides(settings, flags)
    if resume and what is None and out is None:
        out = run_folders.find(None)
    if resume and what is None and out is not None:
        what = str(out / "recipe.toml")
    recipe = recipes.resolve(what, overrides)
    if dry_run:
        recipes.check(recipe)
        counts = lint.expected_counts(recipe)
        if counts is not None:
            print_line(f"data     {recipe.data.name} · {counts.sum():,} train ({first_ten(counts.tolist())})")
        for finding in lint.check(recipe, counts):
            print_line(f"warning  {finding}")
        click.echo(recipes.dump(recipe), nl=False)
        return
    headline()
    folder = start(recipe, out, resume, force)
    if not leading():
        return
    tables.result(folder)
    if recipe.reported.source:
        click.echo(f"reported {tables.percent(recipe.reported.accuracy)} % ({recipe.reported.source})")
    click.echo(
        f"pictures  {folder}/curves.png  confusion.png  per_class.png   report  {folder}/report.html\nnext      zoo export --onnx     zoo bench"
    )


def _overrides(settings: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    from zoo import recipe as recipes
    from zoo import registry

    found = dict(recipes.parse_override(text) for text in settings)
    keys = {"data": "data.name", "data_dir": "data.dir", "loss": "loss.name"}
    found |= {recipes.full_key(keys.get(name, name)): value for name, value in flags.items() if value is not None}
    if isinstance(data := found.get("data.name"), str):
        name, place = registry.data_source(data)
        found |= {"data.name": name} | ({"data.dir": place} if place else {})
    return found
