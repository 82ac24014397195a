"""``zoo models``, ``zoo losses`` and ``zoo data``: complete, within the width, without slow imports."""

from __future__ import annotations

import json
import tomllib

import pytest
from click.testing import CliRunner
from test_torch_free import loaded_by

from zoo import doctor, recipe, registry
from zoo.__main__ import run as zoo
from zoo.cli import _listing, cli


def shown(kind: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    assert zoo([kind]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("kind", ["models", "losses", "data"])
def test_every_entry_fits(kind: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(kind, width, monkeypatch, capsys)
    assert max(map(len, lines)) <= width
    table = registry.table(kind)
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["name", *table]
    words = " ".join(lines).split()
    for entry in table.values():
        said = f"{entry.get('paper', '')} {entry.get('source', '')} {' '.join(entry.get('weights', ()))}"
        assert [
            word for word in said.split() if word not in words and f"{word}," not in words and f"{word};" not in words
        ] == []


@pytest.mark.parametrize("width", [80, 120])
def test_a_model_is_listed_in_full(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(" ".join(shown("models", width, monkeypatch, capsys)).split())
    assert (
        "resnet50 224x224 23,714,981 4.09G caltech101, folder He et al. 2015, arXiv:1512.03385; weights: "
        "imagenet1k_v2, imagenet1k_v1, timm:a1_in1k" in text
    )
    assert "resnet32 32x32 464,154 68.9M cifar10, cifar100, synthetic He et al. 2015, arXiv:1512.03385" in text


def test_a_pattern_that_nothing_matches_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo(["models", "nothing"]) == 0
    assert capsys.readouterr().out == "nothing matches; see zoo models\n"


@pytest.mark.parametrize("kind", list(_listing.COLUMNS))
def test_a_listing_does_without_rich(kind: str) -> None:
    """Importing rich takes as long as Python and click together."""
    assert loaded_by(kind, before="sys.modules['rich'] = None") == (0, set())


def test_recipes_are_in_columns_and_no_match_is_reported() -> None:
    lines = CliRunner().invoke(cli, ["recipes", "s0_"]).output.splitlines()
    assert len(lines) == 6 and all(line.startswith("s0_") for line in lines)
    everything = CliRunner().invoke(cli, ["recipes"]).output.splitlines()
    assert len({len(line) - len(line.split(" ", 1)[1].lstrip()) for line in everything}) == 1, "the texts begin in one column"
    assert CliRunner().invoke(cli, ["recipes", "nothing"]).output == "nothing matches; see zoo recipes\n"


def test_recipes_as_json_are_whole() -> None:
    listed = json.loads(CliRunner().invoke(cli, ["recipes", "--json"]).output)
    shipped = recipe.shipped()
    assert list(listed) == list(shipped)
    assert listed["s1_ce"]["settings"] == tomllib.loads(shipped["s1_ce"].read_text(encoding="utf-8"))
    assert listed["s1_ce"]["about"].startswith("S1-CE (reported): ")
    assert CliRunner().invoke(cli, ["recipes", "nothing", "--json"]).output == "{}\n"


def test_the_doctor_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "report", lambda: [("timm", "absent", "pip install timm")])
    listed = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).output)
    assert listed == [{"part": "timm", "state": "absent", "detail": "pip install timm"}]
