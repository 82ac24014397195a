"""The CUDA kernels on a GPU, against the PyTorch formula and mpmath: each kernel, type and layout, wrong labels, streams, repeats."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
import torch
from ops_cases import GAMMAS, agree, both, samples, worst
from torch import Tensor

from zoo import ops

pytestmark = pytest.mark.gpu
SINGLE = 1e-5  # relative error of what is computed in float32
PATHS = (10, 100, 200, 1000, 1500)
"""Numbers of classes for few_classes, the three of warp_row, and long_row (csrc/focal_loss_cuda.h, choose)."""


@pytest.fixture(autouse=True)
def built() -> None:
    if ops._C_cuda is None:
        pytest.fail(f"the CUDA kernels were not built here: {ops.kernel()}")


def there(args: tuple) -> tuple:
    return tuple(each.cuda() if isinstance(each, Tensor) else each for each in args)


def here(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.cpu() for each in found)


def draw(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator("cuda").manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=source, device="cuda")
    return logits, torch.randint(classes, (rows,), generator=source, device="cuda")


def test_it_serves() -> None:
    assert ops.kernel().endswith("CUDA")


@pytest.mark.parametrize("dtype", ops.DTYPES, ids=str)
def test_kernels_give_what_the_formula_gives(dtype: torch.dtype) -> None:
    for args in samples(dtype=dtype):
        agree(ops.formula(*args), here(torch.ops.zoo.focal_loss(*there(args))), args, SINGLE)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_float32_is_within_1e_5_of_mpmath(gamma: float) -> None:
    assert worst(gamma, "cuda") < 1e-5


@pytest.mark.parametrize(("rows", "classes"), [(400_000, 10), (30_000, 100), (30_000, 200), (20_000, 1000), (5_000, 1500)])
def test_more_rows_than_the_device_runs_at_once(rows: int, classes: int) -> None:
    logits, target = draw(rows, classes)
    for dtype, reduction in itertools.product((torch.float32, torch.bfloat16), range(len(ops.REDUCTIONS))):
        args = (logits.to(dtype), target, None, 2.0, 0.0, 1.0, -100, reduction, True, True)
        agree(here(ops.formula(*args)), here(torch.ops.zoo.focal_loss(*args)), args, SINGLE)


def test_gradcheck() -> None:
    for classes, gamma, reduction, smoothing in itertools.product((5, 40), (0.0, 0.5, 2.0), ops.REDUCTIONS, (0.0, 0.2)):
        logits, target = (each[:3] for each in draw(3, classes))
        target[0] = -1
        weight = torch.linspace(0.5, 2, classes, dtype=torch.float64, device="cuda")
        logits = logits.double().requires_grad_()
        options = (target, gamma, weight, -1, smoothing, reduction, 1.5)
        assert torch.autograd.gradcheck(lambda z, o=options: ops.focal_loss(z, *o), (logits,), nondet_tol=0)


@pytest.mark.parametrize("classes", PATHS)
def test_strides_offsets_and_label_types(classes: int) -> None:
    base, labels = (each[:40] for each in draw(40, classes))
    base, labels = base.view(8, 5, classes).transpose(1, 2).contiguous(), labels.view(8, 5)
    want_loss, want_grad = (each.cuda() for each in both(base.cpu(), labels.cpu()))
    views = {
        "plain": base,
        "classes last": base.transpose(1, 2).contiguous().transpose(1, 2),
        "transposed": base.transpose(0, 2).contiguous().transpose(0, 2),
        "every other": torch.stack((base, base), -1).flatten(-2)[..., ::2],
        "offset": torch.cat((base.new_zeros(1), base.flatten()))[1:].view_as(base),
        "offset rows": torch.cat((base.new_zeros(1), base.transpose(1, 2).flatten()))[1:].view(8, 5, classes).transpose(1, 2),
    }
    for (name, view), dtype in itertools.product(views.items(), ops.LABELS):
        if dtype == torch.uint8 and classes > 256:
            continue
        loss, grad = both(view, torch.stack((labels, labels), -1)[..., 1].to(dtype))
        torch.testing.assert_close(loss, want_loss, rtol=SINGLE, atol=0, msg=name)
        torch.testing.assert_close(grad, want_grad, rtol=2e-5, atol=1e-9, msg=name)
    one, own = base[:1, :, 0].expand(6, classes), labels.flatten()[:6]
    torch.testing.assert_close(both(one, own)[1], both(one.clone(), own)[1])


@pytest.mark.parametrize("classes", PATHS)
def test_infinite_and_nan_logits_are_the_formulas(classes: int) -> None:
    inf, nan = float("inf"), float("nan")
    logits, target = draw(8, classes)
    target[:] = torch.tensor([0, 1, 0, 1, 0, 2, 2, 1])
    for row, at, value in ((0, 1, -inf), (1, 1, -inf), (2, 1, inf), (3, 1, inf), (4, 1, nan), (5, 1, -1e30), (7, 1, nan)):
        logits[row, at] = value
    logits[6] = -inf
    for gamma in (0.0, 0.5, 2.0):
        args = (logits, target, None, gamma, 0.0, 1.0, -100, 0, True, True)
        for want, got in zip(ops.formula(*args), torch.ops.zoo.focal_loss(*args), strict=True):
            torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("classes", PATHS)
def test_a_wrong_label_costs_its_row_alone(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = draw(300, classes)
    wrong = {3: classes, 77: -1, 150: 2**63 - 1, 299: -(2**63), 12: 1 << 40}
    for row, label in wrong.items():
        target[row] = label
    bad = torch.zeros(300, dtype=torch.bool, device="cuda")
    bad[list(wrong)] = True
    want = ops.focal_loss(logits[~bad], target[~bad], reduction="none")  # after a wrong label, the next call raises
    for reduction in ops.REDUCTIONS:
        leaf = logits.clone().requires_grad_()
        loss = ops.focal_loss(leaf, target, reduction=reduction)
        loss.sum().backward()
        assert bool(torch.isnan(loss[bad]).all()) if reduction == "none" else bool(torch.isnan(loss))
        if reduction == "none":
            torch.testing.assert_close(loss[~bad], want)
        assert not leaf.grad[bad].any() and bool(torch.isfinite(leaf.grad).all()) and bool((leaf.grad[~bad] != 0).any(1).all())
        with pytest.raises(IndexError, match="an earlier focal loss on CUDA was out of range") as error:
            ops.focal_loss(logits[:3], target[:3])  # the read above has synchronised
        assert int(re.findall(r"row (\d+)", str(error.value))[0]) in wrong
    torch.cuda.synchronize()  # raises if a kernel accessed memory out of bounds
    assert torch.isfinite(ops.focal_loss(logits[:3], target[:3]))
    monkeypatch.setenv("ZOO_SYNC", "1")
    with pytest.raises(IndexError, match=rf"^target\[3\]={classes} is out of range for {classes} classes"):
        ops.focal_loss(logits, target)
    ops.raise_wrong_label()  # raised in place, and only once


def test_a_wrong_label_in_a_captured_or_compiled_step_is_reported() -> None:
    logits, target = draw(300, 10)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = ops.focal_loss(logits, target)
    graph.replay()
    assert bool(torch.isfinite(loss))
    ops.raise_wrong_label()
    target[7] = 10
    compiled = torch.compile(Net(), fullgraph=True, backend="aot_eager")
    for replay in (graph.replay, lambda: compiled(logits, target)):
        replay()
        torch.cuda.synchronize()
        with pytest.raises(IndexError, match="^target row 7 of"):
            ops.raise_wrong_label()
        ops.raise_wrong_label()


def test_the_current_stream_is_used() -> None:
    for classes in PATHS:
        source, target = draw(2000, classes)
        want = both(source, target)
        logits = torch.zeros_like(source)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)  # about 0.1 s: on another stream the loss would see the zeros
            logits.copy_(source)
            got = both(logits, target)
        stream.synchronize()
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_the_same_bits_each_time() -> None:
    for (rows, classes), dtype in itertools.product(((7, 10), (400_000, 10), (30_000, 100), (5_000, 1500)), ops.DTYPES):
        logits, target = draw(rows, classes)
        first = both(logits.to(dtype), target)
        for _ in range(10):
            again = both(logits.to(dtype), target)
            assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])


def test_more_than_2_31_logits() -> None:
    rows, classes = 2_200_000, 1000
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("it takes 9 GB of GPU memory")
    logits = torch.empty(rows, classes, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.randint(classes, (rows,), device="cuda")
    loss, grad, *_ = torch.ops.zoo.focal_loss(logits, target, None, 2.0, 0.0, 1.0, -100, 0, True, False)
    for part in (slice(0, 50), slice(2**31 // classes - 50, 2**31 // classes + 50), slice(rows - 50, rows)):
        args = (logits[part], target[part], None, 2.0, 0.0, 1.0, -100, 0, True, False)
        want = ops.formula(*args)
        torch.testing.assert_close(loss[part], want[0], rtol=SINGLE, atol=0)
        torch.testing.assert_close(grad[part], want[1], rtol=2**-7, atol=0)


@dataclasses.dataclass
class Net:
    """2 z, then the loss."""

    smoothing: float = 0.1

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return ops.focal_loss(2 * logits, target, 1.5, label_smoothing=self.smoothing)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_and_autocast(backend: str) -> None:
    logits, target = draw(64, 10)
    logits.requires_grad_()
    want = Net()(logits, target)
    got = torch.compile(Net(), fullgraph=True, backend=backend)(logits, target)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, logits)[0], torch.autograd.grad(want, logits)[0])
    with torch.autocast("cuda", dtype=torch.float16):
        product = logits @ torch.randn(10, 5, device="cuda")
        loss = ops.focal_loss(product, target % 5)
    assert product.dtype == torch.float16 and loss.dtype == torch.float32
    loss.backward()
    assert bool(torch.isfinite(logits.grad).all())


def test_derivatives_by_the_formula() -> None:
    logits, target = draw(6, 5)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: ops.focal_loss(z, target), (logits,))
    mapped = torch.func.vmap(ops.focal_loss)(logits.detach()[None], target[None])
    torch.testing.assert_close(mapped[0], ops.focal_loss(logits.detach(), target))


@pytest.mark.parametrize("classes", PATHS)
def test_shares_and_two_labels(classes: int) -> None:
    logits, target = draw(300, classes)
    shares, other, share = draw(300, classes, 1)[0].softmax(1), target.flip(0), torch.rand(300, device="cuda")
    target[3] = -100
    for dtype, smoothing in itertools.product(ops.DTYPES, (0.0, 0.1)):
        given = shares.to(torch.float64 if dtype == torch.float64 else torch.float32)
        for goal, pair in ((given, ()), (given.to(dtype), ()), (target, (other, share.to(given.dtype)))):
            args = (logits.to(dtype), goal, None, 2.0, smoothing, 1.0, -100, 0, True, True, *pair)
            agree(here(ops.formula(*args)), here(torch.ops.zoo.focal_loss(*args)), args, SINGLE)


def test_mixed_devices_are_refused() -> None:
    logits, target = draw(6, 5)
    with pytest.raises(ValueError, match="target must be on cuda:0 like the logits, not on cpu"):
        ops.focal_loss(logits, target.cpu())
    with pytest.raises(ValueError, match="weight must be on cuda:0"):
        ops.focal_loss(logits, target, weight=torch.ones(5))
