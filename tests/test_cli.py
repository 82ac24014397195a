"""The command line: help, results on stdout, errors in one line with their exit code."""

from __future__ import annotations

import errno
import inspect
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import zoo_command

from zoo import run as engine
from zoo import tables
from zoo.__main__ import _outcome, run
from zoo.cli import cli, commands
from zoo.cli._shared import moved
from zoo.errors import ZooError

COMMANDS = sorted(commands())
ROOT = Path(__file__).resolve().parent.parent
FAST = ("cnn_small", "epochs=1", "data=synthetic", "data.per_class=45", "device=cpu", "batch_size=50")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_two_examples(command: str) -> None:
    text = inspect.cleandoc(commands()[command].help or "")
    assert len(re.findall(r"^(?:zoo|eval \"\$\(zoo) ?", text, re.M)) >= 2, text
    readme = (ROOT / "README.md").read_text()
    assert f"zoo {command}" in readme, f"zoo {command} is not in the README"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_runs(command: str, tmp_path: Path) -> None:
    ran = zoo_command(command, "--help", cwd=tmp_path)
    assert ran.returncode == 0
    assert ran.stdout.startswith(f"Usage: zoo {command}")
    assert ran.stderr == ""


def _groups() -> dict[str, click.Command]:
    return {"": cli} | {name: command for name, command in commands().items() if isinstance(command, click.Group)}


@pytest.mark.parametrize("name", _groups())
def test_short_helps_fit_80_columns(name: str) -> None:
    group = _groups()[name]
    text = group.get_help(click.Context(group, info_name="zoo", terminal_width=80))
    assert [line for line in text.splitlines() if len(line) > 80 or "..." in line.replace("[ARGS]...", "")] == []


def _commands() -> dict[str, click.Command]:
    found = {}
    for name, command in commands().items():
        context = click.Context(command)
        inner = (
            {each: command.get_command(context, each) for each in command.list_commands(context)}
            if isinstance(command, click.Group)
            else {"": command}
        )
        found |= {f"{name} {each}".strip(): each_command for each, each_command in inner.items() if each_command}
    return found


@pytest.mark.parametrize("name", _commands())
def test_every_option_has_a_help(name: str) -> None:
    command = _commands()[name]
    options = [each for each in command.get_params(click.Context(command)) if isinstance(each, click.Option)]
    assert [each.opts[0] for each in options if not each.help or not each.help.endswith(".")] == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bad inputs."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "typo.toml").write_text("epochs = 1\n[optim]\nlearning_rate = 0.1\n")
    (folder / "twice.toml").write_text("seed = 1\nseed = 2\n")
    (folder / "text.toml").write_text("[optim]\nlr = 'abc'\n")
    (folder / "recipe.yaml").write_text("lr: 1e-3\n")
    (folder / "used").mkdir()
    (folder / "used" / "recipe.toml").write_text('model = "cnn_small"\n')
    (folder / "full").mkdir()
    (folder / "full" / "something.txt").write_text("mine")
    (folder / "empty").mkdir()
    (folder / "afile").write_text("x")
    (folder / "page.png").write_text("<html></html>")
    (folder / "zero.png").write_bytes(b"")
    (folder / "x.onnx").write_bytes(b"")
    return folder


