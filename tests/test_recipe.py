"""Recipes: typed, frozen, every mistake reported with its position."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from zoo import recipe as recipes
from zoo import recipe_text, registry
from zoo.errors import UsageError
from zoo.recipe import Recipe


def test_shipped_recipes_read_and_their_names_resolve() -> None:
    shipped = recipes.shipped()
    assert len(shipped) >= 3
    for name, path in shipped.items():
        recipe = recipes.resolve(name, {})
        assert recipe.model in registry.names("models") or recipe.model.startswith("timm/")
        assert recipe.data.name in registry.names("data")
        assert recipe.loss.name in registry.names("losses")
        assert path.read_text().startswith("# ")


def test_dump_reads_back_the_same(tmp_path: Path) -> None:
    recipe = recipes.resolve("demo", {"lr": 0.25, "seed": 7})
    (tmp_path / "r.toml").write_text(recipes.dump(recipe))
    assert recipes.read(tmp_path / "r.toml") == recipe
    assert recipes.resolve(str(tmp_path / "r.toml"), {}) == recipe


@pytest.mark.parametrize(("name", "reader"), [("pets", "folder"), ("pets.csv", "list"), ("pets.npz", "npz")])
def test_a_folder_or_file_as_data_is_read_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reader: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / "r.toml").write_text(f'model = "cnn_small"\n[data]\nname = "{name}"\n')
    given, written = recipes.resolve("cnn_small", {"data": name}), recipes.resolve("r.toml", {})
    for found in (given, written, recipes.changed(recipes.resolve("demo", {}), {"data.name": name})):
        assert (found.data.name, found.data.dir) == (reader, name)
    assert given.data.augment == ["rcrop", "flip"], "those of the reader, not of the model's own data"


def test_a_value_of_any_type_is_an_error_of_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.toml"
    for key in recipes.options():
        table, _, leaf = key.rpartition(".")
        for value in ("5", "true", "[1]", "[{a = 1}]", "{a = 1}", "2020-01-01", "''"):
            path.write_text(f"[{table}]\n{leaf} = {value}" if table else f"{leaf} = {value}")
            with contextlib.suppress(UsageError):
                recipes.resolve(str(path), {})
            with contextlib.suppress(UsageError):
                recipes.resolve("demo", dict([recipes.parse_override(f"{key}={value}")]))
    for each in ({"model": 5}, {"loss.name": [1]}):
        with pytest.raises(UsageError):
            recipes.resolve("demo", each)
    capsys.readouterr()
    recipes.resolve("demo", {"loss.name": "focl"})  # an error only in training, which loads the user's own losses
    assert "has no effect" not in capsys.readouterr().err


def test_a_data_set_that_is_no_text_is_an_error() -> None:
    with pytest.raises(UsageError, match="data.name = 5 is not allowed: expected str"):
        recipes.resolve("cnn_small", {"data.name": 5})


@given(lr=st.floats(1e-6, 10), epochs=st.integers(1, 10**6), imbalance=st.text(max_size=20), steps=st.lists(st.integers(1, 99)))
def test_any_values_survive_the_file(lr: float, epochs: int, imbalance: str, steps: list[int]) -> None:
    import tomllib

    import msgspec

    values = {"optim": {"lr": lr}, "epochs": epochs, "data": {"imbalance": imbalance}, "schedule": {"steps": steps}}
    recipe = msgspec.convert(values, Recipe)
    assert msgspec.convert(tomllib.loads(recipes.dump(recipe)), Recipe) == recipe


def test_the_order_of_authority() -> None:
    model_default = recipes.resolve("resnet32", {})
    assert model_default.data.name == "cifar10"
    assert recipes.resolve("resnet32", {"optim.lr": 0.5}).optim.lr == 0.5
    assert recipes.resolve("cifar10_resnet32_ce", {"model": "resnet20"}).model == "resnet20"
    assert recipes.resolve("cifar10_resnet32_ce", {}).epochs == 60


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lr=1e-3", "optim.lr", 1e-3),
        ("data=cifar10", "data.name", "cifar10"),
        ("steps=[3,5]", "schedule.steps", [3, 5]),
        ("model=a b", "model", "a b"),
        ("data.dir=2024", "data.dir", "2024"),
        ("weights=[1]", "weights", "[1]"),
    ],
)
def test_overrides(text: str, key: str, value: object) -> None:
    assert recipes.parse_override(text) == (key, value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs = 0", ["epochs = 0", "line 1", ">= 1"]),
        ("epochs = -1", ["epochs = -1", ">= 1"]),
        ("batch_size = 0", ["batch_size = 0", ">= 1"]),
        ("epohcs = 3", ["'epohcs'", "line 1", "did you mean epochs"]),
        ("[optim]\nlr = 'abc'", ["optim.lr = 'abc'", "line 2", "expected float"]),
        ("[optim]\nlr = nan", ["optim.lr = nan", "line 2", "finite"]),
        ("[optim]\nlr = -1.0", ["optim.lr = -1.0", "> 0"]),
        ("[optim]\nlr = 0.0", ["optim.lr = 0.0", "> 0"]),
        ("[loss]\nname = 'focal'\nfocal_gamma = -1.0", ["loss.focal_gamma", "line 3", ">= 0"]),
        ("[loss]\nname = 'focal'\nfocal_gamma = 'x'", ["loss.focal_gamma = 'x'", "line 3", "expected float"]),
        ("[loss]\nname = 'dynamic_focal'\nrescale_every = 1.5", ["loss.rescale_every = 1.5", "line 3", "expected int"]),
        ("[loss]\ngamma = 2.0", ["--focal-gamma", "--lr-gamma", "line 2"]),
        ("gamma = 2.0", ["--focal-gamma", "--lr-gamma", "line 1"]),
        ("[loss]\nbeta = -0.1", ["loss.beta = -0.1", ">= 0"]),
        ("[loss]\ngiven_weights = [1.0, -2.0]", ["loss.given_weights", ">= 0"]),
        ("[loss]\ndrw_epoch = -1", ["loss.drw_epoch = -1", ">= 0"]),
        ("[sampler]\nname = 'focl'", ["sampler.name = 'focl'", "class_balanced"]),
        ("[sampler]\nexponent = -1.0", ["sampler.exponent = -1.0", ">= 0"]),
        ("[loss]\nbeta = 1.0", ["loss.beta", "< 1"]),
        ("[loss]\nclass_weights = 'efective'", ["loss.class_weights", "effective"]),
        ("[losss]\nbeta = 0.5", ["'losss.beta'", "line 2", "did you mean loss.beta"]),
        ("seed = 1\nseed = 2", ["TOML", "line 2"]),
        ("model = ", ["TOML", "line 1"]),
        ("precision = 'fp8'", ["precision", "fp32"]),
    ],
)
def test_bad_recipes_are_named(tmp_path: Path, text: str, says: list[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        recipes.read(path)
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert "\n" not in message
    assert len(message.replace(str(path), "")) <= 200


def test_a_wrong_override_is_not_laid_on_a_line_of_the_file() -> None:
    with pytest.raises(UsageError, match=r"^loss.beta = 1.0 is not allowed: expected float >= 0 and < 1$"):
        recipes.resolve("demo", {"loss.beta": 1.0})


def test_a_huge_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    path.write_text("#" * (recipe_text.MAX_BYTES + 1))
    with pytest.raises(UsageError, match="too large"):
        recipes.read(path)


def test_unknown_model_names_three_near_ones() -> None:
    with pytest.raises(UsageError, match=r"no model 'resnet23' \(did you mean .*resnet32.*list them with: zoo models"):
        recipes.resolve("resnet23", {})


def test_differences() -> None:
    assert recipes.differences(Recipe(), recipes.Recipe(epochs=3)) == ["epochs: 10 -> 3"]


def test_what_others_reported_changes_no_run() -> None:
    reported = recipes.Recipe(reported=recipes.Reported(0.5, "someone"))
    assert recipes.differences(Recipe(), reported) == []
    for name, path in recipes.shipped().items():
        found = recipes.read(path).reported
        assert bool(found.accuracy) == bool(found.source), name


def test_the_option_of_another_loss_is_refused_with_the_losses_that_take_it(tmp_path: Path) -> None:
    says = r"^loss.tau = 2.0 is not an option of focal \(options: focal_gamma, label_smoothing\); losses with this option: dbm, logit_adjustment$"
    with pytest.raises(UsageError, match=says):
        recipes.resolve("cnn_small", {"loss": "focal", "loss.tau": 2.0})
    (tmp_path / "r.toml").write_text("[loss]\nname = 'balanced_softmax'\ntau = 2.0\n")
    with pytest.raises(UsageError, match=r"loss.tau = 2.0 \(.*line 3\) is not an option of balanced_softmax \(no options\)"):
        recipes.resolve(str(tmp_path / "r.toml"), {})


def test_options_stand_beside_the_name_and_only_those_of_the_loss() -> None:
    made = recipes.resolve("cnn_small", {"loss": "hybrid", "alpha": 0.25})
    assert made.loss.options == {"focal_gamma": 2.0, "alpha": 0.25}
    assert {"loss.alpha", "loss.focal_gamma"} <= set(recipes.settings(made))
    assert "loss.tau" not in recipes.settings(made)
    assert recipes.differences(recipes.resolve("cnn_small", {"loss": "hybrid"}), made) == ["loss.alpha: 0.5 -> 0.25"]


def test_a_loss_chosen_on_the_command_line_leaves_the_file_s_options_out() -> None:
    assert recipes.resolve("cifar10lt_resnet32_focal", {"loss": "cross_entropy"}).loss.options == {"label_smoothing": 0.0}


def test_an_option_of_the_file_that_has_no_effect_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text("[loss]\nname = 'focal'\nfocal_gamma = 3.0\nlabel_smoothing = 0.0\n")
    recipes.resolve(str(tmp_path / "r.toml"), {"loss": "ldam"})
    assert capsys.readouterr().err.splitlines() == [
        "loss     loss.focal_gamma = 3.0 (r.toml) has no effect: ldam has no such option"
    ]


def test_a_recipe_that_an_earlier_version_stored_is_readable(tmp_path: Path) -> None:
    """Old recipes have the options of every loss, both in a run's file (read) and if resumed or repeated (resolve)."""
    text = "[loss]\nname = 'ldam'\nfocal_gamma = 2.0\nalpha = 0.5\ntau = 1.0\nmax_margin = 0.25\nmargin_scale = 30.0\n"
    (tmp_path / "r.toml").write_text(text)
    wanted = {"max_margin": 0.25, "margin_scale": 30.0}
    assert recipes.read(tmp_path / "r.toml").loss.options == wanted
    assert recipes.resolve(str(tmp_path / "r.toml"), {}).loss.options == wanted
    (tmp_path / "r.toml").write_text(text.replace("tau = 1.0", "tau = 3.0"))
    assert recipes.read(tmp_path / "r.toml").loss.options == wanted


