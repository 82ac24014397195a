"""Name what is in images."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli._shared import RUN, as_json, limited


@click.command("predict")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", type=RUN, help="Run to use (default: the latest).")
@click.option("--onnx", type=click.Path(path_type=Path), help="Use this exported file; torch is not needed.")
@click.option("--top", default=3, show_default=True, type=click.IntRange(1))
@limited("to open and for each image")
@as_json
def command(
    images: tuple[Path, ...], run: str | None, onnx: Path | None, top: int, max_memory: int, timeout: float, as_json: bool
) -> None:
    """Name what is in IMAGES, with probabilities. A bad file is named, the rest go on, and the exit code is 3.

    \b
    zoo predict cat.jpg dog.png
    zoo predict --onnx model.onnx *.png --json
    """
    from zoo import console, tables

    if onnx is not None:
        from zoo import predictor

        answers = predictor.predict(onnx, images, top=top, max_memory=max_memory, timeout=timeout)
    else:
        from zoo import run as engine
        from zoo import run_folders

        folder = run_folders.find(run)
        console.print_line(f"run      {folder}")
        answers = engine.predict_files(engine.load(folder), images, top=top)
    tables.predictions(answers, as_json=as_json)
