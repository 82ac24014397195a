"""Images and data sets as users have them, and what zoo does with each."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data_cases import noise, tree
from PIL import Image
from reads_cases import Case

READ = "read"
"""The result for an image that is read without a message."""


def picture(form: str, mode: str = "RGB", **options: Any) -> Callable[[Path], object]:
    """Write an image of 6 x 4 pixels under a name without a suffix of its format."""
    return lambda path: Image.fromarray(noise(0)[:4, :6]).convert(mode).save(path, form, **options)


def values(kind: Any, top: float) -> Callable[[Path], object]:
    """Write a grey TIFF with another type than 8 bits."""
    return lambda path: Image.fromarray(np.linspace(0, top, 24).reshape(4, 6).astype(kind)).save(path, "TIFF")


def exif(content: bytes) -> Callable[[Path], object]:
    """Write a JPEG with this EXIF block."""
    return lambda path: Image.fromarray(noise(0)[:4, :6]).save(path, "JPEG", exif=b"Exif\0\0" + content)


def tags(*entries: tuple[int, int, int, int]) -> bytes:
    """A little-endian TIFF block of the entries (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def content(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


def cut(form: str, share: float) -> Callable[[Path], object]:
    """Write the first part of an image file."""

    def write(path: Path) -> None:
        buffer = io.BytesIO()
        Image.fromarray(noise(0)).save(buffer, form)
        path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])

    return write


