"""The focal loss op: the PyTorch formula against mpmath, the kernels against the formula, and every wrong argument."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ops_cases import GAMMAS, agree, both, samples, worst
from torch import Tensor

from zoo import ops


@pytest.mark.parametrize("gamma", GAMMAS)
def test_float32_is_within_1e_5_of_mpmath(served: str, gamma: float) -> None:
    assert worst(gamma, "cpu") < 1e-5


@pytest.mark.parametrize("dtype", ops.DTYPES, ids=str)
def test_kernels_give_what_the_formula_gives(served: str, dtype: torch.dtype) -> None:
    for args in samples(dtype=dtype):
        agree(ops.formula(*args), torch.ops.zoo.focal_loss(*args), args)


def test_gradcheck(served_quickly: str) -> None:
    done = 0
    for number, (gamma, reduction) in enumerate(itertools.product(GAMMAS, ops.REDUCTIONS)):
        for case in range(3):
            draw = torch.Generator().manual_seed(number * 3 + case)
            shape = ((4, 5), (3, 4, 2), (2, 3, 2, 2))[case]
            logits = torch.randn(shape, generator=draw, dtype=torch.float64)
            if number % 3 == 0:
                logits = logits.transpose(0, -1).contiguous().transpose(0, -1)
            target = torch.randint(shape[1], shape[:1] + shape[2:], generator=draw)
            target.view(-1)[0] = -1 if number % 2 else target.view(-1)[0]
            weight = torch.rand(shape[1], generator=draw, dtype=torch.float64) + 0.2 if (number + case) % 2 else None
            smoothing = 0.2 if (number + case) % 4 == 0 else 0.0

            def call(
                z: Tensor, target: Tensor = target, weight: Tensor | None = weight, smoothing: float = smoothing,
                gamma: float = gamma, reduction: str = reduction,
            ) -> Tensor:  # fmt: skip
                return ops.focal_loss(z, target, gamma, weight, -1, smoothing, reduction, 1.5)

            assert torch.autograd.gradcheck(call, (logits.requires_grad_(),), nondet_tol=0, fast_mode=False)
            done += 1
    assert done >= 80


def test_opcheck(served_quickly: str) -> None:
    done = 0
    for number, args in enumerate(samples(n=6)[::2] + samples(n=6, dtype=torch.bfloat16, seed=3)[1::4]):
        logits, target, *rest = args
        if logits.numel() > 3000:
            continue
        rest[-2:] = (True, bool(number % 2))
        utils = ("test_schema", "test_autograd_registration", "test_faketensor")
        if number % 4 == 0:
            utils += ("test_aot_dispatch_dynamic",)
        torch.library.opcheck(torch.ops.zoo.focal_loss.default, (logits.requires_grad_(), target, *rest), test_utils=utils)
        done += 1
    assert done >= 60, done


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "weighted_mean"])
def test_gamma_0_is_cross_entropy(served: str, reduction: str) -> None:
    logits, target = torch.randn(40, 7, dtype=torch.float64, requires_grad=True), torch.randint(7, (40,))
    target[3] = -100
    weight = torch.rand(7, dtype=torch.float64)
    for smoothing in (0.0, 0.3):
        got = ops.focal_loss(logits, target, 0.0, weight, label_smoothing=smoothing, reduction=reduction)
        wanted = "mean" if reduction == "weighted_mean" else reduction
        want = F.cross_entropy(
            logits, target, weight, label_smoothing=smoothing, reduction="sum" if wanted == "mean" else wanted
        )
        if wanted == "mean":
            kept = target[target >= 0]
            want = want / (weight[kept].sum() if reduction == "weighted_mean" else len(kept))
        torch.testing.assert_close(got, want)
        (mine,), (theirs,) = torch.autograd.grad(got.sum(), logits), torch.autograd.grad(want.sum(), logits)
        torch.testing.assert_close(mine, theirs)


def soft_targets(
    n: int, classes: int, kind: str, dtype: torch.dtype, draw: torch.Generator
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Target, second target and share of the first for rows (N,): shares, two labels, or labels to be smoothed."""
    labels, other = torch.randint(classes, (2, n), generator=draw)
    if kind == "shares":
        shares = (3 * torch.randn(n, classes, generator=draw, dtype=torch.float64)).softmax(1)
        shares[0] = F.one_hot(labels[0], classes)
        return shares.to(dtype), None, None
    labels[n // 2] = -100
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return labels, *((other, torch.rand(n, generator=draw, dtype=real)) if kind == "two labels" else (None, None))


@pytest.mark.parametrize("kind", ["shares", "two labels", "smoothed"])
def test_rows_with_several_classes(served: str, kind: str) -> None:
    """Short rows, rows of whole vectors, and rows longer than a buffer; weights, small and large logits, each type."""
    draw = torch.Generator().manual_seed(4)
    types = {torch.float32: (torch.float32,), torch.float64: (torch.float64,)}
    types |= {half: (half, torch.float32) for half in (torch.bfloat16, torch.float16)}
    for number, classes in enumerate((1, 2, 3, 10, 16, 17, 33, 100, 257, 1500, 4096, 4097, 9000)):
        for gamma, (dtype, given) in itertools.product((0.0, 0.5, 2.0, 3.3), types.items()):
            if dtype != torch.float32 and classes not in (10, 100, 1500):
                continue
            spread = (3, 40)[(number + int(gamma)) % 2]
            logits = (spread * torch.randn(7, classes, generator=draw, dtype=torch.float64)).to(dtype)
            target, *pair = soft_targets(7, classes, kind, given[number % len(given)], draw)
            real = torch.float64 if dtype == torch.float64 else torch.float32
            weight = torch.rand(classes, generator=draw, dtype=real) if number % 2 else None
            smoothing = 0.1 if kind == "smoothed" or gamma == 2.0 else 0.0
            args = (logits, target, weight, gamma, smoothing, 2.0, -100, number % 4, True, True, *pair)
            agree(ops.formula(*args), torch.ops.zoo.focal_loss(*args), args)


def test_shares_that_are_one_label_are_that_label(served: str) -> None:
    """Within 1e-5 for rows with p near 1: 1 - p is computed from the other classes here too."""
    for gap in (1.0, 10.0, 20.0, 40.0, 80.0):
        z = torch.tensor([[gap, 0.0, 0.5], [0.5, gap, 0.0]], requires_grad=True)
        y = torch.tensor([0, 1])
        losses = [ops.focal_loss(z, each) for each in (y, F.one_hot(y, 3).float(), (y, y, 0.3), (y, y.flip(0), 1.0))]
        first, *others = [(each.detach(), torch.autograd.grad(each, z)[0]) for each in losses]
        for loss, grad in others:
            torch.testing.assert_close(loss, first[0], rtol=1e-5, atol=1e-37)
            torch.testing.assert_close(grad, first[1], rtol=1e-5, atol=1e-37)


def test_two_labels_are_the_sum_of_their_losses(served: str) -> None:
    z, y, other = torch.randn(9, 4, 6, requires_grad=True), *torch.randint(4, (2, 9, 6))
    for share, reduction in itertools.product((0.3, torch.tensor(0.3), torch.rand(9, 6)), ("mean", "none", "sum")):
        got = ops.focal_loss(z, (y, other, share), reduction=reduction)
        rows = share * ops.focal_loss(z, y, reduction="none") + (1 - share) * ops.focal_loss(z, other, reduction="none")
        torch.testing.assert_close(got, {"mean": rows.mean, "none": lambda r=rows: r, "sum": rows.sum}[reduction]())
    other[1, 2] = 9
    with pytest.raises(IndexError, match=r"^second target\[1, 2\]=9 is out of range for 4 classes"):
        ops.focal_loss(z, (y, other, 0.5))


def test_strided_shares_and_images(served: str) -> None:
    z = torch.randn(3, 5, 4, 2, requires_grad=True)
    q = torch.randn(3, 5, 4, 2).softmax(1)
    want = F.cross_entropy(z, q, reduction="none")
    layouts = (
        q,
        q.contiguous(memory_format=torch.channels_last),
        q.transpose(0, 3).contiguous().transpose(0, 3),
        q.expand(3, 5, 4, 2),
    )
    for shares, logits in itertools.product(layouts, (z, z.contiguous(memory_format=torch.channels_last))):
        torch.testing.assert_close(ops.focal_loss(logits, shares, 0.0, reduction="none"), want)


def test_labels_and_weights_as_people_have_them(served: str) -> None:
    z, y = torch.randn(6, 5), torch.tensor([0, 4, 2, 1, 3, 3])
    want = ops.focal_loss(z, y, 2.0, torch.arange(1.0, 6), label_smoothing=0.1)
    for dtype in (torch.int8, torch.int16, torch.uint8, torch.uint16, torch.int32, torch.uint32, torch.uint64):
        got = ops.focal_loss(z, y.to(dtype), np.float32(2), np.arange(1.0, 6), np.int64(-100), np.float64(0.1))
        assert torch.equal(got, want), dtype
    with pytest.raises(IndexError, match="out of range"):
        ops.focal_loss(z, torch.tensor([0, 1, 2, 3, 4, 2**64 - 100], dtype=torch.uint64))
    one = ops.focal_loss(z[2], y[2])
    torch.testing.assert_close(one, ops.focal_loss(z[2:3], y[2:3]))
    assert ops.focal_loss(z[2], y[2], reduction="none").shape == ()


@pytest.mark.parametrize("shape", [(0, 4), (5, 4), (0, 4, 3), (2, 4, 0)])
def test_no_rows_or_all_ignored_is_zero(served: str, shape: tuple[int, ...]) -> None:
    for reduction in ("mean", "sum", "weighted_mean"):
        logits = torch.full(shape, float("nan"), requires_grad=True)
        target = torch.full(shape[:1] + shape[2:], -100)
        found = ops.focal_loss_with_stats(logits, target, reduction=reduction)
        found.loss.backward()
        assert found.loss.item() == 0 and found.factor.item() == 0
        assert logits.grad.shape == shape and not logits.grad.any()
        assert (found.p == 1).all()


def test_infinite_and_nan_logits(served: str) -> None:
    inf, nan = float("inf"), float("nan")
    table = [
        ([1, -inf, 0], 0, [0.313262, 1]),  # a class with probability 0: its gradient is 0
        ([1, -inf, 0], 1, [inf, 1]),  # a label with probability 0: the loss is infinite, the gradient is the limit
        ([1, inf, 0], 0, [nan, 0]),
        ([1, inf, 0], 1, [nan, 0]),
        ([1, nan, 0], 0, [nan, 0]),
        ([-inf, -inf, -inf], 0, [nan, 0]),
        ([1, -1e30, 3e38], 2, [0, 1]),
    ]
    for size in (1, 40):
        for gamma in (0.0, 0.5, 2.0):
            for z, label, (loss, finite) in table:
                logits = torch.tensor([z] * size, dtype=torch.float32, requires_grad=True)
                got, _, factor = ops.focal_loss_with_stats(logits, torch.full((size,), label), gamma)
                got.backward()
                assert bool(torch.isnan(factor)) == (loss != loss)
                want = loss if gamma == 0 or loss in (0, inf) or loss != loss else 0.313262 * (1 - 0.731059) ** gamma
                torch.testing.assert_close(
                    got.detach(), torch.tensor(want, dtype=torch.float32), equal_nan=True, rtol=1e-4, atol=0
                )
                assert torch.isfinite(logits.grad).all() if finite else torch.isnan(logits.grad).all(), (z, label, gamma)
                if label == 1 and finite:
                    torch.testing.assert_close(logits.grad[0] * size, torch.tensor([0.731059, -1, 0.268941]), rtol=1e-4, atol=0)


def test_strides_offsets_and_label_types(served: str) -> None:
    base, labels = torch.randn(6, 9, 4, 5), torch.randint(9, (6, 4, 5))
    want_loss, want_grad = both(base, labels)
    views = {
        "channels last": base.contiguous(memory_format=torch.channels_last),
        "transposed": base.transpose(0, 1).contiguous().transpose(0, 1),
        "every other": torch.stack((base, base), -1).flatten(-2)[..., ::2],
        "offset": torch.cat((torch.zeros(1), base.flatten()))[1:].view_as(base),
    }
    for name, view in views.items():
        for dtype in ops.LABELS:
            kept = torch.stack((labels, labels), -1)[..., 1].to(dtype)
            loss, grad = both(view, kept)
            torch.testing.assert_close(loss, want_loss, rtol=2e-6, atol=0, msg=name)
            torch.testing.assert_close(grad, want_grad, rtol=2e-5, atol=1e-9, msg=name)
    one = torch.randn(1, 9).expand(5, 9)
    torch.testing.assert_close(both(one, torch.arange(5))[1], both(one.clone(), torch.arange(5))[1])
    long = torch.randn(130, 10)
    torch.testing.assert_close(
        both(long.t().contiguous().t(), torch.arange(130) % 10)[1], both(long, torch.arange(130) % 10)[1]
    )


def test_stats_come_with_the_same_pass(served: str) -> None:
    logits, target = torch.randn(90, 6, requires_grad=True), torch.randint(6, (90,))
    target[7] = -100
    found = ops.focal_loss_with_stats(logits, target, 1.5)
    kept = target >= 0
    p = logits.detach().softmax(1).gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    torch.testing.assert_close(found.p[kept], p[kept])
    torch.testing.assert_close(found.factor, ((1 - p[kept]) ** 1.5).mean())
    assert found.p[7] == 1 and not found.p.requires_grad and not found.factor.requires_grad
    assert found.loss == ops.focal_loss(logits, target, 1.5)


def test_backward_scales_and_can_be_repeated(served: str) -> None:
    logits, target = torch.randn(20, 5, requires_grad=True), torch.randint(5, (20,))
    loss = ops.focal_loss(logits, target)
    (one,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = one.clone()
    one.zero_()
    (again,) = torch.autograd.grad(3 * loss, logits)
    torch.testing.assert_close(again, 3 * kept)
    rows = ops.focal_loss(logits, target, reduction="none")
    (scaled,) = torch.autograd.grad(rows, logits, torch.arange(20.0).expand(20))
    torch.testing.assert_close(scaled, kept * 20 * torch.arange(20.0)[:, None])
    assert not ops.focal_loss(logits.detach(), target).requires_grad
    with torch.no_grad():
        assert not ops.focal_loss(logits, target).requires_grad


def test_nothing_of_the_size_of_the_logits_beside_the_gradient() -> None:
    """No temporary in the forward pass, no gradient without need, and no multiplication by a grad_output of 1."""
    if ops._C is None:
        pytest.skip(f"the formula has temporaries: {ops.kernel()}")
    logits, target = torch.randn(3000, 50, requires_grad=True), torch.randint(50, (3000,))

    def run(factor: float) -> tuple[list[int], set[str]]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            with torch.set_grad_enabled(factor != 0):
                loss = ops.focal_loss(logits, target)
            if factor != 0:
                (loss if factor == 1 else factor * loss).backward()
        logits.grad = None
        events = profile.profiler.kineto_results.events()
        blocks = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 3000]
        return blocks, {event.name() for event in events}

    assert run(0)[0] == []
    blocks, names = run(1)
    assert blocks == [logits.nbytes] and "aten::mul" not in names
    blocks, names = run(3)
    assert blocks.count(logits.nbytes) == 2 and "aten::mul" in names


def test_scale_reaches_a_half_gradient_before_it_is_rounded(served: str) -> None:
    logits = torch.zeros(4096, 10, dtype=torch.float16, requires_grad=True)
    target = torch.zeros(4096, dtype=torch.int64)
    plain, scaled = (
        torch.autograd.grad(ops.focal_loss(logits, target, scale=s), logits)[0][0, 1].item() for s in (2.0**-6, 2.0**10)
    )
    assert scaled > 0
    assert abs(scaled / 65536 - plain) > 1e-9  # plain was rounded to a step of 6e-8, scaled was not


def test_bad_labels_are_named_before_anything_is_written(served: str) -> None:
    draw = torch.Generator().manual_seed(5)
    for number in range(2000):
        classes = int(torch.randint(1, 40, (), generator=draw))
        rows = int(torch.randint(1, 90, (), generator=draw))
        target = torch.randint(classes, (rows,), generator=draw)
        at = int(torch.randint(rows, (), generator=draw))
        target[at] = (classes, -1, 2**63 - 1, -(2**63), classes + 2**32, -99, -101, 2**31)[number % 8]
        logits = torch.zeros(rows, classes, requires_grad=bool(number % 2))
        with pytest.raises(IndexError, match=rf"^target\[{at}\]={target[at]} is out of range for {classes} classes"):
            ops.focal_loss(logits, target)
    assert ops.focal_loss(torch.zeros(2, 3), torch.tensor([3, 1]), ignore_index=3) > 0


def test_a_bad_label_in_an_image_names_its_pixel(served: str) -> None:
    target = torch.zeros(2, 3, 4, dtype=torch.uint8)
    target[1, 2, 3] = 200
    with pytest.raises(IndexError, match=r"target\[1, 11\]=200 is out of range for 5 classes|target\[1, 2, 3\]=200"):
        ops.focal_loss(torch.zeros(2, 5, 3, 4), target)


X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
WRONG = [
    (dict(logits=[1.0]), TypeError, "logits must be a tensor, not list"),
    (dict(logits=X.to(torch.complex64)), TypeError, "logits must be float32, .*, not complex64"),
    (dict(logits=X.long()), TypeError, "logits must be .*, not int64"),
    (dict(logits=X[0, 0]), ValueError, r"logits must be \(C,\), \(N, C\) .*, not \(\)"),
    (dict(logits=X[0]), ValueError, r"target of labels must be \(\) for logits \(3,\), not \(4,\)"),
    (dict(logits=X[:, :0]), ValueError, r"C >= 1, not \(4, 0\)"),
    (dict(target=Y.bool()), TypeError, r"target must be of an integer type \(labels\) or a float type \(shares\), not bool"),
    (dict(target=Y[:3]), ValueError, r"target of labels must be \(4,\) for logits \(4, 3\), not \(3,\)"),
    (dict(target=Y.float()), ValueError, r"target of shares must be \(4, 3\) for logits \(4, 3\), not \(4,\)"),
    (dict(target=X, ignore_index=1), ValueError, "ignore_index must be negative for a target of shares, .*, not 1"),
    (dict(target=(Y, Y)), ValueError, r"target must be a tensor or \(labels, other labels, share of the first\), not 2 values"),
    (dict(target=(Y, Y.float(), 0.5)), TypeError, "second target must be of an integer type, not float32"),
    (dict(target=(Y, Y[:2], 0.5)), ValueError, r"second target of labels must be \(4,\) .*, not \(2,\)"),
    (dict(target=(Y, Y, 1.5)), ValueError, r"share of the first label must be in \[0, 1\], not 1.5"),
    (dict(target=(Y, Y, Y)), TypeError, "share of the first label must be floating point, not int64"),
    (dict(target=(Y, Y, X)), ValueError, r"share of the first label must be \(\) or \(4,\), not \(4, 3\)"),
    (dict(gamma=torch.ones(3)), TypeError, "gamma must be a number, not Tensor; pass it as weight=gamma"),
    (dict(target=Y.to("meta")), ValueError, "target must be on cpu like the logits, not on meta"),
    (dict(weight=torch.ones(2)), ValueError, r"weight must be \(3,\) for 3 classes, not \(2,\)"),
    (dict(weight=torch.ones(3, 1)), ValueError, r"weight must be \(3,\)"),
    (dict(weight=["1", 1, 1]), TypeError, "weight must be a tensor, an array or a list of numbers, not list"),
    (dict(weight=torch.ones(3).bool()), TypeError, "weight must be floating point or integers, not bool"),
    (dict(target=(Y, Y, torch.tensor(1.5))), ValueError, r"share of the first label must be in \[0, 1\], not 1.5 to 1.5"),
    (
        dict(target=(Y, Y, np.array([0.5, -1.0, 0.5, 0.5]))),
        ValueError,
        r"share of the first label must be in \[0, 1\], not -1 to 0.5",
    ),
    (dict(logits=X.to_sparse()), TypeError, "logits must be a dense tensor, not sparse_coo"),
    (dict(weight=torch.ones(3, device="meta")), ValueError, "weight must be on cpu"),
    (dict(gamma=-0.5), ValueError, "gamma must be finite and >= 0, not -0.5"),
    (dict(gamma=float("nan")), ValueError, "gamma must be finite and >= 0, not nan"),
    (dict(gamma=float("inf")), ValueError, "gamma"),
    (dict(gamma="2"), TypeError, "gamma must be a number, not str"),
    (dict(label_smoothing=1.5), ValueError, r"label_smoothing must be in \[0, 1\], not 1.5"),
    (dict(label_smoothing=None), TypeError, "label_smoothing must be a number"),
    (dict(scale=float("inf")), ValueError, "scale must be finite, not inf"),
    (dict(ignore_index=1.5), TypeError, "ignore_index must be an int, not float"),
    (dict(reduction="avg"), ValueError, "reduction must be one of none, mean, sum, weighted_mean, not 'avg'"),
]


@pytest.mark.parametrize(("change", "kind", "words"), WRONG, ids=[f"{next(iter(c))}-{n}" for n, (c, _, _) in enumerate(WRONG)])
def test_wrong_arguments(served: str, change: dict, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        ops.focal_loss(**({"logits": X, "target": Y} | change))


def test_same_bits_for_any_number_of_threads(served: str) -> None:
    before = torch.get_num_threads()
    try:
        for rows, classes in ((5000, 10), (30000, 10), (900, 100), (40, 5000)):
            logits, target = torch.randn(rows, classes), torch.randint(classes, (rows,))
            found = []
            for threads in (1, 2, 4, 2):
                torch.set_num_threads(threads)
                found.append(both(logits, target))
            for loss, grad in found[1:]:
                assert torch.equal(loss, found[0][0]) and torch.equal(grad, found[0][1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("classes", [10, 33, 64, 100])
def test_gradients_too_large_for_the_caches(served: str, classes: int) -> None:
    """From 4 Mi logits on, gradients bypass the caches, in vectors that span the ends of two rows."""
    rows = (4 << 20) // classes + 3
    draw = torch.Generator().manual_seed(classes)
    logits = (3 * torch.randn(rows, classes, generator=draw)).requires_grad_()
    target = torch.randint(classes, (rows,), generator=draw)
    ops.focal_loss(logits, target, reduction="sum").backward()
    p = logits.detach().softmax(1)
    own = p.gather(1, target[:, None])
    slope = (1 - own) ** 2 - 2 * own * (1 - own) * own.log()
    wanted = slope * p.scatter_add(1, target[:, None], -torch.ones_like(own))
    assert (logits.grad - wanted).abs().max() < 1e-5


def test_the_short_way_takes_only_what_it_knows() -> None:
    """``_C.run`` says None, and touches nothing, for all but plain CPU tensors with arguments in range; the checks of the op then report the error."""
    if ops._C is None:
        pytest.skip(f"no C++ kernel here: {ops.kernel()}")
    logits, target, loss, grad = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.full((), 7.0), torch.full((4, 3), 7.0)
    plain = [logits, target, None, grad, loss, 2.0, -100, 0.0, "mean", 1.0]
    unsuited = {
        0: [logits[0], logits.int(), logits.to("meta"), None, torch.randn(4, 0)], 1: [target[:3], target.float(), target[:, None]],
        2: [torch.ones(2), torch.ones(3, dtype=torch.float64), torch.ones(6)[::2]], 3: [grad[:3], grad.double(), grad.bfloat16()],
        4: [loss.double(), torch.zeros(1)], 5: [-1.0, float("nan"), "2", True], 7: [1.5, -0.1], 8: ["none", "other", 1], 9: [float("inf")],
    }  # fmt: skip
    for place, values in unsuited.items():
        for value in values:
            changed = [*plain[:place], value, *plain[place + 1 :]]
            assert ops._C.run(*changed) is None, (place, value)
    assert loss == 7 and bool((grad == 7).all())
    assert ops._C.run(*plain) == -1 and loss != 7
    assert ops._C.run(logits, torch.tensor([0, 1, 3, 0]), *plain[2:]) == 2
    ones = [torch.ones(()), torch.ones((), dtype=torch.float64)]
    others = [torch.full((), 1.5), torch.ones(1), torch.ones((), dtype=torch.int64), torch.ones((), device="meta"), 1.0]
    assert [ops._C.is_one(each) for each in ones + others] == [True, True, *[False] * len(others)]