def test_every_setting_is_listed_with_type_default_and_help() -> None:
    listed = recipes.options()
    assert set(recipes.settings(Recipe())) <= set(listed)
    for key, option in listed.items():
        assert option.help and option.help[0] == option.help[0].strip() and not option.help.endswith("."), key
        assert option.type in {"float", "int", "bool", "str"} or option.type.startswith("list["), key


THREADS = """
import sys, threading
import msgspec
from zoo.recipe_types import converted
sys.setswitchinterval(1e-6)
start = threading.Barrier(4)
for number in range(100):
    inner = msgspec.defstruct("Inner", [(f"b{i}", "float", 0.0) for i in range(20)])
    kind = msgspec.defstruct("Outer", [(f"a{i}", "int", 0) for i in range(20)] + [("inner", inner, msgspec.field(default_factory=inner))])
    def convert():
        start.wait()
        converted({"a1": 1, "inner": {"b1": 1.0}}, kind)
    threads = [threading.Thread(target=convert) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_threads_may_convert_to_a_new_struct_at_once() -> None:
    """In msgspec 0.22 that is a segmentation fault: two threads that load their first run crash the process."""
    ran = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_values_are_converted_in_one_place() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("zoo", "export", "bench")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"msgspec\.convert\(|decode\(.*type=", path.read_text(encoding="utf-8"))
    }
    assert {path.replace("zoo/export", "export") for path in found} == {"zoo/recipe_types.py"}


def test_keys_are_named_as_the_options_of_commands() -> None:
    named = {"data_dir": "data.dir", "data": "data.name", "lr": "optim.lr", "optim_lr": "optim.lr", "data.val": "data.val"}
    assert {key: recipes.full_key(key) for key in named} == named


def test_a_model_given_twice_is_the_one_of_the_setting() -> None:
    """As for a recipe; in a sweep, each model is a point."""
    assert recipes.resolve("cnn_small", {"model": "resnet20"}).model == "resnet20"
    assert recipes.resolve("cnn_small", {"model": "resnet20"}) == recipes.resolve("resnet20", {})
