"""Shared fixtures: a clean place for runs and caches, one small trained run, and real images if available."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # one core per worker: the threads of two workers on the same cores would mostly wait for each other
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
SHARED = ROOT.parent / "shared" / "data"
TINY = ["epochs=1", "batch_size=250", "data.name=synthetic", "data.imbalance=exp:0.05", "device=cpu"]


def zoo_command(*words: str, cwd: Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``zoo`` in a fresh process, as a user would."""
    command = [sys.executable, "-m", "zoo", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


# a shell starts background jobs with SIGINT ignored; zoo leaves an ignored signal ignored, so tests of signals begin without
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.fixture(scope="session", autouse=True)
def quiet_places(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep caches and runs of the tests out of the user's folders."""
    os.environ["ZOO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["ZOO_RUNS"] = str(tmp_path_factory.mktemp("runs"))
    os.environ.setdefault("NO_COLOR", "1")
    os.environ["COLUMNS"] = "100"


@pytest.fixture(scope="session", autouse=True)
def painted_once() -> Iterator[None]:
    """Paint the built-in images once per process, for the hundreds of runs that train on them."""
    from zoo.data import synthetic

    paint = functools.cache(synthetic.make)

    def copied(n: int, stream: int, side: int = synthetic.SIDE) -> tuple[np.ndarray, np.ndarray]:
        images, targets = paint(n, stream, side)
        return images.copy(), targets.copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "make", copied)
        yield


@pytest.fixture(scope="session", autouse=True)
def drawn_once() -> Iterator[None]:
    """Draw the pictures of the first run that ends in a process; later runs get copies of them, unless they were profiled.

    Pictures take half of the time of a short run. The tests of reports, and runs in other processes, draw every picture.
    """
    from zoo import files, report
    from zoo.training import start

    first: dict[str, bytes] = {}

    def figures(folder: Path) -> list[Path]:
        if not first or (folder / "profile.csv").is_file():
            made = report.figures(folder)
            first.update({path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".svg")})
            return made
        for name, content in first.items():
            files.publish(folder / name, lambda temporary, content=content: temporary.write_bytes(content))
        return [folder / name for name in first if name.endswith(".png")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "report", SimpleNamespace(**vars(report) | {"figures": figures}))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Fix the number of threads: it must not change between runs that are compared bit by bit."""
    from zoo import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "cores", lambda: 1)
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked gpu, with the reason, on a machine without a GPU."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")


@pytest.fixture(params=["formula", "default", "avx2", "avx512"])
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each available implementation of the focal loss op, used by all of zoo.ops."""
    with served_by(request.param):
        yield request.param


@pytest.fixture(
    params=["formula", "kernels", *(pytest.param(name, marks=pytest.mark.slow) for name in ("default", "avx2", "avx512"))]
)
def served_quickly(request: pytest.FixtureRequest) -> Iterator[str]:
    """As ``served``, for long tests of the code above the kernels: the formula and the kernels of this CPU; each instruction set is slow."""
    with served_by(request.param):
        yield request.param


@contextlib.contextmanager
def served_by(name: str) -> Iterator[None]:
    """Compute the focal loss op by the formula or by the kernels of one instruction set; skip if these are missing."""
    import torch
    from ops_cases import FALLBACK, SETS

    from zoo import ops
    from zoo.focal_formula import formula_in_place

    if name == "kernels" and ops._C is not None:
        name = ops._C.capability(None)
    if name not in SETS:
        pytest.skip(f"no {name} kernel here: {ops.kernel()}")
    if name == FALLBACK:
        with torch.library._scoped_library("zoo", "IMPL") as library, pytest.MonkeyPatch.context() as patch:
            library.impl("focal_loss", ops.formula, "CPU", allow_override=True)
            library.impl("focal_loss_", formula_in_place, "CPU", allow_override=True)
            patch.setattr(ops, "_C", None)
            yield
        return
    assert ops._C is not None
    before = ops._C.capability(None)
    ops._C.capability(name)
    yield
    ops._C.capability(before)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two short epochs on the built-in images."""
    from zoo import recipe, training

    overrides = dict(recipe.parse_override(text) for text in TINY) | {"epochs": 2, "data.augment": ["crop"]}
    return training.train(recipe.resolve("cnn_small", overrides), out=tmp_path_factory.mktemp("run") / "small")


@pytest.fixture(scope="module")
def small_plain(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one short epoch on one thread, as a reference for other runs."""
    from tests_support import small

    from zoo import training

    return training.train(small(), out=tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every 50th image of the real CIFAR-10 (1,200), or a skip that names what is missing."""
    archive = SHARED / "cifar10.tar.gz"
    if not archive.is_file():
        pytest.skip("real images are not here (shared/data/cifar10.tar.gz beside the checkout)")
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(archive) as tar:
        files = [member for member in tar if member.isfile()]
        tar.extractall(folder, members=files[::50], filter="data")
    return folder / "cifar10"
