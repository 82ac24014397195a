"""``zoo export --hub DIR``: a folder in the layout of the Hugging Face Hub, with a model card with the measured metrics."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from zoo import calibration, files, model_files, recipe, tensor_files
from zoo.console import print_line
from zoo.errors import FileError, UsageError
from zoo.export import Receipt, _guard, _job, _web, _wire, onnx


def write(run: Any, folder: Path, *, force: bool = False, **options: Any) -> Receipt:
    """``model.safetensors``, ``config.json``, ``recipe.toml``, ``README.md`` (the card) and ``model.onnx`` of a run, and its ``calibration.json`` if it has one.

    Args:
        options: those of :func:`zoo.export.onnx`.

    Raises:
        As :func:`zoo.export.onnx`; FileError if the run has no weights file; UsageError if huggingface_hub is not installed.
    """
    card = _cards()
    weights = run.path / "weights.safetensors"
    if not weights.is_file():
        raise FileError(f"no weights in the run ({run.path}); train it first")
    _web.check_free(folder, force=force)
    with files.as_disk_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    options |= {"full_test": True}  # the card reports this accuracy as that of the test set
    receipt = onnx(run, folder / "model.onnx", force=force, **options)
    public = _job.public(run.recipe)
    _publish_weights(weights, folder / "model.safetensors", run.recipe.model, public.model)
    if run.temperature != 1:
        files.publish(folder / calibration.FILE, partial(shutil.copyfile, run.path / calibration.FILE))
    files.publish_text(folder / "config.json", json.dumps(config(run), indent=1, ensure_ascii=False) + "\n")
    files.publish_text(folder / "recipe.toml", recipe.dump(public))
    files.publish_text(folder / "README.md", _card(card, run, receipt))
    if _is_code(run):
        print_line(f"hub      the code of the model ({public.model}) is not in the folder: others can use model.onnx only")
    print_line(f"hub      upload it with: hf upload OWNER/NAME {folder}")
    return receipt


def _publish_weights(source: Path, out: Path, model: str, public: str) -> None:
    """Copy the weights of a run, whose header names the ``model``."""
    if public == model:
        files.publish(out, partial(shutil.copyfile, source))
        return
    tensors, meta = tensor_files.load_tensors(source)
    tensor_files.save_tensors(out, tensors, meta | {"model": public})


def _is_code(run: Any) -> bool:
    return model_files.is_file(run.recipe.model)


def config(run: Any) -> dict[str, Any]:
    """Architecture, classes and preprocessing under the names that Hub tools read."""
    return {
        "architectures": [_job.public(run.recipe).model], "library_name": "zoo", "num_classes": len(run.classes), "input_size": list(run.input),
        "mean": list(run.mean), "std": list(run.std), "id2label": {str(number): name for number, name in enumerate(run.classes)},
    }  # fmt: skip


def _cards() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UsageError("huggingface_hub is not installed; install it: pip install huggingface_hub") from error
    return huggingface_hub


def _card(hub: Any, run: Any, receipt: Receipt) -> str:
    """The card: metadata with the metrics of the test set, and a short description."""
    results = []
    name = _job.public(run.recipe).model
    if receipt.test:
        results = [
            hub.EvalResult(
                task_type="image-classification", dataset_type=run.recipe.data.name, dataset_name=run.recipe.data.label,
                dataset_split="test", metric_type="accuracy", metric_value=round(receipt.test["accuracy"], 6),
            )
        ]  # fmt: skip
    data = hub.ModelCardData(
        library_name="zoo", pipeline_tag="image-classification", tags=["onnx", "safetensors"], model_name=name,
        eval_results=results or None,
    )  # fmt: skip
    accuracy = "not measured"
    if receipt.test:
        found = receipt.test
        accuracy = f"{100 * found['accuracy']:.2f} % [{100 * found['low']:.2f}, {100 * found['high']:.2f}] on {found['n']:,} test images"
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {name} on {run.recipe.data.label}\n\n"
        f"{len(run.classes)} classes, input {' x '.join(map(str, run.input))}, accuracy {accuracy}."
        + (f" The training was not finished ({run.unfinished})." if run.unfinished else "")
        + "\n\n"
        f"`model.onnx` is verified against PyTorch: {receipt.agree:,} of {receipt.n:,} classes agree, largest difference of a logit "
        f"{receipt.max_abs:.1e} standard deviations ({receipt.images}). `recipe.toml` has the settings of the run.\n\n"
        f"{_usage(run, receipt)}"
        + (
            f"\nThe code of the model ({name}) is not part of this folder: without it, only `model.onnx` can be used.\n"
            if _is_code(run)
            else ""
        )
    )


def _usage(run: Any, receipt: Receipt) -> str:
    """How the repository is used, with zoo and without, and its classes."""
    names = ", ".join(run.classes[:100]) + (", ..." if len(run.classes) > 100 else "")
    written = _wire.metadata(memoryview(_guard.read(receipt.path)))
    takes, returns = (
        json.loads(written["preprocessing"])["takes"],
        "probabilities" if written["softmax"] == "true" else "logits",
    )
    return (
        "## Use\n\n```\nzoo predict --run hf:OWNER/NAME image.jpg\nzoo predict --onnx model.onnx image.jpg\n```\n\n"
        f"Without zoo: `model.onnx` takes {takes}, and returns {returns}; its metadata has the class names (`classes`) and the sizes "
        "to which images are resized and cut (`preprocessing`).\n\n"
        f"## Classes\n\n{names}\n"
    )
