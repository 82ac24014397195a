"""Hook of mkdocs: generates the pages of models, recipes and settings from the registry and adds the pictures of ``bench/results``."""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from zoo import recipe as recipes
from zoo import registry

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the pictures of ``bench/results``, which is outside ``docs``."""
    for picture in sorted([*RESULTS.glob("*.png"), *RESULTS.glob("*.svg")]):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    files.append(File.generated(config, "models.md", content=models()))
    files.append(File.generated(config, "recipes.md", content=recipe_cards()))
    files.append(File.generated(config, "settings.md", content=settings()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to ``bench/results`` at the copies in the site."""
    return markdown.replace("](../bench/results/", "](results/")


def on_page_content(html: str, **_: Any) -> str:
    """Roles of docstrings (``:func:`name```) are shown as code."""
    return re.sub(r":(?:func|class|data|mod|meth|attr):<code>~?", "<code>", html)


def measured() -> dict[str, list[float]]:
    """Test accuracies in per cent by the name of the recipe, from ``bench/results/recipes.csv``."""
    found: dict[str, list[float]] = {}
    with (RESULTS / "recipes.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["recipe"], []).append(100 * float(row["accuracy"]))
    return found


def spread(shares: list[float]) -> str:
    """``69.6 ± 0.3 (n = 3)`` in per cent, or an empty text."""
    if not shares:
        return ""
    deviation = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.1f}{deviation} (n = {len(shares)})"


def models() -> str:
    """The page of model cards."""
    lines = ["# Models", "", "Generated from the registry. Any model of timm is available as `timm/NAME`.", ""]
    by_model: dict[str, list[str]] = {}
    for name in recipes.shipped():
        by_model.setdefault(recipes.resolve(name, {}).model, []).append(name)
    results = measured()
    for name, entry in registry.table("models").items():
        weights = ", ".join(f"`{text}`" for text in entry.get("weights", ())) or "none"
        lines += [
            f"## {name}", "", "| property | value |", "|---|---|",
            f"| paper | {entry['paper']} |",
            f"| input | {' x '.join(map(str, entry['input']))} |",
            f"| parameters | {entry['params']:,} |",
            f"| multiply-accumulates per image | {entry.get('macs', 0):,} |",
            f"| data sets | {', '.join(entry.get('data', ()))} |",
            f"| weights to download | {weights} |", "",
            f"```\nzoo train {name}{' --weights default' if entry.get('weights') else ''}\nzoo export --onnx\n```", "",
        ]  # fmt: skip
        if rows := [(each, spread(results.get(each, []))) for each in by_model.get(name, [])]:
            lines += [
                "| recipe | test accuracy % |",
                "|---|---|",
                *(f"| [{each}](recipes.md#{each}) | {text or 'not measured'} |" for each, text in rows),
                "",
            ]
    return "\n".join(lines)


def recipe_cards() -> str:
    """The page of recipes: header, command, settings and measured accuracy of each."""
    lines = ["# Recipes", "", "Generated from `zoo/recipes/*.toml` and `bench/results/recipes.csv`.", ""]
    results = measured()
    for name, path in recipes.shipped().items():
        text = Path(path).read_text(encoding="utf-8")
        header = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
        about = " ".join(line for line in header if not line.startswith("Command:"))
        recipe = recipes.resolve(name, {})
        reported = f"{100 * recipe.reported.accuracy:.1f} ({recipe.reported.source})" if recipe.reported.accuracy else "none"
        lines += [
            f"## {name}", "", about.replace("<", "&lt;"), "", "| property | value |", "|---|---|",
            f"| model | [{recipe.model}](models.md#{recipe.model}) |" if recipe.model in registry.table("models") else f"| model | {recipe.model} |",
            f"| data | {recipe.data.name}, imbalance {recipe.data.imbalance} |",
            f"| loss | {recipe.loss.name} |",
            f"| epochs, batch size | {recipe.epochs}, {recipe.batch_size} |",
            f"| measured test accuracy % | {spread(results.get(name, [])) or 'not measured'} |",
            f"| reported accuracy % | {reported} |", "",
            f"```\nzoo train {name}\n```", "",
        ]  # fmt: skip
    return "\n".join(lines)


def settings() -> str:
    """The page of all settings of a recipe, a table per section."""
    lines = [
        "# Settings of a recipe", "",
        "Generated from `zoo recipes --keys`. Set them on the command line (`zoo train RECIPE optim.lr=0.05`), in a recipe file, or from Python "
        "(`zoo.train(..., optim__lr=0.05)`). A setting without a section has no prefix.",
    ]  # fmt: skip
    section = None
    for key, option in recipes.options().items():
        if (found := key.rpartition(".")[0]) != section:
            section = found
            lines += ["", f"## {section or 'General'}", "", "| setting | default | range | description |", "|---|---|---|---|"]
        cells = (f"`{key}`", f"`{json.dumps(option.default)}`", option.range or option.type, option.help)
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;').replace('<', '&lt;') for cell in cells)} |")
    return "\n".join([*lines, ""])
