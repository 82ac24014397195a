"""Faults by number: what goes wrong, the exit code, the line, and that nothing is lost.

The numbers are those of the catalogue of faults. Recipes are TOML, so the rows on YAML have their TOML counterparts (a duplicate
key, nesting, size, a file that is none). Rows on data workers have none: images are decoded once, by threads.
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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import resolve

from zoo import checkpoint, files, host, lint, objective, parts, recipe, registry, run, runs, trainer
from zoo.__main__ import run as zoo
from zoo.spec import BusyError, DataError, DiskError, DivergedError, FileError, UsageError
from zoo.stop import Interrupted

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with things that go wrong."""
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
    for name in ("empty", "full", "x.png", "one/train/cat"):
        (folder / name).mkdir(parents=True)
    (folder / "full" / "something.txt").write_text("mine")
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
    (1, "train resnet20 --freeze fc", 2, "freeze=fc freezes nothing here|roles of this model: conv, fc:all"),
    (1, "train resnet20 --freeze *", 2, "nothing to train|roles of this model: conv, fc:all"),
    (1, "train resnet20 --freeze conv --data folder --data-dir gone", 2, "random tensors|weights=default or a file"),
    (1, "train resnet20 unfreeze=['2:none'] --data folder --data-dir gone", 2, "unfreeze 2:none|roles of this model"),
    (1, "train demo --loss focl", 2, "no loss 'focl'|did you mean focal"),
    (1, "train demo --data cifar11", 2, "no data set 'cifar11'|cifar10"),
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
    (6, "train demo --on-full maybe", 2, "on_full = 'maybe'|keep-training"),
    (7, "train demo --data cifar10 --data-dir gone", 3, "/gone"),
    (7, "train demo --data folder --data-dir empty", 3, "data folder is empty|/empty"),
    (7, "train demo --data folder --data-dir afile", 3, "data folder is a file|/afile"),
    (8, "train demo --out afile", 6, "output is a file|/afile|--out"),
    (9, "train demo --out full", 7, "not empty|--resume|--force"),
    (12, "train demo --data folder --data-dir one", 3, "/one"),
    (12, "train resnet20 --data holed", 3, "1 classes have no training image|holed, c|--allow-empty-class"),
    (20, "train demo --device cuda:7", 2, "cuda:7|CUDA devices found"),
    (20, "train demo --device gpu", 2, "'gpu'|cpu"),
    (20, "train demo --device cpu --precision fp16", 2, "fp16|bf16"),
    (24, "train demo --resume --out gone", 4, "no run to resume|/gone"),
    (24, "eval empty", 4, "not a run folder|/empty"),
    (24, "eval", 4, "no run yet|zoo train"),
    (29, "train resnet20 --weights gone.pth --data folder --data-dir gone", 4, "no weights file|/gone.pth|a run folder"),
    (29, "train resnet20 --weights afile --data folder --data-dir gone", 4, "not a weights file|afile|.safetensors, .pth"),
    (29, "train resnet20 --weights page.pth --data folder --data-dir gone", 4, "cannot read weights|page.pth"),
    (29, "train resnet20 --weights default --data folder --data-dir gone", 2, "no weights to download|weights=FILE"),
    (29, "train resnet20 --weights resnet32.pth --data folder --data-dir gone", 4,
     "of another model|resnet32.pth|only in the file: layer1.3.conv1.weight, layer1.3.bn1.weight, layer1.3.bn1.bias"),
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


def small(*settings: str) -> Any:
    return resolve("cnn_small", *settings)


def digests(folder: Path) -> dict[str, str]:
    return checkpoint.load_tensors(checkpoint.states(folder)[0])[1]["digests"]


