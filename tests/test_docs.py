"""The documents are correct: commands and link targets exist, tables match their files, no machine is named."""

from __future__ import annotations

import ast
import csv
import importlib.util
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import pytest
from test_layers import LAYERS

from zoo.cli import commands

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("transcripts", ROOT / "tools/transcripts.py")
assert _spec
assert _spec.loader
transcripts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(transcripts)
TUTORIALS = ("tutorial_long_tail.md", "tutorial_fine_tune.md")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks.md"} <= {path.name for path in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_in_documents_exist(page: Path) -> None:
    named = set(re.findall(r"(?:^|`)(?:\$ )?zoo ([a-z]+)", page.read_text(), re.M))
    assert named <= set(commands())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_options_in_the_readme_exist() -> None:
    options = {
        option
        for command in commands().values()
        for parameter in command.get_params(click.Context(command))
        for option in parameter.opts
    } | {"--help"}
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", (ROOT / "README.md").read_text()))
    assert named - options <= {"--no-build-isolation", "--index-url"}  # of pip


def test_described_arguments_are_parameters() -> None:
    """``make docs`` rejects a docstring that describes two parameters in one entry, or one that does not exist."""
    wrong, described = [], 0
    for path in (path for folder in ("zoo", "export", "bench") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", ast.get_docstring(node) or "", re.M)
            names = re.findall(r"^    (\S[^:]*):", section[1], re.M) if section else []
            args = node.args
            known = [each.arg for each in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg) if each]
            described += len(names)
            wrong += [(path.name, node.name, name) for name in names if name not in known]
    assert described > 50 and wrong == []


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", "".join(page.read_text() for page in PAGES), re.M))
    assert {"demo", "test"} <= named <= targets


def test_no_file_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    word = re.compile(r"/(?:work|farm|root|home)/\w")
    wrong = []
    for name in listed.stdout.split("\n"):
        path = ROOT / name
        if name and path.is_file() and path.suffix in {".py", ".md", ".toml", ".cpp", ".h", ".cu", ".yml", ".csv", ".txt", ""}:
            wrong += [f"{name}: {line}" for line in path.read_text(errors="replace").splitlines() if word.search(line)]
    assert wrong == []