FAULTS = [
    ("unknown model", "train resnet23", 2, ["no model 'resnet23'", "did you mean", "zoo models"]),
    ("unknown command", "trian", 2, ["no command 'trian' (did you mean train?)", "zoo --help"]),
    ("unknown option", "train demo --epoch 3", 2, ["--epoch", "--epochs"]),
    ("unknown key", "train typo.toml", 2, ["optim.learning_rate", "line 3"]),
    ("unknown key on the line", "train demo optim.lrr=1", 2, ["optim.lrr", "optim.lr"]),
    ("duplicate key", "train twice.toml", 2, ["twice.toml", "lines 1 and 2"]),
    ("text for a number", "train text.toml", 2, ["optim.lr = 'abc'", "line 2", "expected float"]),
    ("a key in the wrong table", "train recipe.yaml", 2, ["no setting 'lr'", "recipe.yaml, line 1", "did you mean optim.lr"]),
    ("missing file", "train nowhere.toml", 2, ["nowhere.toml", "zoo recipes"]),
    ("batch 0", "train demo --batch-size 0", 2, ["batch_size = 0", ">= 1"]),
    ("negative epochs", "train demo --epochs -1", 2, ["epochs = -1", ">= 1"]),
    ("nan lr", "train demo lr=nan", 2, ["optim.lr = nan", "finite"]),
    ("negative gamma", "train demo --focal-gamma -1", 2, ["loss.focal_gamma = -1.0", ">= 0"]),
    ("beta 1", "train demo --beta 1", 2, ["loss.beta = 1.0", "< 1"]),
    ("unknown loss", "train demo --loss focl", 2, ["no loss 'focl'", "focal"]),
    ("unknown data", "train demo --data cifar11", 2, ["no data set, folder or file 'cifar11'", "cifar10"]),
    ("bad imbalance", "train demo --imbalance exq:0.1", 2, ["exq:0.1", "exp"]),
    ("bad augmentation", "train demo data.augment=['crap']", 2, ["crap", "crop"]),
    ("missing data folder", "train demo --data cifar10 --data-dir gone", 3, ["gone"]),
    ("empty data folder", "train demo --data folder --data-dir empty", 3, ["empty"]),
    ("data folder is a file", "train demo --data folder --data-dir afile", 3, ["afile"]),
    ("no GPU", "train demo --device cuda:7", 2, ["cuda:7", "CUDA devices found"]),
    ("unknown device", "train demo --device gpu", 2, ["'gpu'", "cpu"]),
    ("fp16 on the CPU", "train demo --device cpu --precision fp16", 2, ["fp16", "bf16"]),
    ("folder in use", "train demo --out used", 7, ["--resume", "--force"]),
    ("folder that is no run", "train demo --out full --force", 7, ["not a run", "something.txt", "another --out"]),
    ("misspelt run", "train --resume cifar", 2, ["no run 'cifar'"]),
    ("model to resume", "train cnn_small --resume", 2, ["not a run (cnn_small, a model)"]),
    ("flag and setting", "train demo --epochs 3 epochs=4", 2, ["epochs is 3 as an option and 4 as a setting; give it once"]),
    ("model after a model", "train cnn_small model=nope", 2, ["no model 'nope'"]),
    ("output is a file", "train demo --out afile", 6, ["afile", "--out"]),
    ("nothing to resume", "train demo --resume --out gone", 4, ["no run to resume"]),
    ("no run yet", "export --onnx", 4, ["no run yet", "zoo train"]),
    ("no such run", "eval nothing", 2, ["no run 'nothing'"]),
    ("a model is no run", "export resnet32", 2, ["not a run (resnet32, a model)", "zoo train resnet32"]),
    ("a model in a file is no run", "export net.py:Net", 2, ["not a run (net.py:Net, a model)", "zoo train net.py:Net"]),
    ("a file is no run", "export afile", 2, ["not a run (afile, a file)", "--weights afile", "zoo.export.onnx"]),
    ("an exported file is no run", "export x.onnx", 2, ["not a run (x.onnx, an ONNX file)", "zoo predict --onnx"]),
    ("serve needs no fallback", "bench --serve --allow-cpu-fallback", 2, ["--serve", "omit --devices and --allow-cpu-fallback"]),
    ("misspelt model", "bench resnet33", 2, ["no run or model 'resnet33'", "resnet32", "zoo models"]),
    ("not a run folder", "report empty", 4, ["not a run folder"]),
    ("mixup with sigmoid focal", "train demo mixup=0.2 loss.name=sigmoid_focal", 2, ["mixup", "cross_entropy"]),
    ("bare gamma", "train demo gamma=2", 2, ["'gamma'", "--focal-gamma", "--lr-gamma"]),
    ("bare gamma option", "train demo --gamma 2", 2, ["--focal-gamma", "--lr-gamma"]),
    ("weights of wrong length", "train demo class_weights=given loss.given_weights=[1,2]", 2, ["2 numbers", "10 classes"]),
    ("class without samples", "train demo imbalance=exp:0.0001", 3, ["no training image"]),
    ("drw past the end", "train demo epochs=5 --drw-epoch 5", 2, ["drw_epoch = 5", "5 epochs"]),
    ("drw past the end, dry", "train demo epochs=5 --drw-epoch 5 --dry-run", 2, ["drw_epoch = 5", "5 epochs"]),
    ("unknown sampler", "train demo --sampler focl", 2, ["--sampler", "'focl'", "focal", "class_balanced"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "says"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_faults(
    place: Path, words: str, code: int, says: list[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In this process: a new one takes seconds to import torch."""
    before = sorted(path.name for path in place.iterdir())
    monkeypatch.chdir(place)
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    returned = run(words.split())
    out, err = capfd.readouterr()
    line = err.strip().splitlines()[-1]
    assert (returned, "Traceback" in err) == (code, False), err
    assert line.startswith("zoo"), err
    assert all(part in line for part in says), line
    assert len(line) <= 200 + len(str(place)) + len(str(tmp_path)), len(line)
    assert out == ""
    assert sorted(path.name for path in place.iterdir()) == before
    assert not list((tmp_path / "runs").glob("*/weights.safetensors"))


def test_bad_images_are_named_and_the_rest_go_on(small_run: Path, place: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 50), (200, 10, 10)).save(place.parent / "good.png")
    files = [str(place / "page.png"), str(place.parent / "good.png"), str(place / "zero.png"), str(place / "gone.png")]
    ran = zoo_command("predict", *files, "--run", str(small_run), "--json", cwd=place)
    assert ran.returncode == 3
    answers = json.loads(ran.stdout)
    assert ["error" in answer for answer in answers] == [True, False, True, True]
    assert len(answers[1]["top"]) == 3
    assert all(name in ran.stderr for name in ("page.png", "zero.png", "gone.png"))


def test_json_on_stdout_and_progress_on_stderr(small_run: Path, tmp_path: Path) -> None:
    ran = zoo_command("eval", str(small_run), "--json", cwd=tmp_path)
    answer = json.loads(ran.stdout)
    assert answer["n"] == 1000
    assert len(answer["classes"]) == 10
    assert str(small_run) in ran.stderr


def test_a_pipe_closed_early_is_no_error(tmp_path: Path) -> None:
    shell = f"{shlex.quote(sys.executable)} -m zoo models --json | head -c 5"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode in (0, 141)
    assert "Traceback" not in ran.stderr


def test_a_table_to_a_closed_pipe_raises_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        tables.out().print("a line")


@pytest.mark.parametrize("command", ["eval", "export", "verify"])
def test_the_data_of_a_run_may_have_moved(command: str, small_run: Path, tmp_path: Path) -> None:
    assert "--data-dir" in [option for each in commands()[command].params for option in each.opts]
    loaded = engine.load(small_run)
    assert moved(loaded, None) is loaded
    there = moved(loaded, tmp_path)
    assert (there.recipe.data.dir, there.recipe.data.name) == (str(tmp_path), "synthetic")


def test_eval_reads_the_folder_that_is_given(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(engine.Run, "dataset", lambda self: read.append(self.recipe.data.dir) or 1 / 0)
    run(["eval", str(small_run), "--data-dir", str(tmp_path)])
    run(["export", str(small_run), "--onnx", "--out", str(tmp_path / "m.onnx"), "--data-dir", str(tmp_path)])
    assert read == [str(tmp_path)] * 2


def test_a_file_over_the_limit_of_the_shell_is_a_disk_error() -> None:
    message, code = _outcome([], OSError(errno.EFBIG, "File too large"))
    assert (code, "File too large" in message) == (6, True)


def test_the_latest_run_is_taken_and_named(small_run: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "mine").symlink_to(small_run)
    ran = zoo_command("report", cwd=tmp_path, ZOO_RUNS=str(runs))
    assert ran.returncode == 0, ran.stderr
    assert "mine" in ran.stderr
    assert "report.html" in ran.stdout


@pytest.mark.parametrize("words", [("--resume", "runs/half"), ("half", "--resume")])
def test_a_run_is_resumed_by_its_name(tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import training
    from zoo.cli import train as command

    folder = tmp_path / "runs" / "half"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text('model = "s1_cnn"\nepochs = 3\n[data]\nname = "synthetic"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_RUNS", "runs")
    asked: list[tuple[int, Path, bool]] = []

    def train(recipe: Any, *, out: Path, resume: bool, **_: object) -> Path:
        asked.append((recipe.epochs, out, resume))
        raise ZooError("stopped here")

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(ZooError, match="stopped here"):
        command.command.main(list(words), standalone_mode=False)
    assert asked == [(3, Path("runs/half"), True)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)])
def test_a_signal_saves_and_tells_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    command = [sys.executable, "-m", "zoo", "train", *FAST, "epochs=50", "--out", "run"]
    import os

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert "resume with: zoo train --resume --out run" in err
    assert list((tmp_path / "run" / "last").glob("state-*.safetensors"))


def test_dry_run_warns_on_stderr_and_prints_the_recipe_alone_on_stdout(tmp_path: Path) -> None:
    ran = zoo_command("train", "demo", "--beta", "0.5", "--dry-run", cwd=tmp_path)
    assert ran.returncode == 0
    assert "data     synthetic · 2,448 train (600, 464" in ran.stderr
    assert "warning  beta 0.5 changes no class weight by more than" in ran.stderr
    (tmp_path / "again.toml").write_text(ran.stdout)
    assert zoo_command("train", "again.toml", "--dry-run", cwd=tmp_path).stdout == ran.stdout


def test_rates_of_head_and_stages_have_flags(tmp_path: Path) -> None:
    ran = zoo_command("train", "resnet20", "--lr-head", "7.5", "--layer-decay", "0.65", "--dry-run", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "lr_head = 7.5" in ran.stdout
    assert "layer_decay = 0.65" in ran.stdout
