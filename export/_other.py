"""Targets beside ONNX: write, read back, hold against PyTorch, publish."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

from zoo import files, registry
from zoo.console import print_line
from zoo.errors import DisagreeError
from zoo.export import (
    Receipt,
    _accuracy,
    _cases,
    _graph,
    _parity,
    check_free,
    check_weights,
    onnx_fp32,
)
from zoo.run import Run


def program(
    run: Run, path: Path | None, *, fmt: str, preprocess: str, softmax: bool, force: bool, images: int
) -> Receipt:  # fmt: skip
    """See :func:`zoo.export.program`."""
    began, target = time.monotonic(), importlib.import_module(f"zoo.export.{registry.formats()[fmt]['module']}")
    out = path or run.path / f"model{target.TARGET.suffix}"
    check_free(out, force=force)
    frozen, seen = check_weights(run), _cases.pictures(run, images)
    exported = _graph.of_run(run, stored=seen.stored, preprocess=preprocess, softmax=softmax)
    facts = _graph.metadata(run, exported, opset=onnx_fp32.OPSET, frozen=frozen)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"model{target.TARGET.suffix}"
        print_line(f"trace    {run.recipe.model}, {fmt}, preprocess {preprocess}")
        target.write(exported, made, metadata=facts)
        inner = target.answer(made)

        def answer(part: _cases.np.ndarray) -> _cases.np.ndarray:
            return inner(_cases.fed(part, run, exported))

        cases = _cases.cases(run, exported, seen.pixels)
        parity = _parity.check(cases, answer, tolerance=target.TARGET.tolerance, probabilities=exported.softmax)
        if not parity.holds:
            raise DisagreeError(
                f"exported model differs from PyTorch (max |difference| {parity.max_abs:.2g}, allowed {parity.tolerance:.0e}, other "
                f"class {parity.wrong:,} times, {fmt}); nothing published"
            )
        test = None
        if seen.data is not None and len(seen.data.test):
            test = _accuracy.row(_accuracy.hits(answer, seen.data.test, fmt))
        target.write(exported, made, metadata=facts | {"parity": json.dumps(parity.as_dict()), "test": json.dumps(test)})
        parts = sorted(Path(folder).iterdir(), reverse=True)  # the graph (.xml) before the weights (.bin)
        size, names = sum(each.stat().st_size for each in parts), tuple(out.with_suffix(each.suffix).name for each in parts)
        for each in parts[1:]:
            check_free(out.with_suffix(each.suffix), force=force)
        with files.alone(out):  # lest the graph is one export's and the weights are another's
            for each in parts[1:]:
                # an old graph would be read with the new weights if all ended here
                files.publish(
                    out.with_suffix(each.suffix), partial(shutil.copyfile, each), lambda _: out.unlink(missing_ok=True)
                )
            files.publish(out, partial(shutil.copyfile, parts[0]))
    return Receipt(
        out, size, names, fmt, "fp32", 0, 0, preprocess, _parity.BATCHES, parity.agree, parity.n, parity.ties, parity.max_abs, seen.source,
        round(time.monotonic() - began, 2), test,
    )  # fmt: skip
