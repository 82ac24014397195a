"""Sweeps: parsing, finished runs are not repeated, interrupted ones resume, selection, output."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from zoo import recipe, report, run_folders, sweep, tables, training
from zoo.cli import cli
from zoo.errors import BusyError, DiskError, DivergedError, FileError, UsageError, ZooError
from zoo.recipe import Recipe
from zoo.training.signals import Interrupted


def test_lists_ranges_and_fixed_settings() -> None:
    axes, fixed = sweep.parse(["loss.beta=0,0.9,0.9", "lr=log:1e-3:1e-1", "epochs=lin:2:9", "steps=[1,2],[3]", "batch_size=64"])
    assert [(a.key, a.values, a.kind, a.low, a.high, a.whole) for a in axes] == [
        ("loss.beta", (0, 0.9), "list", 0, 0, False),
        ("optim.lr", (), "log", 1e-3, 1e-1, False),
        ("epochs", (), "lin", 2, 9, True),
        ("schedule.steps", ([1, 2], [3]), "list", 0, 0, False),
    ]
    assert fixed == {"batch_size": 64}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lr=log:0:1"], "above 0"),
        (["lr=lin:2:1"], "LOW must be below HIGH"),
        (["lr=log:1"], "cannot read the range"),
        (["lr=1,2", "optim.lr=3"], "given twice"),
        (["lr=0.1"], "no setting varies"),
        (["seed=0,1"], "--seeds"),
        (["beeta=0,1"], "did you mean"),
    ],
)
def test_what_is_no_sweep(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweep.parse(settings)


class Trainer:
    """Stands in for training: validation accuracy is beta's, test accuracy the opposite; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, int, bool]] = []
        self.stop_at: int = -1
        self.kill_at: int = -1
        self.shares: set[float] = set()
        self.diverge: float = -1

    def __call__(self, asked: Recipe, *, out: Path, resume: bool, force: bool, command: str) -> Path:
        self.calls.append((asked.loss.beta, asked.seed, resume))
        self.shares.add(asked.data.val)
        if len(self.calls) == self.kill_at:
            raise SystemExit
        (out / "last").mkdir(parents=True, exist_ok=True)
        (out / "last" / "state-1.safetensors").touch()
        if len(self.calls) == self.stop_at:
            raise Interrupted(15)
        if asked.loss.beta == self.diverge:
            raise DivergedError("loss is not finite")
        score = asked.loss.beta / 2 + asked.seed / 100
        (out / "env.json").write_text(json.dumps({"lint": ["said of all", f"said of {asked.loss.beta:g}"]}))
        (out / "recipe.toml").write_text(recipe.dump(asked))
        result = {"chosen_accuracy": score, "accuracy": 1 - score, "trained": run_folders.wanted(asked)}
        (out / "result.json").write_text(json.dumps(result))
        return out


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    fake = Trainer()
    monkeypatch.setattr(training, "train", fake)
    return fake


def search(out: Path, *settings: str, seeds: int = 2, what: str = "demo", **options: Any) -> list[sweep.Point]:
    axes, fixed = sweep.parse(settings)
    return sweep.search(
        what, axes, fixed, seeds=seeds, out=out, command="zoo sweep", **{"storage": "", "trials": None, **options}
    )


def test_a_grid_is_run_once_and_chosen_on_validation(trainer: Trainer, tmp_path: Path) -> None:
    points = search(tmp_path / "s", "loss.beta=0,0.9,0.5")
    assert sorted(call[:2] for call in trainer.calls) == [(b, s) for b in (0, 0.5, 0.9) for s in (0, 1)]
    assert search(tmp_path / "s", "loss.beta=0,0.9,0.5") == points
    assert len(trainer.calls) == 6, "nothing finished is run again"
    rows = list(csv.DictReader((tmp_path / "s" / "sweep.csv").open()))
    assert {row["loss.beta"] for row in rows if row["chosen"]} == {"0.9"}
    text = (tmp_path / "s" / "README.md").read_text()
    assert "selected by val accuracy: loss.beta=0.9: test 54.50 \u00b1 0.71 (n = 2)" in text
    assert "99.50" not in text, "the test accuracy of what was not chosen"
    assert "data:image/png" in (tmp_path / "s" / "report.html").read_text()


