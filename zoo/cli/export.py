"""Export a run to ONNX, torch.export or OpenVINO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from zoo.cli._shared import RUN, Finite, Listed, Numbers, UserPath, as_json, data_dir, echo_line, echo_receipt, moved, threads
from zoo.errors import UsageError


def _formats() -> list[str]:
    from zoo import registry

    return [fmt for fmt, _ in registry.targets()]


def _precisions() -> list[str]:
    from zoo import registry

    return [precision for _, precision in registry.targets()]


@click.command("export")
@click.argument("run", required=False, type=RUN)
@click.option(
    "--weights",
    metavar="FILE",
    help="Export the model RUN (zoo models, timm/NAME or FILE.py:NAME) with these weights, without a run.",
)
@click.option("--data", metavar="NAME", help="Data set that provides the test images and the class names (with --weights).")
@click.option(
    "--classes",
    type=UserPath(exists=True, dir_okay=False),
    metavar="FILE",
    help="Text file with one class name per line (with --weights).",
)
@click.option(
    "--mean",
    type=Numbers(),
    default="",
    metavar="R,G,B",
    help="Channel means of the input normalisation that the weights expect (with --weights).",
)
@click.option("--std", type=Numbers(), default="", metavar="R,G,B", help="Channel standard deviations (with --weights).")
@click.option("--onnx", "fmt", flag_value="onnx", default="onnx", help="Write ONNX (default).")
@click.option("--format", "fmt", type=Listed(_formats), help="File format (default: onnx).")
@click.option("--precision", type=Listed(_precisions), default="fp32", show_default=True,
              help="Data type; int8 is calibrated on training images.")  # fmt: skip
@click.option("--preprocess", type=click.Choice(["none", "normalize", "full"]), default="normalize", show_default=True,
              help="Preprocessing in the file: none, normalisation, or everything (uint8 images of any size).")  # fmt: skip
@click.option("--softmax", is_flag=True, help="Output probabilities instead of logits.")
@click.option("--external-data", is_flag=True, help="Write the weights to a second file (automatic above 2 GB).")
@click.option("--opset", type=int, help="ONNX operator set, 18 to 23 (default: 20).")
@click.option(
    "--target-ort",
    metavar="VERSION",
    help="Use the newest operator set, up to the default, that this onnxruntime version reads, for example 1.17.",
)
@click.option("--max-drop", type=Finite(0),
              help="Largest drop in test accuracy with fp16 or int8, in points (default: 0.5); int8 keeps sensitive layers in float32 to stay within it.")  # fmt: skip
@click.option(
    "--reduce-range",
    is_flag=True,
    help="Store int8 weights with 7 bits, for x86 CPUs without VNNI (AMD before Zen 4, Intel before about 2020).",
)
@click.option(
    "--fastest", is_flag=True, help="Measure each format and precision on this machine; write the fastest within --max-drop."
)
@click.option("--images", type=click.IntRange(1), default=1000, show_default=True, metavar="N",
              help="Number of test images, from all classes, to compare with PyTorch.")  # fmt: skip
@click.option("--full-test", is_flag=True,
              help="Measure the accuracy of an fp32 file on all test images, as is always done for int8 and fp16.")  # fmt: skip
@click.option("--explain", is_flag=True, help="Write a table and a figure of each layer's error next to the file.")
@click.option(
    "--out",
    type=UserPath(),
    help="Output file (default: in the run folder, such as model.onnx or model.int8.onnx; with --weights, in the current folder).",
)
@click.option("--web", type=UserPath(), metavar="DIR", help="Write a page that classifies images in the browser.")
@click.option("--triton", type=UserPath(), metavar="DIR", help="Write a model repository for NVIDIA Triton.")
@click.option("--hub", type=UserPath(), metavar="DIR", help="Write a folder in the layout of the Hugging Face Hub (of a run).")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--skip-bad", is_flag=True, help="Skip images that cannot be read; compare on the others.")
@data_dir
@threads
@as_json
def command(
    run: str | None, fmt: str, out: Path | None, as_json: bool, skip_bad: bool, data_dir: Path | None, **options: Any
) -> None:
    """Export a run to a file verified against PyTorch.

    RUN is a run folder, a run's name or a unique prefix of it (default: the latest run), or hf:OWNER/NAME; with --weights, it is a
    model. If the outputs differ from PyTorch's, no file is written (exit 8).

    \b
    zoo export --onnx
    zoo export cifar10-resnet32 --precision int8 --max-drop 0.3
    zoo export my_net.py:Net --weights net.pth --data photos
    """
    from zoo import console, registry, run_folders

    fastest = options.pop("fastest")
    folders = {name: options.pop(name) for name in ("web", "triton", "hub")}
    place, chosen = next(((name, folder) for name, folder in folders.items() if folder), ("", None))
    if sum(map(bool, (*folders.values(), out))) > 1:
        raise UsageError("--out, --web, --triton and --hub are mutually exclusive; give one of them")
    only_onnx = {key: options.pop(key) for key in ("opset", "target_ort", "external_data")}
    if fmt != "onnx" and chosen:
        raise UsageError(f"--{place} needs an ONNX file (format {fmt}); omit --format")
    if fmt != "onnx" and any(only_onnx.values()):
        raise UsageError(f"--opset, --target-ort and --external-data apply to ONNX only (format {fmt}); omit them")
    if fastest:
        _check_fastest(fmt, chosen or out, options, only_onnx)
    elif options["precision"] == "fp32" and options["max_drop"] is not None:
        raise UsageError("--max-drop applies to --precision fp16 or int8 and to --fastest; give one of them, or omit it")
    options["max_drop"] = 0.5 if options["max_drop"] is None else options["max_drop"]
    described = {key: options.pop(key) for key in ("weights", "data", "classes", "mean", "std")}
    _check_described(run, described, "fastest" if fastest else place if place == "hub" else "")
    if not described["weights"]:
        folder = run_folders.find(run)
        console.print_line(f"run      {folder}")
    import zoo.export
    from zoo import machine
    from zoo.run import load

    machine.use_threads()
    if described["weights"]:
        loaded, side = _with_weights(str(run), described, options, data_dir, skip_bad=skip_bad)
        out = out or Path(_stem(str(run)) + registry.targets()[fmt, options["precision"]]["suffix"])
        if place == "triton":
            options["name"] = _stem(str(run))
    else:
        loaded = moved(load(folder, skip_bad=skip_bad), data_dir)
        side = loaded.input[1]
    if fastest:
        receipt = _fastest(loaded, options, as_json=as_json)
    elif chosen:
        receipt = _placed(place, loaded, chosen, only_onnx | options)
    elif fmt == "onnx":
        receipt = zoo.export.onnx(loaded, out, **only_onnx, **options)
    else:
        receipt = zoo.export.program(loaded, out, fmt=fmt, **options)
    _show(receipt, 0 if chosen else side, as_json=as_json)


def _show(receipt: Any, side: int, *, as_json: bool) -> None:
    """Print the receipt, the table of layers and TensorRT's command, if any (for images of ``side`` pixels; 0: none)."""
    from zoo import console, tables
    from zoo.export import _tensorrt

    if receipt.layers and not as_json:
        columns = ("layer", "kind", "sqnr", "sqnr_alone")
        heads = ("layer", "kind", "SQNR of output, dB", "SQNR of logits, this layer alone, dB")
        tables.out().print(tables.make(heads, [[str(row[key]) for key in columns] for row in receipt.layers]))
    if side and (line := _tensorrt.command(receipt, side)):
        console.print_line(f"tensorrt {line}")
    if as_json:
        echo_line(json.dumps(receipt.as_dict()))
    else:
        echo_receipt(receipt)


