"""Faults by number (8 to 23 are in test_faults_training.py): the exit code, the message, and that nothing is lost.

The numbers are those of the catalogue of faults. Recipes are TOML, so the rows on YAML have their TOML counterparts (a duplicate
key, nesting, size, a file of another type). Rows on data workers do not apply: images are decoded once, by threads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import digests, small

from zoo import machine, recipe, registry, report, run_folders, tensor_files, training
from zoo.__main__ import run as zoo
from zoo.errors import DataError, DiskError, FileError
from zoo.training import build, session

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bad inputs."""
    folder = tmp_path_factory.mktemp("faults")
    texts = {
        "typo.toml": "epochs = 1\n[optim]\nlearning_rate = 0.1\n",
        "twice.toml": "seed = 1\nseed = 2\n",
        "text.toml": "[optim]\nlr = 'abc'\n",
        "deep.toml": "model = " + "[" * 5000,
        "dotted.toml": ".".join(["a"] * 3000) + " = 1\n",
        "large.toml": "# " + "x" * (2 << 20),
        "afile": "x",
        "page.png": "<html></html>",
        "page.pth": "<html></html>",
        "zero.png": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name in ("empty", "full", "used", "x.png", "one/train/cat"):
        (folder / name).mkdir(parents=True)
    (folder / "full" / "something.txt").write_text("mine")
    (folder / "used" / "recipe.toml").write_text('model = "cnn_small"\n')
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.toml")
    torch.save(registry.find("models", "resnet32").build(10).state_dict(), folder / "resnet32.pth")
    for name in ("two", "holed", "torn"):
        for split in ("train", "test"):
            for number, kind in enumerate(("a", "b")):
                (folder / name / split / kind).mkdir(parents=True)
                noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
                for image in ("0.png", "1.png"):
                    Image.fromarray(noise).save(folder / name / split / kind / image)
    (folder / "holed" / "train" / "c").mkdir()
    torn = folder / "torn" / "train" / "a" / "1.png"
    torn.write_bytes(torn.read_bytes()[:500])
    with tarfile.open(folder / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../escaped.txt")
        tar.addfile(member)
    return folder


ROWS = [
    (1, "train resnet23", 2, "no model 'resnet23'|did you mean resnet32, resnet20, resnet9|zoo models"),
    (1, "train timm/resnet52", 2, "no model 'resnet52'|did you mean resnet152, resnet152s, resnet152d"),
    (1, "train resnet20 --freeze convs", 2, "'convs'|did you mean conv|roles of this model: conv, fc:all, backbone, bn, stage<=0 to 3, none"),
    (1, "train resnet20 --freeze fc", 2, "freeze=fc freezes nothing in this model|roles of this model: conv, fc:all"),
    (1, "train resnet20 --freeze *", 2, "nothing to train|roles of this model: conv, fc:all"),
    (1, "train resnet20 --freeze conv --data folder --data-dir gone", 2, "random tensors|weights=default or a file"),
    (1, "train resnet20 unfreeze=['2:none'] --data folder --data-dir gone", 2, "unfreeze 2:none|roles of this model"),
    (1, "train demo --loss focl", 2, "no loss 'focl'|did you mean focal"),
    (1, "train demo --data cifar11", 2, "no data set, folder or file 'cifar11'|cifar10"),
    (2, "train typo.toml", 2, "optim.learning_rate|line 3"),
    (2, "train demo optim.lrr=1", 2, "optim.lrr|optim.lr"),
    (2, "trian", 2, "no command 'trian' (did you mean train?)"),
    (3, "train twice.toml", 2, "twice.toml|lines 1 and 2|seed"),
    (4, "train text.toml", 2, "optim.lr = 'abc'|line 2|expected float"),
    (4, "train demo lr=nan", 2, "optim.lr = nan|finite"),
    (4, "train demo lr=0", 2, "optim.lr = 0|> 0"),
    (5, "train deep.toml", 2, "deep.toml"),
    (5, "train dotted.toml", 2, "dotted.toml"),
    (5, "train large.toml", 2, "too large|large.toml"),
    (5, "train pipe.toml", 2, "pipe.toml|not a file"),
    (6, "train demo --batch-size 0", 2, "batch_size = 0|>= 1"),
    (6, "train demo --epochs -1", 2, "epochs = -1|>= 1"),
    (6, "train demo --focal-gamma -1", 2, "focal_gamma = -1.0|>= 0"),
    (6, "train demo focal_gamma=nan", 2, "focal_gamma = nan|finite"),
    (6, "train demo --save-every -1", 2, "save_every = -1|>= 0"),
    (6, "train demo --on-full maybe", 2, "'maybe'|keep-training"),
    (7, "train demo --data cifar10 --data-dir gone", 3, "/gone"),
    (7, "train demo --data folder --data-dir empty", 3, "data folder is empty|/empty"),
    (7, "train demo --data folder --data-dir afile", 3, "data folder is a file|/afile"),
    (8, "eval --out afile", 6, "afile/result.json|Not a directory|--out"),
    (8, "sweep demo lr=0.1,0.2 --out afile", 6, "afile|--out"),
    (8, "report --out page.html", 2, "--out names the page of several runs|omit --out"),
    (46, "eval " + "a" * 300, 2, "no file can have this name|File name too long"),
    (46, "train demo --weights " + "a" * 300, 2, "no file can have this name"),
    (46, "bench --compare " + "a" * 300 + " a.csv", 2, "no file can have this name|aaa"),
    (8, "train demo --out afile", 6, "output is a file|/afile|--out"),
    (9, "train demo --out used", 7, "not empty|--resume|--force"),
    (9, "train demo --out full --force", 7, "not a run|something.txt|another --out"),
    (12, "train demo --data folder --data-dir one", 3, "/one"),
    (12, "train resnet20 --data holed", 3, "1 class has no training image|holed, c|--allow-empty-class"),
    (20, "train demo --device cuda:7", 2, "cuda:7|CUDA devices found"),
    (20, "train demo --device gpu", 2, "'gpu'|cpu"),
    (20, "train demo --device cpu --precision fp16", 2, "fp16|bf16"),
    (24, "train demo --resume --out gone", 4, "no run to resume|/gone"),
    (24, "eval empty", 4, "not a run folder|/empty"),
    (24, "eval", 4, "no run yet|zoo train"),
    (29, "train resnet20 --weights gone.pth --data folder --data-dir gone", 4, "no weights file|/gone.pth|a run folder"),
    (29, "train resnet20 --weights afile --data folder --data-dir gone", 4, "not a weights file|afile"),
    (29, "train resnet20 --weights page.pth --data folder --data-dir gone", 4, "not a weights file|page.pth|web page"),
    (29, "train resnet20 --weights default --data folder --data-dir gone", 2, "no weights to download|weights=FILE"),
    (29, "train resnet20 --weights resnet32.pth --data folder --data-dir gone", 4,
     "belong to another model|resnet32.pth|only in the file: layer1.3.conv1.weight, layer1.3.bn1.weight, layer1.3.bn1.bias"),
    (42, "train resnet20 --data torn", 3, "1 of 8 images cannot be read|truncated image|torn/train/a/1.png, 500 bytes"),
    (55, "train demo --data folder --data-dir evil.tar", 3, "data folder is a file|/evil.tar"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "words", "code", "says"), ROWS, ids=[f"{n}: {w}" for n, w, _, _ in ROWS])
def test_a_fault_is_one_line_and_a_code(
    place: Path,
    number: int,
    words: str,
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    before = sorted(str(path) for path in place.rglob("*"))
    assert zoo(words.split()) == code
    out, err = capsys.readouterr()
    line = err.strip().splitlines()[-1]
    assert line.startswith("zoo "), err
    assert "Traceback" not in err
    assert [part for part in says.split("|") if part not in line] == [], line
    assert len(line) <= 200 + len(str(place)) + len(str(tmp_path)), len(line)
    assert out == ""
    assert sorted(str(path) for path in place.rglob("*")) == before
    assert not (tmp_path / "runs").exists()
    assert not (place.parent / "escaped.txt").exists()


@pytest.mark.parametrize("words", ["--debug train resnet23", "train resnet23 --debug"])
def test_debug_shows_the_traceback(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(words.split()) == 2
    assert "Traceback" in capsys.readouterr().err


def test_28_a_header_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[250000000000],"data_offsets":[0,1000000000000]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileError, match="not a zoo checkpoint"):
        tensor_files.load_tensors(tmp_path / "w.safetensors")


def test_29_33_34_what_does_not_fit_is_reported(small_plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_plain, folder)
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace('model = "cnn_small"', 'model = "resnet20"'))
    with pytest.raises(FileError, match=r"checkpoint is cnn_small/10/sgd, run is resnet20/10/sgd"):
        training.train(recipe.read(folder / "recipe.toml"), out=folder, resume=True)
    (folder / "recipe.toml").write_text(text)

    real = build.dataset

    def changed(*arguments: Any) -> Any:
        data = real(*arguments)
        manifest = data.manifest.copy()
        manifest[:3, 1] += np.uint64(1)
        return dataclasses.replace(data, digest="0" * 64, manifest=manifest[:-2])

    with monkeypatch.context() as patch:
        patch.setattr(build, "dataset", changed)
        with pytest.raises(DataError, match=r"data changed .*0 added, 2 removed, 3 changed"):
            training.train(small(), out=folder, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "FORMAT", 9)
        tensor_files.save_tensors(tmp_path / "new.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(FileError, match=r"newer zoo .*format 9.*this is zoo .* format 2"):
        tensor_files.load_tensors(tmp_path / "new.safetensors")
    assert digests(folder) == digests(small_plain)


def test_31_32_35_a_moved_run_resumes_and_says_what_differs(
    small_plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_plain, tmp_path / "elsewhere")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: torch.get_num_threads() + 1)
    training.train(small(), out=tmp_path / "elsewhere", resume=True)
    err = capsys.readouterr().err
    assert "not bit-identical: threads" in err
    assert "nothing to do" in err
    assert zoo(["eval", str(tmp_path / "elsewhere")]) == 0


def test_47_a_run_of_other_classes_than_the_data_is_reported(
    small_plain: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_plain, tmp_path / "run")
    text = (tmp_path / "run" / "recipe.toml").read_text().replace('"synthetic"', '"folder"')
    (tmp_path / "run" / "recipe.toml").write_text(text.replace('dir = ""', f'dir = "{place / "two"}"'))
    assert zoo(["eval", str(tmp_path / "run")]) == 4
    assert "10 and 2 classes" in capsys.readouterr().err.strip().splitlines()[-1]


def test_42_to_48_bad_images_are_named_and_the_rest_go_on(
    small_plain: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "new\nline.png"
    Image.new("RGB", (40, 50), (200, 10, 10)).save(good)
    Image.new("CMYK", (1, 1)).save(tmp_path / "cmyk.jpg")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    raw = os.fsdecode(b"\xff.png")
    shutil.copy(good, tmp_path / raw)
    names = ["page.png", "zero.png", "x.png", "dangling.png", "pipe.png"]
    paths = [*(str(place / name) for name in names), str(tmp_path / "cut.png"), "/dev/zero"]
    paths.append(str(tmp_path / ("a" * 300 + ".png")))
    fine = [str(good), str(tmp_path / "cmyk.jpg"), str(tmp_path / raw)]
    assert zoo(["predict", *paths, *fine, "--run", str(small_plain), "--json"]) == 3
    out, err = capsys.readouterr()
    assert out.count('"top"') == 3
    assert all(Path(path).name in err for path in paths)
    assert "8 of 11 images" in err.strip().splitlines()[-1]
    assert zoo(["predict", *fine, "--run", str(small_plain)]) == 0


def test_7_46_names_in_a_list_that_no_file_can_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column of images as text, a NUL, and a label of thousands of digits."""
    rows = []
    for number in range(8):
        Image.new("RGB", (8, 8), (number * 9, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{number % 2 or '9' * 5000}")
    for name, bad in (("long.csv", "x" * 5000), ("nul.csv", "x\0y.png")):
        (tmp_path / name).write_text("\n".join(["image,label", *rows, f"{bad},1"]))
        assert zoo(["data", "verify", str(tmp_path / name)]) == 3
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert "1 of 9 images cannot be read" in last and len(last) < 1000
    (tmp_path / "fine.csv").write_text("\n".join(["image,label", *rows]))
    assert zoo(["data", "verify", str(tmp_path / "fine.csv")]) == 0


def test_42_files_that_are_no_images_are_named(small_plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = b"\0\0\0\x18ftypheic" + bytes(100)
    (tmp_path / "new").mkdir()
    Image.new("RGB", (40, 50)).save(tmp_path / "new" / "a.png")
    (tmp_path / "new" / "b.HEIC").write_bytes(photo)
    (tmp_path / "new" / ".DS_Store").write_bytes(b"x")
    assert zoo(["predict", str(tmp_path / "new"), "--run", str(small_plain)]) == 0
    assert "1 entries of" in (err := capsys.readouterr().err) and ".HEIC 1" in err
    assert zoo(["predict", str(tmp_path / "new" / "b.HEIC"), "--run", str(small_plain)]) == 3
    out, err = capsys.readouterr()
    assert "cannot read HEIC" in err and "convert it to JPEG" in err and "above" not in err and out == ""


def test_33_a_damaged_list_of_files_is_no_list(small_plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(small_plain, tmp_path / "run")
    data = tmp_path / "data"
    for number in range(40):
        (data / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(data / "ab"[number % 2] / f"{number}.png")
    out = tmp_path / "own"
    assert zoo(["train", "cnn_small", "--data", str(data), "--epochs", "1", "--device", "cpu", "--out", str(out)]) == 0
    (data / "a" / "0.png").unlink()
    whole = (out / "last" / "manifest.npy").read_bytes()
    assert zoo(["eval", str(out)]) == 3
    assert "0 added, 1 removed, 0 changed" in capsys.readouterr().err
    for content in (b"garbage", b"", whole[:200], b"\x80\x04N."):
        (out / "last" / "manifest.npy").write_bytes(content)
        for words in (["eval", str(out)], ["train", "--resume", "--out", str(out), "--epochs", "2"]):
            assert zoo(words) == 3
            line = capsys.readouterr().err.strip().splitlines()[-1]
            assert "data changed since" in line and "digest" in line and "unsafe" not in line


def test_a_result_without_a_number(small_plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(small_plain, tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "low"}))
    assert zoo(["report", str(tmp_path / "run")]) == 4
    assert f"damaged file ({path}, no number 'low')" in capsys.readouterr().err


def test_8_a_result_that_cannot_be_written_is_printed(
    small_plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*given: Any) -> None:
        raise DiskError("no space left")

    monkeypatch.setattr(report, "write_tables", full)
    assert zoo(["eval", str(small_plain), "--out", str(tmp_path / "a"), "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["split"] == "test"


def test_16_a_signal_below_another_error_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a signal arrives while torch imports its compiler: the half-imported module raises an AttributeError."""

    def stopped(name: Any) -> Path:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            raise FileError("model cannot be traced (AttributeError)")
        return Path()

    monkeypatch.setattr(run_folders, "find", stopped)
    assert zoo(["eval"]) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_an_internal_error_leaves_its_traceback_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "train_epoch", lambda *arguments, **options: 1 / 0)
    assert zoo(["train", "cnn_small", "epochs=1", "data=synthetic", "device=cpu", "--out", str(tmp_path / "run")]) == 1
    logs = list((tmp_path / "run").glob("crash-*.log"))
    assert "ZeroDivisionError" in logs[0].read_text()
    assert str(logs[0]) in capsys.readouterr().err.strip().splitlines()[-1]


def test_weights_are_checked_without_what_is_slow_to_import() -> None:
    """A model on torch's meta device would import torch's compiler, which takes as long as everything else."""
    code = (
        "import sys\nfrom zoo.__main__ import run\n"
        "code = run(['train', 'resnet20', '--weights', 'gone.pth'])\nprint(code, 'torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.stdout.split() == ["4", "False"], ran.stderr