def test_the_map_lists_the_layers() -> None:
    lines = re.search(r"<!-- layers -->\n(.*?)\n<!-- /layers -->", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert lines
    assert [re.findall(r"`([\w.]+)`", line) for line in lines[1].splitlines()] == [names.split() for names in LAYERS]


OFFENDERS = re.compile(
    r"\b(?:images|recipe|point|dot|run|row|bar|line) an? (?:class|method|second|seed|contender|batch|request)\b|\btold\b"
    r"|\bmend|\blies (?:in|beside)\b|\btheirs and ours\b|\bgoes on\b|\bsame line again\b|\bcarved\b|\btouched once\b"
    r"|\bproven\b|\bproves? that\b|\bstranger|\bcomes? out of\b|\ball the same\b|\bby itself\b|\bby themselves\b|\bhonestly\b"
    r"|\bis (?:not )?here\b|\bsays? so\b|\bis said\b|\ba person\b|\bin silence\b|\blest\b|\bleave (?:it|them|--\S+) out\b"
    r"|\basks? for\b|\bask for it\b|\banswers? (?:as|otherwise)\b|\bwhat is left\b|\broads?\b|\btorn\b"
    r"|\bone behind the other\b|\bat hand\b|\bnobody\b|\bof (?:its|their|our) own\b|\bon (?:its|their) way\b|\bfor want of\b"
    r"|\brefus(?:e|es|ed|als?)\b|\bbeside (?:the|it|them)\b|\blesser\b|\bwithout a word\b",
    re.I,
)
"""The words of CONTRIBUTING's list that never have another meaning here."""
EXAMPLES = (
    "5,000 images a class", "the loader is told", "mends the file", "the file lies in", "theirs and ours", "it goes on", "the same line again",
    "carved from", "touched once", "proven to answer", "a stranger's file", "comes out of", "all the same", "by itself", "is not here",
    "and says so", "it is said", "a person", "in silence", "lest", "leave it out", "asks for", "answers as PyTorch does", "what is left",
    "a road", "torn", "one behind the other", "at hand", "nobody's", "a type of its own", "on their way", "for want of space", "it refuses",
    "beside it", "lesser sets", "without a word",
)  # fmt: skip


def prose() -> dict[str, str]:
    """Text of README, docs and recipe headers, without the output of commands and tables of results."""
    found = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
    for name, text in found.items():
        found[name] = re.sub(r"<!-- (table|transcript|excerpt):(\S+).*?<!-- /\1:|^```.*?^```", "", text, flags=re.S | re.M)
    for path in ROOT.glob("zoo/recipes/*.toml"):
        found[path.name] = "\n".join(re.findall(r"^#.*", path.read_text(encoding="utf-8"), re.M))
    return found


def code_prose() -> dict[str, str]:
    """Docstrings, comments and messages of Python files, docstrings and comments of tests, and comments of C++ files."""
    found = {}
    for path in [
        *ROOT.glob("zoo/**/*.py"),
        *ROOT.glob("export/*.py"),
        *ROOT.glob("bench/*.py"),
        *ROOT.glob("tools/*.py"),
        ROOT / "setup.py",
    ]:
        text = path.read_text(encoding="utf-8")
        parts = [
            node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        parts += [token.string for token in tokens if token.type == tokenize.COMMENT]
        found[str(path.relative_to(ROOT))] = "\n".join(" ".join(part.split()) for part in parts)
    for path in ROOT.glob("tests/**/*.py"):
        if path != Path(__file__):
            found[str(path.relative_to(ROOT))] = _of_test(path.read_text(encoding="utf-8"))
    for path in [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/*.c*"), *ROOT.glob("tests/cpp/*.cpp")]:
        found[path.name] = "\n".join(re.findall(r"//.*", path.read_text(encoding="utf-8")))
    return found


def _of_test(text: str) -> str:
    """Docstrings and comments: other strings of a test are often data."""
    nodes = [each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Module | ast.ClassDef | ast.FunctionDef)]
    comments = [each.string for each in tokenize.generate_tokens(io.StringIO(text).readline) if each.type == tokenize.COMMENT]
    return "\n".join(" ".join(part.split()) for part in [*(ast.get_docstring(each) or "" for each in nodes), *comments])


@pytest.mark.parametrize("texts", [prose, code_prose])
def test_words_that_are_not_used(texts: Callable[[], dict[str, str]]) -> None:
    found = texts()
    assert len(found) > 40 and (texts is prose or "tests/conftest.py" in found)
    wrong = [f"{name}: {word[0]}" for name, text in found.items() for word in OFFENDERS.finditer(text)]
    assert wrong == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_word_is_found(example: str) -> None:
    assert OFFENDERS.search(example)


def test_readme_is_short_and_its_excerpts_are_real() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    excerpts = re.findall(r"<!-- excerpt:(\S+) -->\n```\n(.*?)```", text, re.S)
    assert excerpts
    for source, lines in excerpts:
        whole = (ROOT / source).read_text(encoding="utf-8").splitlines()
        assert [line for line in lines.splitlines() if line not in whole] == []


def result(file: str, column: str, **where: str) -> float:
    with (ROOT / "bench/results" / file).open(encoding="utf-8", newline="") as rows:
        return next(float(row[column]) for row in csv.DictReader(rows) if where.items() <= row.items())


def transfer(layers: str, more: str = "") -> float:
    """Mean accuracy over seeds, in per cent, of EfficientNet-Lite0 trained on all images, with ``frozen`` layers or ``finetuned``."""
    name = f"caltech101_lite0_{layers} weights=tf_efficientnet_lite0.safetensors data.val=0.0{more}"
    return 100 * mean_of(name, "accuracy", seeds=3)


def mean_of(recipe: str, column: str, *, seeds: int) -> float:
    """Mean of a recipe over its seeds, whose number is checked."""
    with (ROOT / "bench/results/recipes.csv").open(encoding="utf-8", newline="") as rows:
        found = [float(row[column]) for row in csv.DictReader(rows) if row["recipe"] == recipe]
    assert len(found) == seeds
    return sum(found) / seeds


def test_numbers_in_the_readme_are_those_of_the_results() -> None:
    bullets = " ".join((ROOT / "README.md").read_text(encoding="utf-8").partition("## What makes it different")[2].split())
    focal = {"n": "65536", "c": "10", "dtype": "fp32", "threads": "2", "pass": "forward+backward", "contender": "zoo"}
    textbook = result("focal_loss.csv", "ratio", **focal)
    compiled = result("focal_loss.csv", "ratio", **focal | {"contender": "torch.compile"})
    long_tail = "cifar10lt_resnet32_strong loss.name=logit_adjustment loss.tau=1.5"
    speed = partial(mean_of, "cifar10_speed", seeds=10)
    numbers = [
        f"{result('inference.csv', 'ratio', batch='64', contender='openvino int8'):.1f} times as fast",
        f"about {round(textbook, -1):.0f} times as fast as the textbook formula and {textbook / compiled:.0f} times as fast as torch.compile",
        f"{result('training.csv', 'ratio', contender='zoo bf16'):.2f} times the usual",
        f"{result('training.csv', 'ratio', contender='zoo bf16 compiled'):.2f} times with",
        f"In {speed('minutes'):.0f} minutes on one core of an AMD EPYC, `zoo train cifar10_speed` reaches {100 * speed('views_accuracy'):.1f} % on "
        f"CIFAR-10 (ten seeds, six views per test image; {100 * speed('accuracy'):.1f} % with one view)",
        f"`{long_tail.replace('.name', '')}`, reaches {100 * mean_of(long_tail, 'accuracy', seeds=1):.2f} % (one seed)",
        f"{transfer('frozen'):.1f} % on Caltech-101 with frozen layers, {transfer('finetuned'):.1f} % fine-tuned, "
        f"and {transfer('frozen', ' data.per_class=10'):.1f} % with 10 images",
    ]
    assert [text for text in numbers if text not in bullets] == []


def test_navigation_has_every_page() -> None:
    named = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    assert named == {path.name for path in ROOT.glob("docs/*.md")} | {"models.md", "recipes.md", "settings.md"}


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_python_in_documents_compiles(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_show_output(name: str) -> None:
    blocks = [
        text
        for kind, text in transcripts.BLOCK.findall((ROOT / "docs" / name).read_text(encoding="utf-8"))
        if kind == "console"
    ]
    assert len(blocks) >= 5
    assert [text for text in blocks if len(text.splitlines()) < 2] == []


def test_a_transcript_is_shortened() -> None:
    epochs = [f"train    epoch {number}/9 · loss 1 · train 50.0 %" for number in range(1, 10)]
    progress = "train    epoch 1/9 · loss 1 · left 0:30"
    shown = transcripts.shortened("\n".join(["data  ", progress, *epochs, "test"]))
    assert shown.splitlines() == ["data", epochs[0], "...", epochs[-1], "test"]
    lines = transcripts.shortened("\n".join(map(str, range(100)))).splitlines()
    assert lines == [*map(str, range(10)), "...", "97", "98", "99"]


def test_a_transcript_has_results_and_progress_in_order(tmp_path: Path) -> None:
    script = "import sys; print(1); print(2, file=sys.stderr); print(3)"
    assert transcripts.run(f'python -c "{script}"', tmp_path) == "1\n2\n3\n"
    with pytest.raises(RuntimeError, match="exit 3\n1\n"):
        transcripts.run("echo 1; exit 3", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial_commands_run(name: str, tmp_path: Path) -> None:
    found = transcripts.commands(ROOT / "docs" / name)
    assert len(found) >= 5
    for command in found:
        transcripts.run(command, tmp_path)


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    for name in ("material", "mkdocstrings"):
        pytest.importorskip(name)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = [*site.rglob("*.html")]
    assert len(pages) > 15
    assert [page for page in pages if re.search(r":(?:func|class|data):<", page.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