def _check_described(run: str | None, described: dict[str, Any], other: str) -> None:
    """UsageError for options that describe a model without a run, if they are incomplete or do not go with an option ``other``."""
    named = [key for key, value in described.items() if value]
    if named and not described["weights"]:
        raise UsageError(f"--{named[0]} describes a model without a run; give its --weights too, or omit it")
    if named and run is None:
        raise UsageError("--weights needs a model, e.g. zoo export resnet32 --weights FILE, or FILE.py:NAME for your own")
    if named and other:
        raise UsageError(
            f"--{other} needs a run, and --weights exports a model without one; train or fine-tune it first, or omit --{other}"
        )


def _with_weights(
    name: str, described: dict[str, Any], options: dict[str, Any], data_dir: Path | None, *, skip_bad: bool
) -> tuple[Any, int]:
    """The model ``name`` with weights, and the side of its images; adds what describes it to the options of the export."""
    from zoo.export import _foreign

    known = {
        "data": described["data"] or "",
        "labels": described["classes"],
        "mean": described["mean"],
        "std": described["std"],
    }
    place = str(data_dir) if data_dir else ""
    made, given = _foreign.model(
        name,
        described["weights"],
        data_dir=place,
        images=options["images"],
        skip_bad=skip_bad,
        calibrated=options["precision"] == "int8",
        **known,
    )
    options |= given
    return made, given["input"][1]


def _stem(name: str) -> str:
    """The name of a file or folder for a model without a run: the model's, without its place."""
    return name.rpartition("/")[2].removesuffix(".py").rpartition(":")[2]


def _placed(place: str, model: Any, folder: Path, options: dict[str, Any]) -> Any:
    """Write the folder for ``place``: web, triton or hub."""
    import importlib

    if place == "web":
        del options["preprocess"], options["softmax"]  # the page has its own
    return importlib.import_module(f"zoo.export._{place}").write(model, folder, **options)


def _check_fastest(fmt: str, out: Path | None, options: dict[str, Any], only_onnx: dict[str, Any]) -> None:
    """UsageError for options that select one particular file."""
    chosen = (out, options["explain"], options["reduce_range"], *only_onnx.values())
    if fmt != "onnx" or options["precision"] != "fp32" or any(chosen):
        raise UsageError("--fastest chooses format, precision and file name; omit the options that set them")


def _fastest(run: Any, options: dict[str, Any], *, as_json: bool) -> Any:
    """Write the fastest file and print the measurements."""
    from zoo import tables
    from zoo.bench import _fastest

    kept = {key: options[key] for key in ("preprocess", "softmax", "max_drop", "force", "images", "full_test")}
    receipt, rows = _fastest.fastest(run, **kept)
    if not as_json:
        heads = ("format", "precision", "ms per image", "drop (points)", "chosen")
        tables.out().print(tables.make(heads, [[str(value) for value in row.values()] for row in rows]))
    return receipt
