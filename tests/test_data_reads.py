"""Every row of the table of images and data sets that zoo reads or rejects."""

from __future__ import annotations

import re
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest
from data_cases import check
from PIL import Image, features
from reads_cases import Case
from reads_data import CASES, FILES, IMAGES, NAMES, READ, SETS, parquet

from zoo import registry
from zoo.data import list as image_list
from zoo.data._image import read_image
from zoo.data._read import read
from zoo.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.input)
def test_an_image(case: Case, tmp_path: Path) -> None:
    needed = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}.get(case.input.partition(" ")[0])
    if needed and not features.check(needed):
        pytest.skip(f"this Pillow has no {needed}")
    path = tmp_path / "image"
    case.write(path)
    if case.code:
        with pytest.raises(DataError, match=case.does) as caught:
            read_image(path)
        assert caught.value.code == case.code
        assert str(path) in str(caught.value)
        return
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.shape in ((4, 6, 3), (6, 4, 3), (16, 16, 3)) or "ICO" in case.input
    assert (pixels.shape[0] > pixels.shape[1]) == (case.does != READ)


def test_odd_metadata_prints_no_library_s_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for case in (case for case in IMAGES if case.input.startswith("EXIF")):
        for split, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            case.write(folder / f"{case.input}.jpg")
    read("folder", tmp_path / "pets", size=32, val=0.2, seed=0)
    assert [str(warning.message) for warning in recwarn if warning.category is UserWarning] == []


@pytest.mark.parametrize("case", SETS, ids=lambda case: case.input)
def test_a_set(case: Case, tmp_path: Path) -> None:
    if "parquet" in case.input.lower():
        pytest.importorskip("pyarrow")
    path = tmp_path / "pets"
    written = case.write(path)
    name, place = registry.data_source(str(written if isinstance(written, Path) and written.is_file() else path))
    if case.code:
        with pytest.raises(DataError, match=case.does) as caught:
            read(name, place, size=7, val=0.2, seed=0)
        assert caught.value.code == case.code
        assert len(re.sub(r"/\S+", "", str(caught.value))) <= 200
        assert "\n" not in str(caught.value)
        return
    data = read(name, place, size=7, val=0.2, seed=0)
    check(data)
    assert data.train.images.shape[1:] == (8, 8, 3)
    assert len(data.classes) == (3 if "called train" in case.input else 4 if "only in case" in case.input else 2)
    assert re.search(case.does, " | ".join(data.notes)), data.notes
    assert bool(data.notes) == bool(case.does), data.notes


def test_a_parquet_list_without_its_reader_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "l.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        UsageError, match=r"a Parquet list needs pyarrow \(.*l\.parquet\); install it with: pip install pyarrow"
    ):
        read("list", tmp_path / "l.parquet", size=7, val=0.2, seed=0)


def test_a_parquet_list_of_equal_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(image_list, "MOST_ROWS", 19)
    path = parquet(path=FILES, label=NAMES)(tmp_path / "pets")
    with pytest.raises(DataError, match="list is too long .*20 rows"):
        read("list", path, size=7, val=0.2, seed=0)


def test_the_table_is_large_and_has_no_row_twice() -> None:
    assert len(CASES) >= 60
    assert len({(case.kind, case.input) for case in CASES}) == len(CASES)


def test_the_page_is_as_the_tables_are() -> None:
    pytest.importorskip("onnxruntime")
    path = Path(__file__).resolve().parent.parent / "tools" / "reads"
    loader = SourceFileLoader("reads", str(path))
    module = module_from_spec(spec_from_loader("reads", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "update it with: tools/reads"


def test_the_range_of_floats_is_one_for_all_arrays_of_a_file(tmp_path: Path) -> None:
    images = np.linspace(0, 1, 20 * 8 * 8 * 3, dtype=np.float32).reshape(20, 8, 8, 3)
    over = images.copy()
    over[-1, 0, 0, 0] = 1.01
    labels = np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=over, y_test=labels)
    data = read("npz", tmp_path / "a.npz", size=7, val=0.0, seed=0)
    assert "floats of 0 to 1.01: 1 is white, values above it are cut off" in data.notes
    assert np.array_equal(data.test.images[:19], data.train.images[:19])
    assert data.test.images[19].max() == 255


def test_numbers_of_equal_value_keep_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_list, "set", list, raising=False)  # the order of a set changes with each start of Python
    for names in (["01", "1", "2"], ["1", "2", "01"], ["2", "01", "1"]):
        assert image_list._in_order(names) == ["01", "1", "2"]


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)


@pytest.mark.parametrize(
    ("head", "line", "names", "end"),
    [
        ("path;label;notes, free", "a/{}.png;{};x", ("ant, adult", "bee"), ""),
        ("", "a/{}.png;{}", ("ant, adult", "bee"), ""),
        ("path,label", "a/{}.png,{}", ("ant", "bee"), "\n,\n , \n"),
        ("path;label", "a\\{}.png;{}", ("ant", "bee"), "\n;\n"),
        ("path,label", "a/{}.png,{}", ("K\u00e4fer", "bee", "Ka\u0308fer"), ""),
    ],
    ids=["a comma in the header", "a comma in a label", "empty lines", "backslashes", "two spellings of an accent"],
)
def test_lists_as_spreadsheets_write_them(tmp_path: Path, head: str, line: str, names: tuple[str, ...], end: str) -> None:
    pictures(tmp_path, *(f"a/{number}.png" for number in range(12)))
    lines = [head] * bool(head) + [line.format(number, names[number % len(names)]) for number in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + end, encoding="utf-8-sig")
    listings, found, _ = image_list.listed(tmp_path / "list.csv")
    assert found == sorted(names[:2])
    assert sum(len(each.paths) for each in listings.values()) == 12
    assert all(Path(path).is_file() for each in listings.values() for path in each.paths)


def test_an_unknown_header_is_no_class_if_the_first_image_is_missing(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"a/{number}.png" for number in range(12)))
    rest = "".join(f"a/{number}.png;{'ant' if number % 2 else 'bee'}\n" for number in range(12))
    for first in ("a/gone.png", "a\\gone.png"):
        (tmp_path / "list.csv").write_text(f"Dateiname;Klasse\n{first};ant\n{rest}")
        with pytest.raises(DataError, match=r"no columns path and label \(.*list.csv, Dateiname, Klasse\)"):
            image_list.listed(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text(f"a/gone.png;ant\n{rest}")
    assert image_list.listed(tmp_path / "list.csv")[1] == ["ant", "bee"], "a missing first image is no header"
