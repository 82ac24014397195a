"""The focal loss of numpy arrays: each implementation agrees with the op and needs only its documented packages."""

from __future__ import annotations

import doctest
import itertools
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo.numpy
from zoo import doctor, ops

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("native", "torch", "formula")
GAMMAS = (0.0, 0.5, 1.0, 2.0, 3.3)


def choose(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Use that implementation from now on."""
    if name == "native":
        pytest.importorskip("zoo._native", reason="the extension was not built here")
    if name == "torch" and ops._C is None:
        pytest.skip("the extension was not built here")
    monkeypatch.setattr(zoo.numpy, "_way", lambda: (getattr(zoo.numpy, f"_by_{name}"), name))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    choose(monkeypatch, request.param)
    return request.param


def problem(n: int, c: int, dtype: Any, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels (some of them ignored) and weights."""
    draw = np.random.default_rng(seed)
    target = np.where(draw.random(n) < 0.2, -100, draw.integers(c, size=n))
    return draw.normal(0, 5, (n, c)).astype(dtype), target, draw.uniform(0.5, 2, c)


def by_the_op(logits: np.ndarray, target: np.ndarray, weight: Any = None, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient of zoo.ops in float64."""
    leaf = torch.tensor(logits.astype(np.float64), requires_grad=True)
    goal = torch.tensor(target.astype(np.float64) if target.dtype.kind == "f" else target)
    loss = ops.focal_loss(leaf, goal, weight=None if weight is None else weight.astype(np.float64), **settings)
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach().numpy(), leaf.grad.numpy()


CLOSE: dict[Any, dict[str, float]] = {
    np.float64: {"rtol": 1e-10, "atol": 1e-14}, np.float32: {"rtol": 2e-5, "atol": 1e-7}, np.float16: {"rtol": 2e-3, "atol": 1e-4},
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("reduction", ops.REDUCTIONS)
def test_the_ops_numbers(way: str, dtype: Any, reduction: str) -> None:
    settings = itertools.product(GAMMAS, (0.0, 0.1), (False, True), ((7, 3), (130, 10), (5, 300)))
    for gamma, smoothing, weighted, (n, c) in settings:
        logits, target, weight = problem(n, c, dtype)
        options = {"gamma": gamma, "label_smoothing": smoothing, "reduction": reduction, "scale": 3.0}
        options |= {"weight": weight} if weighted else {}
        loss, grad = zoo.numpy.focal_loss_and_grad(logits, target, **options)
        want, want_grad = by_the_op(logits, target, **options)
        floor = 1e-2 * float(np.abs(want_grad).max()) * CLOSE[dtype]["rtol"] if smoothing else 0.0  # it crosses zero
        np.testing.assert_allclose(loss, want, rtol=CLOSE[np.float32 if dtype is np.float16 else dtype]["rtol"], atol=1e-7)
        np.testing.assert_allclose(grad, want_grad, rtol=CLOSE[dtype]["rtol"], atol=CLOSE[dtype]["atol"] + floor)
        assert grad.dtype == dtype and loss.dtype == (np.float64 if dtype is np.float64 else np.float32)
        assert loss.shape == ((n,) if reduction == "none" else ())
        assert np.array_equal(zoo.numpy.focal_loss(logits, target, **options), loss)


@pytest.mark.parametrize("reduction", ops.REDUCTIONS)
def test_shares_of_the_classes(way: str, reduction: str) -> None:
    for gamma, dtype in itertools.product(GAMMAS, (np.float32, np.float64)):
        logits, _, weight = problem(40, 12, dtype)
        shares = np.random.default_rng(1).dirichlet(np.ones(12), 40).astype(np.float32)
        options = {"gamma": gamma, "weight": weight, "label_smoothing": 0.1, "reduction": reduction}
        loss, grad = zoo.numpy.focal_loss_and_grad(logits, shares, **options)
        want, want_grad = by_the_op(logits, shares, **options)
        np.testing.assert_allclose(loss, want, rtol=1e-5)
        np.testing.assert_allclose(grad, want_grad, rtol=1e-4, atol=1e-6 * float(np.abs(want_grad).max()))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_that_of_finite_differences(way: str, gamma: float, soft: bool) -> None:
    logits, target, weight = problem(6, 4, np.float64)
    logits /= 2
    goal = np.random.default_rng(2).dirichlet(np.ones(4), 6) if soft else target
    settings: dict[str, Any] = {"gamma": gamma, "weight": weight, "label_smoothing": 0.1, "reduction": "weighted_mean"}
    _, grad = zoo.numpy.focal_loss_and_grad(logits, goal, **settings)
    step, found = 1e-5, np.empty_like(logits)
    for place in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[place] += step
        down[place] -= step
        found[place] = (zoo.numpy.focal_loss(up, goal, **settings) - zoo.numpy.focal_loss(down, goal, **settings)) / (2 * step)
    np.testing.assert_allclose(grad, found, rtol=1e-6, atol=1e-9)


def test_extreme_logits(way: str) -> None:
    nan, inf = np.nan, np.inf
    rows = [[1e4, 0, -1e4], [-1e4, 1e4, 0], [40, -40, 0], [0, 0, 0], [nan, 0, 0], [inf, 0, 0], [-inf, 0, 0], [-inf, -inf, -inf]]
    logits, target = np.array([rows[at] for at in range(len(rows)) for _ in range(3)]), np.array([0, 1, 2] * len(rows))
    for gamma in GAMMAS:
        loss, grad = zoo.numpy.focal_loss_and_grad(logits, target, gamma, reduction="none")
        want, want_grad = by_the_op(logits, target, gamma=gamma, reduction="none")
        np.testing.assert_allclose(loss, want, rtol=1e-12)
        np.testing.assert_allclose(grad, want_grad, rtol=1e-12)


def test_with_and_without_torch_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("native", "torch"):
        choose(monkeypatch, name)
        logits, target, weight = problem(3000, 10, np.float32)
        found.append(zoo.numpy.focal_loss_and_grad(logits, target, weight=weight, gamma=1.5))
    (loss, grad), (other, other_grad) = found
    assert loss == other and np.array_equal(grad, other_grad)


class Foreign:
    """An array of another library, read-only as JAX's are."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array.copy()
        self.array.flags.writeable = False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array


def of_every_layout(array: np.ndarray) -> list[Any]:
    """The same values in another memory layout."""
    wide = np.zeros((2 * len(array), 3 * array.shape[1]), array.dtype)
    wide[::2, ::3] = array
    bytes_off = np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    packed = np.zeros(len(array), np.dtype([("tag", np.uint16), ("row", array.dtype, (array.shape[1],))]))
    packed["row"] = array
    swapped = array.astype(array.dtype.newbyteorder())
    return [
        wide[::2, ::3], np.asfortranarray(array), array[::-1].copy()[::-1], array[:, ::-1].copy()[:, ::-1], bytes_off, packed["row"],
        swapped, pickle.loads(pickle.dumps(array)), Foreign(array), np.broadcast_to(array, (1, *array.shape))[0], torch.from_numpy(array),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_memory(way: str, dtype: Any) -> None:
    logits, target, _ = problem(33, 6, dtype)
    want = zoo.numpy.focal_loss_and_grad(logits, target)
    shares = np.random.default_rng(1).dirichlet(np.ones(6), 33).astype(dtype)
    want_of_shares = zoo.numpy.focal_loss_and_grad(logits, shares)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one, other in zip(of_every_layout(logits), of_every_layout(shares), strict=True):
            for found, wanted in (
                (zoo.numpy.focal_loss_and_grad(one, target), want),
                (zoo.numpy.focal_loss_and_grad(one, other), want_of_shares),
            ):
                np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
                np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5, atol=1e-9)
                assert found[0].dtype == dtype
    assert zoo.numpy.focal_loss(logits.tolist(), target.tolist()) == pytest.approx(float(want[0]), rel=1e-6)
    for kind in (np.int8, np.int16, np.int32, ">i8"):
        assert zoo.numpy.focal_loss(logits, target.astype(kind)) == want[0]


def test_what_goes_to_cpp_is_aligned() -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert {bool(np.asarray(each).flags.aligned) for each in of_every_layout(array)} == {True, False}
    for each in of_every_layout(array):
        assert zoo.numpy._whole(np.asarray(each)).flags.aligned
    assert zoo.numpy._whole(array) is array or np.shares_memory(zoo.numpy._whole(array), array)


def test_nothing_to_average(way: str) -> None:
    for logits, target in ((np.zeros((0, 3)), np.zeros(0, int)), (np.ones((4, 3)), np.full(4, -100))):
        for reduction in ops.REDUCTIONS:
            loss, grad = zoo.numpy.focal_loss_and_grad(logits, target, reduction=reduction)
            assert not loss.any() and grad.shape == logits.shape and not grad.any()


def test_an_unsigned_label_does_not_wrap_to_ignored(way: str) -> None:
    with pytest.raises(IndexError, match=r"^target\[1\]=9223372036854775807 is out of range for 3 classes"):
        zoo.numpy.focal_loss(np.zeros((2, 3)), np.array([0, 2**64 - 100], np.uint64))


@pytest.mark.parametrize("label", [-1, 10, 2**63 - 1])
def test_a_label_out_of_range_is_named_with_its_place(way: str, label: int) -> None:
    logits, target, _ = problem(100, 10, np.float32)
    target[77] = label
    says = rf"^target\[77\]={label} is out of range for 10 classes \(legal: 0 to 9, or ignore_index=-100\)$"
    with pytest.raises(IndexError, match=says):
        zoo.numpy.focal_loss(logits, target)
    with pytest.raises(IndexError, match=says):
        zoo.numpy.focal_loss_and_grad(logits, np.where(target == -100, 0, target).astype(np.uint64) if label > 10 else target)


def wrong(says: str, kind: type[Exception] = ValueError, **change: Any) -> Any:
    return pytest.param(change, kind, says, id=says[:40])


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        wrong("logits must be float32, float64 or float16, not int64", TypeError, logits=np.zeros((4, 3), np.int64)),
        wrong("logits must be float32, float64 or float16, not object", TypeError, logits=None),
        wrong("logits must be (N, C) with C >= 1, not (4,)", logits=np.zeros(4)),
        wrong("logits must be (N, C) with C >= 1, not (4, 0)", logits=np.zeros((4, 0))),
        wrong("logits must be convertible to an array, not list (", TypeError, logits=[[1.0, 2.0], [3.0]]),
        wrong("logits must be convertible to an array, not Tensor (", TypeError, logits=torch.zeros(4, 3, requires_grad=True)),
        wrong("target of labels must be (4,) for logits (4, 3), not (5,)", target=np.zeros(5, int)),
        wrong("target of labels must be (4,) for logits (4, 3), not (4, 1)", target=np.zeros((4, 1), int)),
        wrong("target of shares must be (4, 3) for logits (4, 3), not (4,)", target=np.zeros(4)),
        wrong("target must be of an integer type (labels) or a float type (shares), not bool", TypeError, target=np.zeros(4, bool)),
        wrong("weight must be (3,) for 3 classes, not (4,)", weight=np.ones(4)),
        wrong("weight must be floating point or integers, not bool", TypeError, weight=np.ones(3, bool)),
        wrong("gamma must be finite and >= 0, not -1.0", gamma=-1),
        wrong("gamma must be a number, not ndarray; pass it as weight=gamma", TypeError, gamma=np.ones(3)),
        wrong("label_smoothing must be in [0, 1], not 1.5", label_smoothing=1.5),
        wrong("scale must be finite, not inf", scale=np.inf),
        wrong("ignore_index must be an int, not float", TypeError, ignore_index=1.5),
        wrong("ignore_index must be negative for a target of shares", target=np.ones((4, 3)), ignore_index=0),
        wrong("reduction must be one of none, mean, sum, weighted_mean, not 'avg'", reduction="avg"),
    ],
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], kind: type[Exception], says: str) -> None:
    given = {"logits": np.zeros((4, 3)), "target": np.zeros(4, int)} | change
    for call in (zoo.numpy.focal_loss, zoo.numpy.focal_loss_and_grad):
        with pytest.raises(kind, match=f"^{re.escape(says)}") as caught:
            call(**given)  # type: ignore[operator]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("served", "state"),
    [
        ("C++ avx512", "ok"),
        ("C++ avx2 through torch (zoo._native is built for cpython-311, this is cpython-312)", "ok"),
        ("numpy (zoo._native is not built)", "absent"),
        ("C++ avx2 through torch (zoo._native does not load: no symbol)", "broken"),
    ],
)
def test_the_doctor_says_what_computes(monkeypatch: pytest.MonkeyPatch, served: str, state: str) -> None:
    monkeypatch.setattr(zoo.numpy, "kernel", lambda: served)
    assert ("zoo.numpy", state, served) in doctor.report()


