"""Installed packages add models and losses by entry point; a broken one causes one warning and never ends a command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, zoo_command

EXAMPLE = ROOT / "tests" / "example_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed by pip into a separate folder."""
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "example"
    shutil.copytree(EXAMPLE, source)  # the build writes next to its sources
    words = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    ran = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, timeout=300)
    if ran.returncode and "No module named" in ran.stderr:
        pytest.skip(f"pip or setuptools is not here: {ran.stderr.strip().splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr
    return target


def broken(place: Path, name: str, group: str, module: str, text: str | None) -> None:
    """The files of an installed package with one entry point."""
    info = place / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nmine = {module}\n")
    if text is not None:
        (place / f"{module}.py").write_text(text)


def path(*folders: Path) -> str:
    return ":".join(map(str, (*folders, ROOT)))


def test_listings_have_the_entries_and_import_neither_the_package_nor_torch(installed: Path, tmp_path: Path) -> None:
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "atexit.register(lambda: print('loaded', [n for n in ('torch', 'zoo_example') if n in sys.modules], file=sys.stderr))\n"
    )
    for command, name in (("models", "tiny"), ("losses", "tempered")):
        ran = zoo_command(command, name, cwd=tmp_path, PYTHONPATH=path(guard, installed))
        assert ran.returncode == 0, ran.stderr
        assert f"plug-in zoo-example 0.1.0, {name}" in " ".join(ran.stdout.split())
        assert "loaded []" in ran.stderr
    assert "temperature" in ran.stdout
    ran = zoo_command("recipes", "--keys", "temperature", cwd=tmp_path, PYTHONPATH=path(installed))
    assert "loss.temperature" in ran.stdout and "> 0 and <= 100" in ran.stdout and "losses: tempered" in ran.stdout


def test_a_run_with_a_plug_in_s_model_and_loss(installed: Path, tmp_path: Path) -> None:
    settings = ("epochs=1", "batch_size=50", "data.per_class=20", "device=cpu")
    words = ("train", "tiny", "loss=tempered", "--temperature", "2", *settings, "--out", "run")
    ran = zoo_command(*words, cwd=tmp_path, PYTHONPATH=path(installed))
    assert ran.returncode == 0, ran.stderr
    assert "temperature = 2.0" in (tmp_path / "run" / "recipe.toml").read_text()
    ran = zoo_command("eval", "run", "--json", cwd=tmp_path, PYTHONPATH=path(installed))
    assert ran.returncode == 0, ran.stderr
    ran = zoo_command("eval", "run", cwd=tmp_path)
    assert ran.returncode == 2
    assert "no model 'tiny'" in ran.stderr


FAULTS = [
    ("syntax", "zoo.models", "SPECS = {", "never closed"),
    ("no table", "zoo.models", "x = 1\n", "has no SPECS"),
    ("missing", "zoo.losses", None, "module broken_file not found"),
    ("name taken", "zoo.models", "SPECS = {'resnet20': ModelSpec(input=(3, 32, 32), params=1, macs=1, paper='', head='fc', data=())}", "'resnet20' is already defined in resnet_cifar"),
    ("not literal", "zoo.models", "SPECS = {'mine': ModelSpec(input=size(), params=1, macs=1, paper='', head='fc', data=())}", "'mine' must give input as literals"),
    ("not counted", "zoo.models", "SPECS = {'mine': ModelSpec(input=(3, 32, 32), params=1, paper='', head='fc')}", "'mine' must give macs, data as literals"),
    ("type", "zoo.models", "SPECS = {'mine': ModelSpec(input=(3, 32, 32), params='many', macs=1, paper='', head='fc', data=())}", "'mine' has params = 'many': expected int, got str"),
    ("a size", "zoo.data", "SPECS = {'mine': DataSpec(classes=2, shape=(3, 32), mean=(), std=(), counts=(1, 1), source='')}", "'mine' has shape = '(3, 32)': expected array of length 3"),
    ("no name", "zoo.models", "SPECS = {'timm/mine': ModelSpec(input=(3, 32, 32), params=1, macs=1, paper='', head='fc', data=())}", "'timm/mine' is not a name"),
    ("options", "zoo.losses", "SPECS = {'mine': LossSpec(paper='', options=made())}", "must give its options as literals"),
    ("bytes", "zoo.data", "\x00", "null bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("group", "text", "says"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_broken_plug_in_is_one_warning_with_its_name(tmp_path: Path, group: str, text: str | None, says: str) -> None:
    broken(tmp_path / "site", "brokenpkg", group, "broken_file", text)
    kind = group.partition(".")[2]
    ran = zoo_command(kind, cwd=tmp_path, PYTHONPATH=path(tmp_path / "site"))
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"warning  plug-in skipped ({group}, brokenpkg 1.0, mine): ") and says in line
    assert "\n" + {"models": "resnet20", "losses": "focal", "data": "cifar10"}[kind] in ran.stdout


@pytest.mark.parametrize(
    ("fault", "says"), [("raise OSError('no licence')", "OSError: no licence"), ("raise SystemExit(3)", "SystemExit: 3")]
)
def test_a_plug_in_that_fails_when_imported_is_a_line(tmp_path: Path, fault: str, says: str) -> None:
    text = "SPECS = {'mine': ModelSpec(input=(3, 32, 32), params=1, macs=1, paper='', head='fc', data=())}\n" + fault
    broken(tmp_path / "site", "brokenpkg", "zoo.models", "broken_file", text.replace("SPECS", "ModelSpec = dict\nSPECS", 1))
    ran = zoo_command("train", "mine", "data=synthetic", cwd=tmp_path, PYTHONPATH=path(tmp_path / "site"))
    assert ran.returncode == 2
    assert f"plug-in cannot be imported (brokenpkg 1.0, mine, module broken_file, {says})" in ran.stderr
