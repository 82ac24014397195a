"""Recipe files in TOML, YAML and JSON: the same values, every mistake with its line, only data is read."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from zoo import recipe as recipes
from zoo import recipe_text
from zoo.errors import UsageError

TOML = """model = "resnet20"
epochs = 3
[data]
name = "cifar10"
augment = ["crop:2", "flip"]
[loss]
name = "focal"
focal_gamma = 1
class_weights = "none"
[optim]
lr = 1e-3
nesterov = false
"""
YAML = """# the same
model: resnet20
epochs: 3
data:
  name: cifar10
  augment: ["crop:2", flip]
loss:
  name: 'focal'
  focal_gamma: 1
  class_weights: none
optim: {lr: 1e-3, nesterov: False}
"""
JSON = """{
  "model": "resnet20", "epochs": 3,
  "data": {"name": "cifar10", "augment": ["crop:2", "flip"]},
  "loss": {"name": "focal", "focal_gamma": 1, "class_weights": "none"},
  "optim": {"lr": 1e-3, "nesterov": false}
}"""


@pytest.mark.parametrize(("name", "text"), [("r.yaml", YAML), ("r.yml", YAML), ("r.json", JSON)])
def test_yaml_and_json_read_like_toml(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "r.toml").write_text(TOML)
    (tmp_path / name).write_text(text)
    made = recipes.resolve(str(tmp_path / name), {})
    assert made == recipes.resolve(str(tmp_path / "r.toml"), {})
    assert made.optim.lr == 1e-3
    assert made.loss.options["focal_gamma"] == 1.0


@pytest.mark.parametrize(("name", "text"), [("r.toml", TOML), ("r.yaml", YAML), ("r.json", JSON)])
def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert recipes.resolve(str(tmp_path / name), {}).model == "resnet20"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+.001", "0.001", "1.0e-3"])
def test_numbers_of_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(f"optim:\n  lr: {text}\n")
    assert recipe_text.read(tmp_path / "r.yaml").values == {"optim.lr": 0.001}


def test_words_that_yaml_1_1_takes_for_booleans_are_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("weights: no\nfreeze: off\nmodel: 'true'\ncompile: true\n")
    assert recipe_text.read(tmp_path / "r.yaml").values == {"weights": "no", "freeze": "off", "model": "true", "compile": True}


BOMB = "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(9))
FAULTS = [
    ("twice", "r.yaml", "seed: 1\nepochs: 2\nseed: 3\n", "seed is given twice, lines 1 and 3"),
    ("a table twice", "r.toml", "seed = 1\n[optim]\nlr = 1\n[optim]\nmomentum = 0\n", r"\[optim\] is given twice, lines 2 and 4"),
    ("twice in a table", "r.yaml", "optim:\n  lr: 1\n  lr: 2\n", "optim.lr is given twice, lines 2 and 3"),
    ("twice, json", "r.json", '{"seed": 1,\n"seed": 2}', "seed is given twice, lines 1 and 2"),
    ("python tag", "r.yaml", "model: !!python/object/apply:os.system ['touch pwned']\n", "a tag .*python.*, line 1"),
    ("own tag", "r.yaml", "model: !x y\n", "a tag !x, line 1"),
    ("bomb", "r.yaml", BOMB, "an anchor or alias, line 1"),
    ("deep", "r.yaml", "x: " + "[" * 5000, "more than 20 levels, line 1"),
    ("deep, json", "r.json", '{"x": ' + "[" * 200_000, "nested too deeply"),
    ("deep, toml", "r.toml", "x = " + "[" * 200_000, "nested too deeply"),
    ("digits", "r.toml", "epochs = " + "9" * 5000, "not a TOML recipe"),
    ("digits, yaml", "r.yaml", "epochs: " + "9" * 5000, "not a YAML recipe"),
    ("two documents", "r.yaml", "seed: 1\n---\nseed: 2\n", "a second document"),
    ("not a mapping", "r.yaml", "- 1\n- 2\n", "no keys at the top"),
    ("no value", "r.yaml", "seed:\nepochs: 3\n", "no value, line 1"),
    ("key in a list", "r.yaml", "? [a]\n: b\n", "a key that is not text, line 1"),
    ("tab", "r.yaml", "data:\n\tname: cifar10\n", "line 2"),
    ("control", "r.yaml", "model: a\x00b\n", "not a YAML recipe"),
    ("brace", "r.json", '{"seed": 1', "not a JSON recipe"),
    ("a list", "r.json", "[1]", "no keys at the top"),
    ("text for a number", "r.yaml", "optim:\n  lr: abc\n", r"optim.lr = 'abc' \(.*line 2\)"),
    ("not finite", "r.yaml", "optim:\n  lr: .nan\n", "optim.lr = nan .*line 2.*finite"),
    ("unknown key", "r.yaml", "epochs: 3\nepohcs: 2\n", "'epohcs' .*line 2.*did you mean epochs"),
    ("unknown key, json", "r.json", '{"seed": 1,\n"epohcs": 2}', "'epohcs' .*line 2.*did you mean epochs"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "says"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_bad_files_are_one_line_and_soon_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    path, began = tmp_path / name, time.monotonic()
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        recipes.resolve(str(path), {})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(path), "")) <= 200
    assert time.monotonic() - began < 1
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("augment=" + "[" * 100_000, "cannot read the value"),
        ("epochs=" + "9" * 5000, "cannot read the value"),
        ("epochs=99999999999999999999", r"epochs = 99999999999999999999 is not allowed: expected int >= 1 and <= 1000000"),
        ("batch_size=99999999999999", "batch_size = .*<= 1000000"),
        ("mixup=1e308", r"mixup = 1e\+308 is not allowed: expected float >= 0 and <= 1000"),
        ("cutmix=1e308", "cutmix = .*<= 1000"),
        ("optim.lr=1e300", "optim.lr = .*<= 1000000"),
        ("optim.clip=1e300", "optim.clip = .*<= 1000000"),
        ("loss.focal_gamma=1e300", r"loss.focal_gamma = 1e\+300 is not allowed: expected float >= 0 and <= 100"),
        ("schedule.steps=[1,99999999999999999999]", "schedule.steps = .*<= 1000000"),
        ("loss.given_weights=[nan]", "loss.given_weights = .*finite"),
    ],
)
def test_values_that_no_machine_can_have(override: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        recipes.resolve("demo", dict([recipes.parse_override(override)]))
    assert len(str(caught.value)) <= 200


def test_every_number_has_an_upper_bound() -> None:
    options = recipes.options().items()
    numbers = [key for key, option in options if option.type.rstrip("]").endswith(("int", "float")) and not option.choices]
    assert len(numbers) > 30
    assert [key for key in numbers if recipes.options()[key].le is None and recipes.options()[key].lt is None] == []


COURSE = """Train:
  batch_size: 128
  learning_rate: 1e-2
  reg: 1e-3
  epochs: 15
  steps: [6, 8]
  warmup: 0
  momentum: 0.9

