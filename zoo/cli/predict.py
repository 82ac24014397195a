"""Classify images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo.cli._shared import RUN, UserPath, as_json, limited


@click.command("predict")
@click.argument("images", nargs=-1, required=True)
@click.option("--run", type=RUN, help="Run to use, or hf:OWNER/NAME (default: the latest run).")
@click.option("--onnx", type=UserPath(), help="Exported file to use instead of a run; torch is not needed.")
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="Number of classes to print per image.")
@limited("opening a model file, and per image")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, one line per file and class.")
@as_json
def command(
    images: tuple[str, ...], run: str | None, onnx: Path | None, top: int, max_memory: int, timeout: float,
    as_csv: bool, as_json: bool,
) -> None:  # fmt: skip
    """Classify images.

    IMAGES are files, folders, patterns such as "photos/*.jpg", or - for standard input. If a file cannot be read, an error line is
    printed for it, the other files are classified, and the exit code is 3.

    \b
    zoo predict cat.jpg photos/
    zoo predict --onnx model.onnx *.png --json
    """
    from zoo import tables
    from zoo.data import _inputs

    if as_csv and as_json:
        raise click.UsageError("--csv and --json are mutually exclusive; give one of them")
    if run is not None and onnx is not None:
        raise click.UsageError("--run and --onnx are mutually exclusive; give one of them")
    with _inputs.gathered(images) as named:
        answers = _answers([path for _, path in named], run, onnx, top, max_memory, timeout)
    answers = [answer | {"file": name} for answer, (name, _) in zip(answers, named)]
    tables.predictions(answers, as_json=as_json, as_csv=as_csv)


def _answers(
    images: list[Path], run: str | None, onnx: Path | None, top: int, max_memory: int, timeout: float
) -> list[dict[str, Any]]:
    if onnx is not None:
        from zoo import predictor

        return predictor.predict(onnx, images, top=top, max_memory=max_memory, timeout=timeout)
    from zoo import console, run_folders
    from zoo import run as engine

    folder = run_folders.find(run)
    console.print_line(f"run      {folder}")
    return engine.load(folder).predict(images, top=top)
