"""What the documents say is so: commands exist, links lead somewhere, tables come from their files, no machine is named."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

from zoo.cli import commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks.md"} <= {path.name for path in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_in_documents_exist(page: Path) -> None:
    named = set(re.findall(r"(?:^|`)zoo ([a-z]+)", page.read_text(), re.M))
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
    assert named - options <= {"--no-build-isolation"}


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