network:
  model: ResNet-32

data:
  imbalance: imbalance
  save_best: True

loss:
  loss_type: Focal
  reweight: True
  beta: 0.9999
  gamma: 1
"""


def test_the_layout_of_the_course_runs_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(COURSE)
    made = recipes.resolve(str(tmp_path / "config.yaml"), {})
    shipped = msgspec.structs.replace(recipes.resolve("s0_5", {}), reported=recipes.Reported())
    assert made == shipped


def test_the_course_s_cross_entropy_does_without_weights(tmp_path: Path) -> None:
    text = (
        COURSE.replace("Focal", "CE").replace("imbalance: imbalance", "imbalance: regular").replace("ResNet-32", "VanillaCNN")
    )
    (tmp_path / "config.yaml").write_text(text)
    made = recipes.resolve(str(tmp_path / "config.yaml"), {"seed": 3})
    assert (made.loss.name, made.loss.class_weights, made.data.imbalance, made.model) == (
        "cross_entropy",
        "none",
        "none",
        "vanilla_cnn",
    )


def test_a_mistake_in_the_course_s_layout_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(COURSE.replace("1e-2", "fast"))
    with pytest.raises(UsageError, match=r"optim.lr = 'fast' \(.*line 3\)"):
        recipes.resolve(str(tmp_path / "config.yaml"), {})
    (tmp_path / "config.yaml").write_text(COURSE.replace("momentum", "momentm"))
    with pytest.raises(UsageError, match=r"'Train.momentm' \(.*line 8\)"):
        recipes.resolve(str(tmp_path / "config.yaml"), {})
