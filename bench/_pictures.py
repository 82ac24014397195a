"""Draw the pictures of ``bench/results`` again from their CSV files: ``python -m zoo.bench._pictures``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from zoo.bench import _picture, _serve, _show, _timing, focal_loss, recipes

RESULTS = Path(__file__).resolve().parent / "results"


def redraw(folder: Path) -> None:
    """Draw every picture for which ``folder`` has a CSV file."""
    for path in sorted(folder.glob("*.csv")):
        if path.stem == "recipes":
            recipes.draw(_timing.read_csv(path), path)
        elif path.stem.startswith("inference"):
            _show.figures(_timing.read_csv(path), path)
        elif draw := {"focal_loss": focal_loss.figure, "serve": _serve.figure}.get(path.stem):
            _picture.publish_both(path.with_suffix(".png"), partial(draw, _timing.read_csv(path)))


if __name__ == "__main__":
    redraw(RESULTS)