def bomb(path: Path) -> None:
    """A PNG whose header declares 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x") + chunk(b"IEND", b""))


ORIENTATION = (0x0112, 3, 1, 6)
IMAGES = [
    *(Case("image", f"{form} with any file name", READ, picture(form)) for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "ICO")),
    *(Case("image", f"{form} with any file name, if Pillow supports it", READ, picture(form)) for form in ("AVIF", "JPEG2000")),
    *(Case("image", f"PNG in Pillow's mode {mode}", READ, picture("PNG", mode)) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
    Case("image", "CMYK JPEG", READ, picture("JPEG", "CMYK")),
    Case("image", "int32 TIFF of 0 to 255", READ, values(np.int32, 255)),
    Case("image", "int32 TIFF of 0 to 65535", READ, values(np.int32, 65535)),
    Case("image", "int32 TIFF of 0 to 100,000", "grey values up to 100,000", values(np.int32, 100_000), 3),
    Case("image", "float TIFF of 0 to 1", READ, values(np.float32, 1)),
    Case("image", "float TIFF of 0 to 255", READ, values(np.float32, 255)),
    Case("image", "EXIF with orientation 6", "turned upright", exif(tags(ORIENTATION))),
    Case("image", "EXIF with a tag of an unknown type", READ, exif(tags((0x010F, 77, 9, 1)))),
    Case("image", "EXIF with a tag of an unknown type and orientation 6", "turned upright", exif(tags((0x010F, 77, 9, 1), ORIENTATION))),
    Case("image", "EXIF with a tag that points outside of the block", READ, exif(tags((0x010F, 2, 4000, 90_000)))),
    Case("image", "EXIF with text as orientation", READ, exif(tags((0x0112, 2, 4, 0x36363636)))),
    Case("image", "EXIF that is truncated", READ, exif(tags(ORIENTATION)[:11])),
    Case("image", "EXIF block with other data", READ, exif(b"nonsense" * 9)),
    Case("image", "empty file", "empty file", content(b""), 3),
    Case("image", "web page", "not an image .*a web page", content(b"<!DOCTYPE html><html>"), 3),
    Case("image", "SVG", "not an image .*a web page", content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 3),
    Case("image", "PostScript, which could run a program", "not an image", content(b"%!PS-Adobe-3.0 EPSF-3.0\n"), 3),
    Case("image", "JPEG without its second half", "truncated image", cut("JPEG", 0.5), 3),
    Case("image", "PNG without its second half", "truncated image", cut("PNG", 0.5), 3),
    Case("image", "PNG of 30,000 x 30,000 pixels", "image too large", bomb, 3),
    Case("image", "folder with the name of an image", "not a regular file .*a folder", lambda path: path.mkdir(), 3),
]  # fmt: skip


def layout(*splits: str, classes: tuple[str, ...] = ("cat", "dog")) -> Callable[[Path], object]:
    return lambda path: tree(path, splits=splits, classes=classes, n=10, side=8)


def both(first: Callable[[Path], object], then: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: (first(path), then(path))


def images_in(*names: str) -> Callable[[Path], object]:
    """Write folders of images with these names."""
    return layout(".", classes=names)


def listing(name: str, *lines: str) -> Callable[[Path], object]:
    """A list next to class folders; the test reads the list."""

    def write(path: Path) -> Path:
        tree(path, splits=("img",), n=10, side=8)
        (path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path / name

    return write


def parquet(**columns: Any) -> Callable[[Path], object]:
    """A Parquet list next to class folders."""

    def write(path: Path) -> Path:
        import pyarrow
        from pyarrow import parquet

        tree(path, splits=("img",), n=10, side=8)
        parquet.write_table(pyarrow.table(columns), path / "l.parquet")
        return path / "l.parquet"

    return write


def arrays(**given: Any) -> Callable[[Path], object]:
    def write(path: Path) -> Path:
        path.mkdir()
        np.savez(path / "a.npz", **given)
        return path / "a.npz"

    return write


FILES, NAMES = zip(*((f"img/{name}/{number}.png", name) for name in ("cat", "dog") for number in range(10)))
LINES = [f"img/{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(10)]
GREY = np.stack([noise(seed, 8)[..., 0] for seed in range(20)])
COLOUR = np.stack([noise(seed, 8) for seed in range(20)])
LABELS = np.arange(20) % 2
PLACED = "folders of .*: "
SETS = [
    Case("folder", "train/ test/", "", layout("train", "test")),
    Case("folder", "train/ val/ test/", "", layout("train", "val", "test")),
    Case("folder", "train/ valid/ test/ (Roboflow)", PLACED + "valid/ is val", layout("train", "valid", "test")),
    Case("folder", "train/ validation/", "validation/ is the test set", layout("train", "validation")),
    Case("folder", "Train/ Test/", PLACED + "Test/ is test, Train/ is train|Train/ is train, Test/ is test", layout("Train", "Test")),
    Case("folder", "training/ testing/", "training/ is train", layout("training", "testing")),
    Case("folder", "training_set/ test_set/ (Kaggle)", "training_set/ is train", layout("training_set", "test_set")),
    Case("folder", "train-images/ eval/", "eval/ is the test set", layout("train-images", "eval")),
    Case("folder", "class folders with train/ and test/ in them", "splits inside of a class .*arrange the folders as",
         layout("cat", "dog", classes=("train", "test")), 3),
    Case("folder", "train/ alone", "no test folder", layout("train")),
    Case("folder", "class folders", "no test folder", layout(".")),
    Case("folder", "class folders with subfolders", "in subfolders of class folders", layout("cat", "dog", classes=("patient 1", "patient 2"))),
    Case("folder", "class folders, one called train", "no test folder", images_in("bus", "car", "train")),
    Case("folder", "archive/ with train/ test/ in it", "has only archive/", layout("archive/train", "archive/test")),
    Case("folder", "train/ test/ and holdout/ with folders", PLACED + "holdout/ is ignored",
         layout("train", "test", "holdout")),
    Case("folder", "train/ test/ with images instead of class folders", "splits or classes.*data.layout=", images_in("train", "test"), 3),
    Case("folder", "train/ test/ and folders of images", "splits or classes.*data.layout=",
         both(layout("train", "test"), images_in("bus", "car")), 3),
    Case("folder", "train/ test/ and Test/", "2 folders of one split", layout("train", "test", "Test"), 3),
    Case("folder", "val/ test/ without train/", "splits or classes.*data.layout=", layout("val", "test"), 3),
    Case("list", "CSV with the header path,label", "no split column", listing("l.csv", "path,label", *LINES)),
    Case("list", "CSV without a header", "no split column", listing("l.csv", *LINES)),
    Case("list", "CSV with other column names and more columns", "no split column",
         listing("l.csv", "id,Filename,Class", *(f"7,{line}" for line in LINES))),
    Case("list", "TSV", "no split column", listing("l.tsv", *(line.replace(",", "\t") for line in ["path,label", *LINES]))),
    Case("list", "CSV with semicolons", "no split column",
         listing("l.csv", *(line.replace(",", ";") for line in ["path,label", *LINES]))),
    Case("list", "CSV with the column split", "", listing("l.csv", "path,label,split",
         *(f"{line},{'train' if at % 2 else 'test'}" for at, line in enumerate(LINES)))),
    Case("list", "CSV with an unknown split", "no split 'dev2'", listing("l.csv", "path,label,split", *(f"{line},dev2" for line in LINES)), 3),
    Case("list", "CSV with an image twice", "image listed twice", listing("l.csv", "path,label", *LINES, LINES[0]), 3),
    Case("list", "CSV with a missing image", "1 of 21 images cannot be read", listing("l.csv", *LINES, "img/no.png,cat"), 3),
    Case("list", "CSV without a label", "no label", listing("l.csv", "path,label", *LINES, "img/cat/0.png,"), 3),
    Case("list", "CSV with labels that differ only in case", r"4 classes differ only in case \(CAT, DOG, cat, dog\): not merged",
         listing("l.csv", *(line[: line.rfind(",")] + (line[line.rfind(",") :].upper() if at % 2 else line[line.rfind(",") :])
                            for at, line in enumerate(LINES)))),
    Case("list", "CSV of one class", "too few classes in the list", listing("l.csv", *LINES[:10]), 3),
    Case("list", "empty CSV", "list is empty", listing("l.csv", ""), 3),
    Case("list", "Parquet with path and label", "no split column", parquet(path=FILES, label=NAMES)),
    Case("list", "Parquet with numbers as labels and the column split", "",
         parquet(Path=FILES, Label=[0] * 10 + [1] * 10, split=["train", "test"] * 10)),
    Case("list", "Parquet without a label in one row", "no label", parquet(path=FILES, label=[*NAMES[:19], None]), 3),
    Case("list", "Parquet with image data", "column image is not text",
         parquet(image=[{"bytes": b"x", "path": name} for name in FILES], label=NAMES), 3),
    Case("list", "Parquet without these columns", "no columns path and label", parquet(a=FILES, b=NAMES), 3),
    Case("list", "Parquet without rows", "list is empty", parquet(path=[], label=[]), 3),
    Case("list", "text file named .parquet", "cannot read the list.*must be a Parquet file", listing("l.parquet", *LINES), 3),
    Case("arrays", ".npz with x and y", "no test arrays", arrays(x=COLOUR, y=LABELS)),
    Case("arrays", ".npz with channels first", "no test arrays", arrays(x=COLOUR.transpose(0, 3, 1, 2), y=LABELS)),
    Case("arrays", ".npz with floats of 0 to 1", "no test arrays", arrays(x=COLOUR / 255, y=LABELS)),
    Case("arrays", ".npz of grey images", "grey images: repeated to 3 channels", arrays(x=GREY, y=LABELS)),
    Case("arrays", ".npz with the keys of MedMNIST", "grey images",
         arrays(train_images=GREY, train_labels=LABELS[:, None], val_images=GREY[:8], val_labels=LABELS[:8, None],
                test_images=GREY[8:], test_labels=LABELS[8:, None])),
    Case("arrays", ".npz with x_train, y_train, x_test, y_test", "",
         arrays(x_train=COLOUR[:12], y_train=LABELS[:12], x_test=COLOUR[12:], y_test=LABELS[12:])),
    Case("arrays", ".npz with floats of 0 to 1 and of 0 to 255", "arrays have different ranges .*x_train up to 1, x_test up to 255",
         arrays(x_train=COLOUR / COLOUR.max(), y_train=LABELS, x_test=COLOUR / COLOUR.max() * 255.0, y_test=LABELS), 3),
    Case("arrays", ".npz with integers of 0 and 1", "x has integers up to 1, almost black", arrays(x=COLOUR // 128, y=LABELS)),
    Case("arrays", ".npz with X_train, y_train and class_names", "no test arrays",
         arrays(X_train=COLOUR, y_train=LABELS, class_names=np.array(["cat", "dog"]))),
    Case("arrays", ".npz with labels from 1 on", "labels begin at 1 .*subtract 1", arrays(x=COLOUR, y=LABELS + 1), 3),
    Case("arrays", ".npz with one name for two classes", "class names do not fit", arrays(x=COLOUR, y=LABELS, classes=np.array(["cat"])), 3),
    Case("arrays", ".npz with other names", "no images and labels", arrays(a=COLOUR, b=LABELS), 3),
    Case("arrays", ".npz with objects (pickles)", "cannot read the arrays", arrays(x=np.array([{}]), y=LABELS), 3),
    Case("arrays", ".npz with values up to 1,000", "pixels out of range", arrays(x=COLOUR * 4.0, y=LABELS), 3),
    Case("arrays", ".npz with NaN", "pixels out of range", arrays(x=np.where(COLOUR > 9, COLOUR, np.nan), y=LABELS), 3),
    Case("arrays", ".npz with a negative label", "not labels", arrays(x=COLOUR, y=LABELS - 1), 3),
]  # fmt: skip
CASES = [*IMAGES, *SETS]
