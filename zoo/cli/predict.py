"""Classify images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from zoo.cli._shared import RUN, UserPath, as_json, described, input_size, limited


@click.command("predict")
@click.argument("images", nargs=-1, required=True)
@click.option("--run", type=RUN, help="Run to use, or hf:OWNER/NAME (default: the latest run).")
@click.option("--onnx", type=UserPath(), help="ONNX file to use instead of a run; torch is not needed.")
@described
@click.option("--resize", default=0, type=click.IntRange(0), metavar="N",
              help="Pixels of the shorter side before the centre crop (default: 8/7 of the input's), for a model file without metadata.")  # fmt: skip
@input_size
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="Number of classes to print per image.")
@limited("opening a model file, and per image")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, one line per file and class.")
@as_json
def command(
    images: tuple[str, ...], run: str | None, onnx: Path | None, classes: Path | None, top: int, max_memory: int, timeout: float,
    as_csv: bool, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Classify images.

    IMAGES are files, folders, patterns such as "photos/*.jpg", or - for standard input. If a file cannot be read, an error line is
    printed for it, the other files are classified, and the exit code is 3.

    \b
    zoo predict cat.jpg photos/
    zoo predict --onnx model.onnx *.png --json
    zoo predict --onnx other.onnx cat.jpg --classes imagenet.txt --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
    """
    from zoo import tables
    from zoo.data import _inputs

    if as_csv and as_json:
        raise click.UsageError("--csv and --json are mutually exclusive; give one of them")
    if run is not None and onnx is not None:
        raise click.UsageError("--run and --onnx are mutually exclusive; give one of them")
    given = {key: value for key, value in (given | {"labels": classes}).items() if value}
    if given and onnx is None:
        name = "classes" if next(iter(given)) == "labels" else next(iter(given))
        raise click.UsageError(f"--{name} describes an ONNX file without metadata; give --onnx too, or omit it")
    with _inputs.gathered(images) as named:
        answers = _answers([path for _, path in named], run, onnx, top=top, max_memory=max_memory, timeout=timeout, **given)
        named_answers = (answer | {"file": name} for answer, (name, _) in zip(answers, named))
        tables.predictions(named_answers, as_json=as_json, as_csv=as_csv)


def _answers(images: list[Path], run: str | None, onnx: Path | None, *, top: int, **options: Any) -> Iterator[dict[str, Any]]:
    """Of the run, or of the file, opened with the ``options``, one by one."""
    if onnx is not None:
        from zoo import predictor

        yield from predictor.stream(onnx, images, top=top, **options)
        return
    from zoo import console, run_folders

    folder = run_folders.find(run)
    console.print_line(f"run      {folder}")
    from zoo import run as engine  # torch is imported here

    loaded = engine.load(folder)
    yield from (loaded.predict([image], top=top)[0] for image in console.counted(images, len(images), "predict  classified"))
