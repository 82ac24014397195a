"""The command line: each command parses, calls one function, prints. torch is imported by what is called, not here."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import zoo


class Name(click.ParamType):
    """An argument that completes from a list; the list is made only when the shell asks."""

    name = "name"

    def __init__(self, *listings: Callable[[], Any]) -> None:
        self.listings = listings

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin with what is typed so far."""
        return [
            CompletionItem(str(name)) for listing in self.listings for name in listing() if str(name).startswith(incomplete)
        ]


def _registered(kind: str) -> Callable[[], Any]:
    def listing() -> list[str]:
        from zoo import registry

        return registry.names(kind)

    return listing


def _recipes() -> Any:
    from zoo import recipe

    return recipe.shipped()


def _runs() -> list[str]:
    from zoo import runs

    return [path.name for path in runs.all_runs()]


RUN = Name(_runs)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(zoo.__version__, "--version", prog_name="zoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Train image classifiers on imbalanced data, export them to ONNX with proof, benchmark them honestly.

    \b
    zoo demo                          everything once, on built-in images, in about a minute
    zoo train resnet32 --data cifar10
    zoo export --onnx                 the latest run
    zoo bench                         the latest run, PyTorch against onnxruntime
    """


@cli.command()
@click.argument("what", required=False, type=Name(_registered("models"), _recipes))
@click.argument("settings", nargs=-1)
@click.option("--data", type=Name(_registered("data")), help="Data set, or a folder of class folders.")
@click.option("--data-dir", help="Where the data set lies; without it zoo looks in its cache and downloads.")
@click.option("--imbalance", help="Long tail, e.g. exp:0.01 or step:0.01.")
@click.option("--loss", type=Name(_registered("losses")), help="Loss.")
@click.option("--focal-gamma", type=float, help="Exponent of the focal loss.")
@click.option("--class-weights", help="none, effective, inverse or sqrt_inverse.")
@click.option("--beta", type=float, help="Of the effective number of samples (Cui et al. 2019), in [0, 1).")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--seed", type=int)
@click.option("--weights", help="none, default (download) or a file to start from.")
@click.option("--freeze", help="What is frozen: conv, fc, fc:all, backbone, bn, stage<=N, a glob, none.")
@click.option("--allow-random-frozen", is_flag=True, default=None, help="Freeze weights that are random all the same.")
@click.option("--precision", help="auto, fp32, bf16 or fp16.")
@click.option("--device", help="auto, cpu, cuda or cuda:N.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder (default: runs/<name made from the settings>).")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, or with the latest run.")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and stop.")
def train(
    what: str | None, settings: tuple[str, ...], out: Path | None, resume: bool, force: bool, dry_run: bool, **flags: Any
) -> None:
    """Train WHAT: a model, a recipe that comes with zoo, or a recipe file; SETTINGS are key=value.

    \b
    zoo train resnet32 --data cifar10 --epochs 20
    zoo train cifar10lt_resnet32_focal optim.lr=0.05 seed=1
    zoo train --resume
    """
    from zoo import recipe as recipes
    from zoo import runs

    if what and "=" in what:
        settings, what = (what, *settings), None
    overrides = _overrides(settings, flags)
    if resume and what is None and out is None:
        out = runs.find(None)
    if resume and what is None and out is not None:
        what = str(out / "recipe.toml")
    recipe = recipes.resolve(what, overrides)
    if dry_run:
        click.echo(recipes.dump(recipe), nl=False)
        return
    _headline()
    folder = _train(recipe, out, resume, force)
    show_result(folder)
    click.echo(
        f"pictures  {folder}/curves.png  confusion.png  per_class.png   report  {folder}/report.html\nnext      zoo export --onnx     zoo bench"
    )


def _train(recipe: Any, out: Path | None, resume: bool, force: bool) -> Path:
    from zoo import run, runs
    from zoo.stop import Interrupted

    out = out or runs.root() / runs.new_name(recipe)
    try:
        return run.train(recipe, out=out, resume=resume, force=force, command=shlex.join(["zoo", *sys.argv[1:]]))
    except Interrupted as error:
        error.resume = f"zoo train --resume --out {shlex.quote(str(out))}"  # type: ignore[attr-defined]
        raise


def _overrides(settings: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    from zoo import recipe as recipes
    from zoo import registry

    found = dict(recipes.parse_override(text) for text in settings)
    keys = {"data": "data.name", "data_dir": "data.dir", "loss": "loss.name"}
    found |= {recipes.full_key(keys.get(name, name)): value for name, value in flags.items() if value is not None}
    data = found.get("data.name")
    if data and data not in registry.names("data") and (Path(data).is_dir() or "/" in data):
        found |= {"data.name": "folder", "data.dir": data}
    return found


def show_result(folder: Path) -> None:
    """Print the test line and the per-class table of a run folder."""
    from zoo import show

    show.result(folder)


def _headline() -> None:
    """The first line, before torch is imported."""
    import importlib.metadata
    import platform

    from zoo.console import say

    versions = " · ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch",))
    say(f"zoo {zoo.__version__} · python {platform.python_version()} · {versions}")


@cli.command()
@click.argument("run", required=False, type=RUN)
@click.option("--split", type=click.Choice(["val", "test", "train"]), default="test", show_default=True)
@as_json
def eval(run: str | None, split: str, as_json: bool) -> None:
    """Evaluate a run's best weights: overall, macro and per class, with 95 % intervals.

    \b
    zoo eval
    zoo eval cifar10-resnet32 --split val --json
    """
    from zoo import console, runs, show

    folder = runs.find(run)
    console.say(f"run      {folder}")
    from zoo import run as engine

    loaded = engine.load(folder)
    result, _, _ = engine.evaluate(loaded, split)
    if as_json:
        per_class = {
            name: dict(zip(("n", "correct", "accuracy", "low", "high"), row))
            for name, row in zip(loaded.classes, result.per_class)
        }
        overall = {key: getattr(result, key) for key in ("n", "accuracy", "low", "high", "macro", "loss", "ece")}
        click.echo(json.dumps({"run": str(folder), "split": split, **overall, "classes": per_class}))
    else:
        show.evaluation(split, loaded.classes, result)


@cli.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", type=RUN, help="Run to use (default: the latest).")
@click.option("--onnx", type=click.Path(path_type=Path), help="Use this exported file; torch is not needed.")
@click.option("--top", default=3, show_default=True, type=click.IntRange(1))
@as_json
def predict(images: tuple[Path, ...], run: str | None, onnx: Path | None, top: int, as_json: bool) -> None:
    """Name what is in IMAGES, with probabilities. A bad file is named, the rest go on, and the exit code is 3.

    \b
    zoo predict cat.jpg dog.png
    zoo predict --onnx model.onnx *.png --json
    """
    from zoo import console, show

    if onnx is not None:
        from zoo import predictor

        answers = predictor.predict(onnx, images, top=top)
    else:
        from zoo import run as engine
        from zoo import runs

        folder = runs.find(run)
        console.say(f"run      {folder}")
        answers = engine.predict_files(engine.load(folder), images, top=top)
    show.predictions(answers, as_json=as_json)


@cli.command()
@click.argument("run", required=False, type=RUN)
@click.option("--onnx", "fmt", flag_value="onnx", default="onnx", help="Write ONNX (the default).")
@click.option("--preprocess", type=click.Choice(["none", "normalize", "full"]), default="normalize", show_default=True,
              help="What the file does itself: nothing, normalisation, or all from uint8 images of any size.")  # fmt: skip
@click.option("--softmax", is_flag=True, help="Give probabilities instead of logits.")
@click.option("--opset", type=int, help="ONNX operator set.")
@click.option("--out", type=click.Path(path_type=Path), help="File (default: model.onnx in the run folder).")
@click.option("--force", is_flag=True, help="Replace the file.")
@as_json
def export(run: str | None, fmt: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Export a run to one ONNX file and prove that it answers as PyTorch does, or publish nothing (exit 8).

    \b
    zoo export --onnx
    zoo export cifar10-resnet32 --preprocess full --softmax --out model.onnx
    """
    from zoo import console, runs

    folder = runs.find(run)
    console.say(f"run      {folder}")
    import zoo.export
    from zoo.run import load

    receipt = zoo.export.onnx(load(folder), out, **options)
    click.echo(json.dumps(receipt.as_dict()) if as_json else f"export    {receipt.line()}")


@cli.command()
@click.argument("what", required=False, type=Name(_runs, _registered("models")))
@click.option("--quick", is_flag=True, help="Seconds instead of minutes: fewer rounds and sizes.")
@click.option("--batches", help="Batch sizes, e.g. 1,8,64.")
@click.option("--device", help="cpu or cuda; one that isn't there is an error, never a silent fallback.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="CSV file (default: bench.csv in the run folder, or bench/results)."
)
@as_json
def bench(what: str | None, quick: bool, batches: str | None, device: str | None, out: Path | None, as_json: bool) -> None:
    """Benchmark a run, a model or one of zoo's own parts (focal_loss, startup, training).

    \b
    zoo bench --batches 1,64
    zoo bench focal_loss --quick
    """
    from zoo.bench import command

    command(what, quick=quick, batches=batches, device=device, out=out, as_json=as_json)


@cli.command()
@click.argument("runs", nargs=-1, type=RUN)
@click.option("--out", type=click.Path(path_type=Path), help="HTML file of a comparison (default: compare.html).")
def report(runs: tuple[str, ...], out: Path | None) -> None:
    """Draw a run's curves, confusion and classes again, or compare several runs on one page.

    \b
    zoo report
    zoo report cifar10-resnet32-focal cifar10-resnet32-cross --out compare.html
    """
    from zoo import report as reports
    from zoo import runs as folders
    from zoo.console import say

    found = [folders.find(name) for name in runs or (None,)]
    say("run      " + "  ".join(map(str, found)))
    if len(found) == 1:
        reports.figures(found[0])
        reports.summary(found[0])
        page = reports.page(found[0])
    else:
        page = reports.compare(found, out or Path("compare.html"))
    click.echo(f"report    {page}")


def _listing(kind: str, pattern: str, as_json: bool) -> None:
    from fnmatch import fnmatch

    from zoo import registry, show

    rows = {name: entry for name, entry in registry.table(kind).items() if fnmatch(name, f"*{pattern}*")}
    if as_json:
        click.echo(json.dumps(rows))
    else:
        show.listing(kind, rows)


@cli.command()
@click.argument("pattern", default="")
@as_json
def models(pattern: str, as_json: bool) -> None:
    """List the models: input, parameters, multiply-accumulates, paper.

    \b
    zoo models
    zoo models 'resnet*'
    """
    _listing("models", pattern, as_json)


@cli.command()
@click.argument("pattern", default="")
@as_json
def data(pattern: str, as_json: bool) -> None:
    """List the data sets.

    \b
    zoo data
    zoo data cifar --json
    """
    _listing("data", pattern, as_json)


@cli.command()
@click.argument("pattern", default="")
@as_json
def losses(pattern: str, as_json: bool) -> None:
    """List the losses.

    \b
    zoo losses
    zoo losses focal
    """
    _listing("losses", pattern, as_json)


@cli.command()
@click.argument("pattern", default="")
@click.option("--show", is_flag=True, help="Print the text of the recipes.")
def recipes(pattern: str, show: bool) -> None:
    """List the recipes that come with zoo.

    \b
    zoo recipes
    zoo recipes demo --show
    """
    from fnmatch import fnmatch

    from zoo import recipe

    for name, path in recipe.shipped().items():
        if fnmatch(name, f"*{pattern}*"):
            text = path.read_text(encoding="utf-8")
            click.echo(text if show else f"{name:28} {text.splitlines()[0].lstrip('# ')}")


@cli.command("doctor")
def doctor_() -> None:
    """Say what is live on this machine, what is not, why, and the line that mends it.

    \b
    zoo doctor
    zoo --debug doctor
    """
    from zoo import doctor, show

    show.doctor(doctor.report())


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.")
def demo(out: Path | None) -> None:
    """Train a small CNN on built-in images, export it, benchmark it: about two minutes, no download.

    \b
    zoo demo
    zoo demo --out runs/first
    """
    from zoo import recipe as recipes

    _headline()
    folder = _train(recipes.resolve("demo", {}), out, False, False)
    show_result(folder)
    import zoo.export
    from zoo.bench import command
    from zoo.run import load

    click.echo(f"export    {zoo.export.onnx(load(folder)).line()}")
    command(str(folder), quick=True)
    click.echo(f"pictures  {folder}/curves.png  confusion.png  per_class.png  bench.png   report  {folder}/report.html")
    click.echo("next      zoo train resnet32 --data cifar10     zoo models     zoo doctor")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the line that turns on completion in your shell.

    \b
    eval "$(zoo completion bash)"
    zoo completion fish | source
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "zoo", "_ZOO_COMPLETE").source())