def test_the_examples() -> None:
    assert doctest.testmod(zoo.numpy).failed == 0


@pytest.mark.parametrize("number", range(3))
def test_the_documents_examples_run(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "numpy.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 3
    if "import jax" in blocks[number]:
        pytest.importorskip("jax")
    exec(compile(blocks[number], "numpy.md", "exec"), {})
    says = ("", "True [0 0", "(Array(0.48827")[number]  # (2/3)^2 log 3
    assert capsys.readouterr().out.startswith(says)


USE = """
import sys
# an editable install would find zoo._native for the copies too
sys.meta_path[:] = [each for each in sys.meta_path if not getattr(each, "__module__", "").startswith("__editable__")]
import numpy as np, zoo
draw = np.random.default_rng(0)
loss, grad = zoo.numpy.focal_loss_and_grad(draw.normal(0, 3, (50, 7)), draw.integers(7, size=50))
print("torch" in sys.modules, f"{loss:.12f}", f"{np.abs(grad).sum():.12f}", zoo.numpy.kernel())
"""


def used_in(place: Path) -> list[str]:
    """Whether torch was imported, loss, sum of the gradient and kernel, for the package in ``place``."""
    ran = subprocess.run([sys.executable, "-c", USE], cwd=place, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip().split(" ", 3)


def test_torch_is_imported_only_where_the_kernel_needs_it(tmp_path: Path) -> None:
    """The kernel, then each fallback: another Python, no compiled library, one that does not load."""
    if not (ROOT / "zoo" / "_C.abi3.so").is_file():
        pytest.skip("the extension was not built here")
    pytest.importorskip("zoo._native", reason="the extension was not built here")
    (package := tmp_path / "zoo").mkdir()
    for path in [*ROOT.glob("zoo/*.py"), ROOT / "zoo" / "_C.abi3.so"]:
        shutil.copy(path, package)
    imported, *numbers, served = used_in(ROOT)
    assert (imported, served[:4]) == ("False", "C++ ") and "torch" not in served

    (package / "_native.cpython-399-x86_64-linux-gnu.so").touch()
    imported, *again, served = used_in(tmp_path)
    assert (imported, again) == ("True", numbers)
    built = f"zoo._native is built for cpython-399-x86_64-linux-gnu, this is {sys.implementation.cache_tag}"
    assert re.fullmatch(rf"C\+\+ \w+ through torch \({built}\)", served)

    (broken := tmp_path / "torch.py").write_text("raise RuntimeError('its libraries are of another version')")
    assert used_in(tmp_path) == ["False", *numbers, f"numpy ({built})"]
    broken.unlink()

    (package / "_C.abi3.so").unlink()
    assert used_in(tmp_path) == ["False", *numbers, f"numpy ({built})"]

    (package / "_native.so").write_bytes(b"no library")
    imported, *again, served = used_in(tmp_path)
    assert (imported, again) == ("False", numbers) and served.startswith("numpy (zoo._native does not load: ")
    for path in package.glob("_native*"):
        path.unlink()
    assert used_in(tmp_path) == ["False", *numbers, "numpy (zoo._native is not built)"]