def test_8_a_full_disk_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 3_100_000))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match=r"no space left \(.*need \d+\.\d MB, 3\.1 MB free\)"):
        run.train(small(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_10_a_held_folder_names_its_holder_and_a_dead_one_is_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"from zoo import runs; import time, pathlib; h = runs.locked(pathlib.Path({str(tmp_path)!r})); h.__enter__(); print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(BusyError, match=f"in use .*pid {child.pid} on "):
        runs.check_free(tmp_path)
    assert zoo(["train", "demo", "--out", str(tmp_path)]) == 7
    assert f"pid {child.pid}" in capsys.readouterr().err
    child.kill()
    child.wait()
    with runs.locked(tmp_path):
        assert f"pid {child.pid}" in capsys.readouterr().err
    with runs.locked(tmp_path):
        assert capsys.readouterr().err == ""


def test_11_a_label_out_of_range_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = parts.build_data

    def spoilt(*arguments: Any) -> Any:
        data = real(*arguments)
        data.train.targets[5] = 10
        return data

    monkeypatch.setattr(parts, "build_data", spoilt)
    with pytest.raises(DataError, match=r"label out of range \(train\[\d+\], label 10, 10 classes\)"):
        run.train(small(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_12_an_empty_class_is_refused_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="no training image .*--allow-empty-class"):
        run.train(small("data.imbalance=exp:0.0001"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    folder = run.train(
        small("data.imbalance=exp:0.0001", "allow_empty_class=true", "class_weights=effective", "sampler=class_balanced"),
        out=tmp_path / "run",
    )
    assert "won't be learned" in capsys.readouterr().err
    assert json.loads((folder / "env.json").read_text())["counts"][-3:] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["none", "effective", "inverse", "sqrt_inverse"])
@pytest.mark.parametrize("loss", registry.names("losses"))
def test_12_an_empty_class_leaves_every_loss_finite(loss: str, kind: str) -> None:
    counts = np.array([40, 3, 0, 1, 0])
    mine = small(f"loss={loss}", f"class_weights={kind}", "sampler=class_balanced", "allow_empty_class=true")
    lint.check(mine, counts)
    made, weight = objective.build_loss(mine, counts)
    assert weight is None or (weight[[2, 4]].tolist(), round(weight.sum().item(), 5)) == ([0, 0], 3)
    logits = torch.randn(6, 5, requires_grad=True)
    value = made(logits, torch.tensor([0, 1, 3, 0, 3, 1]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_13_no_state_is_ever_not_finite(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path, 1, {"model.w": torch.ones(3)}, {})
    with pytest.raises(DivergedError, match=r"model\.w is not finite \(step 2\)"):
        checkpoint.save_state(tmp_path, 2, {"model.w": torch.tensor([1.0, float("nan")])}, {})
    assert [path.name for path in checkpoint.states(tmp_path)] == ["state-000000001.safetensors"]


def test_14_a_scaler_that_only_skips_has_diverged(tmp_path: Path) -> None:
    from zoo.train import SKIPS, Step, _backward

    class Scaler:
        value = 2.0**60

        def scale(self, loss: Any) -> Any:
            return loss

        def unscale_(self, optimizer: Any) -> None: ...

        def step(self, optimizer: Any) -> None: ...

        def update(self) -> None:
            self.value /= 2

        def get_scale(self) -> float:
            return self.value

    model = torch.nn.Linear(1, 1)
    step = Step(torch.optim.SGD(model.parameters(), 0.1), lambda at: 0.1, torch.device("cpu"), scaler=Scaler())
    for _ in range(SKIPS):
        _backward(model, model(torch.ones(1, 1)).sum(), step)
    assert step.skipped[0] == SKIPS
    step.scaler.update = lambda: None
    _backward(model, model(torch.ones(1, 1)).sum(), step)
    assert step.skipped[0] == 0


def interrupt(monkeypatch: pytest.MonkeyPatch, number: int, at: int, *, where: str = "train_epoch") -> None:
    """Send this process a signal once, after ``at`` steps or, with ``predict``, evaluation batches."""
    real, left = getattr(trainer, where), iter(range(at, -1, -1))

    def counted(inner: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if next(left, -1) == 0:
                os.kill(os.getpid(), number)
            return inner(*arguments)

        return call

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if where == "predict":
            return real(*arguments[:3], counted(arguments[3] if len(arguments) > 3 else lambda: None))
        return real(*arguments, **options | {"watch": counted(options["watch"])})

    monkeypatch.setattr(trainer, where, wrapped)


@pytest.mark.parametrize(
    ("number", "code", "where", "at"),
    [
        (signal.SIGTERM, 143, "train_epoch", 3),
        (signal.SIGUSR1, 143, "train_epoch", 8),
        (signal.SIGHUP, 143, "predict", 2),
        (signal.SIGINT, 130, "train_epoch", 0),
    ],
)
def test_15_16_a_signal_saves_and_the_resumed_run_has_the_same_bits(
    tmp_path: Path, small_plain: Path, number: int, code: int, where: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, number, at, where=where)
        with pytest.raises(Interrupted) as caught:
            run.train(small(), out=tmp_path / "run")
    assert (caught.value.code, caught.value.saved) == (code, True)
    run.train(small(), out=tmp_path / "run", resume=True)
    assert digests(tmp_path / "run") == digests(small_plain)


@pytest.fixture(scope="module")
def small_plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.train(small(), out=tmp_path_factory.mktemp("plain") / "run")


def test_15_a_signal_before_the_first_step_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "build_data", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        run.train(small(), out=tmp_path / "run")
    assert not caught.value.saved
    assert not (tmp_path / "run").exists()


def test_17_states_are_saved_every_so_many_steps_and_only_own_temporaries_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(checkpoint, "save_state", lambda folder, step, tensors, meta: kept.append(step))
    run.train(small("save_every=4"), out=tmp_path / "run")
    assert kept[:3] == [0, 4, 8]
    (tmp_path / ".mine.tmp.txt").write_text("mine")
    (tmp_path / f".weights.abc{files.TEMPORARY}.safetensors").write_text("torn")
    with runs.locked(tmp_path):
        assert (tmp_path / ".mine.tmp.txt").is_file()
        assert list(tmp_path.glob(f"*{files.TEMPORARY}*")) == []


def full_disk(monkeypatch: pytest.MonkeyPatch, calls: range) -> None:
    """The saves of these numbers fail for want of space."""
    real, number = checkpoint.save_file, iter(range(1000))

    def write(tensors: Any, path: Path, header: Any) -> None:
        if next(number) in calls:
            path.write_bytes(b"half")
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path, header)

    monkeypatch.setattr(checkpoint, "save_file", write)


def test_18_a_full_disk_in_a_save_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        full_disk(patch, range(1, 100))
        with pytest.raises(DiskError, match=r"no space left \(.*need \d+\.\d MB, .* MB free\)"):
            run.train(small("save_every=2"), out=tmp_path / "run")
    assert checkpoint.load_state(tmp_path / "run")[1]["skip"] == 0
    assert not list((tmp_path / "run").rglob(f"*{files.TEMPORARY}*"))


def test_18_training_goes_on_where_that_is_asked(
    tmp_path: Path, small_plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_disk(monkeypatch, range(1, 3))
    run.train(small("save_every=2", "on_full=keep-training"), out=tmp_path / "run")
    assert capsys.readouterr().err.count("not saved, going on") == 2
    assert digests(tmp_path / "run") == digests(small_plain)


def test_20_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "train_epoch", burst)
    with pytest.raises(DiskError, match=r"out of memory \(batch_size 250\).*--batch-size 125"):
        run.train(small(), out=tmp_path / "run")
    assert checkpoint.load_state(tmp_path / "run")[1]["epoch"] == 0


def test_22_a_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = f"{sys.executable!r} -m zoo recipes --show | head -c 5"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode in (0, 141), ran.stderr) == (True, "")


def test_23_an_operation_without_a_deterministic_way_is_named_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(torch.nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
            return torch.nn.functional.cross_entropy(logits, target)

    monkeypatch.setattr(parts.objective, "build_loss", lambda *arguments: (Odd(), None))
    with pytest.raises(UsageError, match="put_ has no deterministic way"):
        run.train(small("deterministic=true"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not torch.are_deterministic_algorithms_enabled()


def test_28_a_header_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[250000000000],"data_offsets":[0,1000000000000]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileError, match="not a zoo checkpoint"):
        checkpoint.load_tensors(tmp_path / "w.safetensors")


def test_29_33_34_what_does_not_fit_is_told(small_plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_plain, folder)
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace('model = "cnn_small"', 'model = "resnet20"'))
    with pytest.raises(FileError, match=r"checkpoint is cnn_small/10/sgd, run is resnet20/10/sgd"):
        run.train(recipe.read(folder / "recipe.toml"), out=folder, resume=True)
    (folder / "recipe.toml").write_text(text)

    real = parts.build_data

    def changed(*arguments: Any) -> Any:
        data = real(*arguments)
        manifest = data.manifest.copy()
        manifest[:3, 1] += np.uint64(1)
        return dataclasses.replace(data, digest="0" * 64, manifest=manifest[:-2])

    with monkeypatch.context() as patch:
        patch.setattr(parts, "build_data", changed)
        with pytest.raises(DataError, match=r"data changed .*0 added, 2 removed, 3 changed"):
            run.train(small(), out=folder, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 9)
        checkpoint.save_tensors(tmp_path / "new.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(FileError, match=r"newer zoo .*format 9.*this is zoo .* format 1"):
        checkpoint.load_tensors(tmp_path / "new.safetensors")
    assert digests(folder) == digests(small_plain)


def test_31_32_35_a_moved_run_resumes_and_says_what_differs(
    small_plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_plain, tmp_path / "elsewhere")
    monkeypatch.setattr(host, "cores", lambda: torch.get_num_threads() + 1)
    run.train(small(), out=tmp_path / "elsewhere", resume=True)
    err = capsys.readouterr().err
    assert "not bit-identical: threads" in err
    assert "nothing to do" in err
    assert zoo(["eval", str(tmp_path / "elsewhere")]) == 0


def test_47_a_run_of_other_classes_than_the_data_is_told(
    small_plain: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_plain, tmp_path / "run")
    text = (tmp_path / "run" / "recipe.toml").read_text().replace('"synthetic"', '"folder"')
    (tmp_path / "run" / "recipe.toml").write_text(text.replace('dir = ""', f'dir = "{place / "two"}"'))
    assert zoo(["eval", str(tmp_path / "run")]) == 4
    assert "classes differ (model 10, data 2)" in capsys.readouterr().err.strip().splitlines()[-1]


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
    fine = [str(good), str(tmp_path / "cmyk.jpg"), str(tmp_path / raw)]
    assert zoo(["predict", *paths, *fine, "--run", str(small_plain), "--json"]) == 3
    out, err = capsys.readouterr()
    assert out.count('"top"') == 3
    assert all(Path(path).name in err for path in paths)
    assert "7 of 10 images" in err.strip().splitlines()[-1]
    assert zoo(["predict", *fine, "--run", str(small_plain)]) == 0


def test_an_internal_error_leaves_its_traceback_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer, "train_epoch", lambda *arguments, **options: 1 / 0)
    assert zoo(["train", "cnn_small", "epochs=1", "data=synthetic", "device=cpu", "--out", str(tmp_path / "run")]) == 1
    logs = list((tmp_path / "run").glob("crash-*.log"))
    assert "ZeroDivisionError" in logs[0].read_text()
    assert str(logs[0]) in capsys.readouterr().err.strip().splitlines()[-1]


def test_weights_are_checked_without_what_is_slow_to_import() -> None:
    """A model on torch's meta device would bring in its compiler, which takes as long as all the rest."""
    code = (
        "import sys\nfrom zoo.__main__ import run\n"
        "code = run(['train', 'resnet20', '--weights', 'gone.pth'])\nprint(code, 'torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.stdout.split() == ["4", "False"], ran.stderr