def test_the_linter_speaks_beside_the_setting_it_means(trainer: Trainer, tmp_path: Path) -> None:
    points = search(tmp_path / "s", "loss.beta=0,0.9", seeds=1)
    table = report.sweep_table(points, "val")
    assert [(row[0], row[-1]) for row in table.rows] == [("0.9", "said of 0.9"), ("0", "said of 0")]
    assert (tmp_path / "s" / "README.md").read_text().count("said of all") == 1, "what holds for all is said once"
    assert {row["lint"] for row in csv.DictReader((tmp_path / "s" / "sweep.csv").open())} == {
        "said of all; said of 0", "said of all; said of 0.9"
    }  # fmt: skip


def test_a_recipe_without_validation_gets_some(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(tmp_path / "s", "loss.beta=0,0.9", seeds=1, what="s1_cbf")
    assert trainer.shares == {sweep.CARVED}
    assert "data.val = 0.1" in capsys.readouterr().err


def test_two_machines_of_one_storage_share_a_grid(trainer: Trainer, tmp_path: Path) -> None:
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    study = sweep._study(tmp_path / "here" / "s", shared)
    for _ in range(2):  # both read the storage before either wrote to it
        for value in ("0", "0.9"):
            study.enqueue_trial({"loss.beta": value})
    here = search(tmp_path / "here" / "s", "loss.beta=0,0.9", seeds=1, storage=shared)
    assert search(tmp_path / "there" / "s", "loss.beta=0,0.9", seeds=1, storage=shared) == here
    assert len(trainer.calls) == 2
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 2 + ["FAIL"] * 2, "each setting is one trial's"
    text = (tmp_path / "there" / "s" / "README.md").read_text()
    assert "test 55.00 (n = 1)" in text, "of a run that is on the other machine"
    with pytest.raises(UsageError, match=r"the folder has another sweep \(.*, different axes\)"):
        search(tmp_path / "third" / "s", "loss.beta=0,0.5", seeds=1, storage=shared)


def test_what_others_still_train_is_reported(trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_alive", lambda holder: True)
    for trainer.kill_at in (1, 2):
        with pytest.raises(SystemExit):
            search(tmp_path / "s", "loss.beta=0,0.9", seeds=1)
    with pytest.raises(BusyError, match="2 settings: training in other processes"):
        search(tmp_path / "s", "loss.beta=0,0.9", seeds=1)


def test_an_interrupted_run_goes_on(trainer: Trainer, tmp_path: Path) -> None:
    trainer.stop_at = 4
    with pytest.raises(Interrupted) as stopped:
        search(tmp_path / "s", "loss.beta=0,0.9,0.5")
    assert stopped.value.resume == "zoo sweep"  # type: ignore[attr-defined]
    points = search(tmp_path / "s", "loss.beta=0,0.9,0.5")
    assert len(points) == 3
    assert all(len(point.scores) == 2 for point in points)
    assert len(trainer.calls) == 7
    assert [call[:2] for call in trainer.calls if call[2]] == [trainer.calls[3][:2]], "only that one resumes"


def test_a_killed_process_leaves_its_trial_to_the_next(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    search(tmp_path / "s", "loss.beta=0,0.9", seeds=1)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 's' / 'study.db'}")
    study.enqueue_trial({"loss.beta": "0.9"})
    trial = study.ask()
    trial.suggest_categorical("loss.beta", ["0", "0.9"])
    trial.set_user_attr("held_by", f"{sweep.socket.gethostname()} 999999999")
    sweep._again(study)
    assert study.get_trials()[-1].state == optuna.trial.TrialState.FAIL
    assert not sweep._left(study, 2), "another trial of the same setting is complete"


def test_a_diverged_setting_is_reported_and_not_tried_again(trainer: Trainer, tmp_path: Path) -> None:
    trainer.diverge = 0.9
    for _ in range(2):
        points = search(tmp_path / "s", "loss.beta=0,0.9", seeds=1)
    assert [bool(point.diverged) for point in points] == [False, True]
    assert len(trainer.calls) == 2
    assert "diverged" in (tmp_path / "s" / "README.md").read_text()


def test_a_range_gets_its_trials_and_more_later(trainer: Trainer, tmp_path: Path) -> None:
    points = search(tmp_path / "s", "loss.beta=lin:0:0.9", "batch_size=64", seeds=1, trials=3)
    assert len({point.values["loss.beta"] for point in points}) == 3
    assert len(search(tmp_path / "s", "loss.beta=lin:0:0.9", "batch_size=64", seeds=1, trials=5)) == 5
    assert len(trainer.calls) == 5


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_process_that_joins_a_search_draws_other_values(trainer: Trainer, tmp_path: Path) -> None:
    joins = sweep._study(tmp_path / "s", f"sqlite:///{tmp_path / 'shared.db'}")
    joins.ask()  # its first trial, begun before this process's
    axes = ("loss.beta=lin:0:0.9", "batch_size=64")
    here = search(tmp_path / "s", *axes, seeds=1, trials=3, storage=f"sqlite:///{tmp_path / 'shared.db'}")
    alone = search(tmp_path / "alone" / "s", *axes, seeds=1, trials=1)
    assert alone[0].values not in [point.values for point in here]


def test_a_search_leaves_out_what_another_process_trains(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_alive", lambda holder: True)
    trainer.kill_at = 1
    with pytest.raises(SystemExit):
        search(tmp_path / "s", "loss=dynamic_focal", "loss.rescale_every=lin:1:2", seeds=1, trials=1)
    assert len(search(tmp_path / "s", "loss=dynamic_focal", "loss.rescale_every=lin:1:2", seeds=1, trials=4)) == 1
    assert len(list((tmp_path / "s").glob("rescale_every=*"))) == 1, "two values, of which one is with another process"


def test_settings_that_go_together_only_in_pairs_can_be_swept(trainer: Trainer, tmp_path: Path) -> None:
    points = search(tmp_path / "s", "epochs=200,300", "loss.drw_epoch=160,180", "class_weights=effective", seeds=1)
    assert len(points) == 4, "each alone would be past the end of the recipe's own epochs"


def test_a_choice_on_the_test_images_is_stamped(trainer: Trainer, tmp_path: Path) -> None:
    search(tmp_path / "s", "loss.beta=0,0.9", "select_on=test", seeds=1)
    for name in ("README.md", "report.html"):
        assert "SELECTED ON THE TEST IMAGES" in (tmp_path / "s" / name).read_text()
    assert "test_accuracy" in (tmp_path / "s" / "sweep.csv").read_text()


def test_the_command_prints_numbers_as_numbers(trainer: Trainer, tmp_path: Path) -> None:
    line = ["sweep", "demo", "loss.beta=0,0.9", "--seeds", "1", "--out", str(tmp_path / "s"), "--json"]
    rows = json.loads(CliRunner().invoke(cli, line).stdout)
    assert [row["loss.beta"] for row in rows] == [0, 0.9]
    assert all(isinstance(row["val_accuracy"], float) and row["diverged"] is None for row in rows)
    cells = ("1,000", "-0.5", "+9.4", "1e-9", "nan", "inf", "", "0,1,2")
    assert [tables.value(cell) for cell in cells] == [1000, -0.5, 9.4, 1e-9, "nan", "inf", None, "0,1,2"], "JSON has no NaN"


def test_a_sweep_is_of_one_folder_of_data(trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another folder of one's own images is another sweep; a known data set may be in another place on each machine."""
    for name in ("a", "b"):
        for part in ("train/x", "train/y", "test/x", "test/y"):
            (tmp_path / name / part).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    where = {"seeds": 1, "what": "cnn_small"}
    search(tmp_path / "s", "loss.beta=0,0.9", "data.name=folder", "data.dir=a", **where)
    calls = len(trainer.calls)
    search(tmp_path / "s", "loss.beta=0,0.9", "data.name=folder", f"data.dir={tmp_path / 'a'}", **where)
    assert len(trainer.calls) == calls
    with pytest.raises(UsageError, match=r"the folder has another sweep \(.*, different recipe\)"):
        search(tmp_path / "s", "loss.beta=0,0.9", "data.name=folder", "data.dir=b", **where)
    for name in ("a", "b"):
        search(tmp_path / "t", "loss.beta=0,0.9", "data.name=cifar10", f"data.dir={name}", **where)


def test_what_cannot_be_swept(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"loss.beta = 1.5"):
        search(tmp_path / "s", "loss.beta=0,1.5")
    with pytest.raises(UsageError, match=r"data.val is 0"):
        search(tmp_path / "s", "loss.beta=0,0.5", "data.val=0")
    with pytest.raises(UsageError, match=r"data.val is 0"):
        search(tmp_path / "s", "data.val=0.2,0")
    assert not (tmp_path / "s").exists()
    search(tmp_path / "s", "loss.beta=0,0.5", seeds=1)
    with pytest.raises(UsageError, match=r"the folder has another sweep \(.*, different axes\)"):
        search(tmp_path / "s", "loss.beta=0,0.6", seeds=1)
    with pytest.raises(UsageError, match=r"cannot open the storage"):
        search(tmp_path / "t", "loss.beta=0,0.5", storage="nonsense://x")
    with pytest.raises(DiskError, match=r"cannot write the study \(sqlite:.*unable to open.*\); name another --storage"):
        search(tmp_path / "t", "loss.beta=0,0.5", storage=f"sqlite:///{tmp_path}/gone/x.db")
    assert not (tmp_path / "t").exists()


def test_a_study_that_is_damaged_or_has_no_room(trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.db").write_text("no database " * 100)
    with pytest.raises(
        FileError, match=r"cannot read the study \(.*study.db, file is not a database\); restore the file, or remove"
    ):
        search(tmp_path / "s", "loss.beta=0,0.5")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match=r"no space left \(.*need 1.0 MB, 0.0 MB free\)"):
        search(tmp_path / "t", "loss.beta=0,0.5")
    assert not (tmp_path / "t").exists()


def test_a_disk_that_fills_while_a_sweep_runs(trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna import Study
    from optuna.exceptions import StorageInternalError

    def full(*given: Any, **options: Any) -> None:
        raise StorageInternalError("An exception is raised during the commit.") from sqlite3.OperationalError(
            "database or disk is full"
        )

    monkeypatch.setattr(Study, "optimize", full)
    with pytest.raises(DiskError, match=r"cannot write the study \(.*study.db, database or disk is full\); free some space"):
        search(tmp_path / "s", "loss.beta=0,0.5")


def test_every_recipe_key_can_vary() -> None:
    assert {type(value) for value in recipe.settings(recipe.Recipe()).values()} <= {str, int, float, bool, list}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["loss.name=cross_entropy,nope"], "no loss 'nope'"),
        (['data.augment=["crop"],["cropp"]'], "no augmentation 'cropp'"),
        (["weights=none,nope.pth"], "no weights file"),
        (["schedule.name=cosine,plateau", "select_on=val", "data.val=0.1,0"], "a sweep selects on validation images"),
    ],
)
def test_every_point_is_checked_before_the_first_is_trained(
    settings: list[str], says: str, trainer: Trainer, tmp_path: Path
) -> None:
    with pytest.raises(ZooError, match=says):
        search(tmp_path / "s", *settings)
    assert trainer.calls == []
    assert not (tmp_path / "s").exists()
