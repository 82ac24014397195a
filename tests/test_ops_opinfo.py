"""PyTorch's tests of ``F.cross_entropy`` and ``F.nll_loss`` at gamma 0: their samples, derivatives and layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import ops

pytestmark = pytest.mark.slow
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def ours(logits: Tensor, target: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
    return ops.focal_loss(logits, target, 0.0, reduction={"mean": "weighted_mean"}.get(reduction, reduction), **options)


def info(name: str) -> Any:
    pytest.importorskip("expecttest", reason="PyTorch's own tests need it")
    from torch.testing._internal.common_methods_invocations import op_db

    return next(each for each in op_db if each.name == f"nn.functional.{name}")


def samples(name: str, dtype: torch.dtype, **options: Any) -> Iterator[Any]:
    torch.manual_seed(0)
    yield from info(name).sample_inputs("cpu", dtype, **options)


def all_ignored(want: Tensor, sample: Any) -> bool:
    """Samples for which cross entropy is 0 / 0; zoo's loss is 0 by design."""
    return bool(torch.isnan(want).any()) and bool((sample.args[0] == sample.kwargs.get("ignore_index", -100)).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_of_cross_entropy(dtype: torch.dtype) -> None:
    found = list(samples("cross_entropy", dtype, requires_grad=True))
    assert len(found) == 21
    for sample in found:
        want, got = (f(sample.input, *sample.args, **sample.kwargs) for f in (F.cross_entropy, ours))
        if all_ignored(want, sample):
            assert got == 0
            continue
        exact = {} if dtype in (torch.float32, torch.float64) else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(got.to(want.dtype), want, **exact)
        (mine,), (theirs,) = (torch.autograd.grad(each.sum(), sample.input) for each in (got, want))
        torch.testing.assert_close(mine, theirs, **exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_of_nll_loss(dtype: torch.dtype) -> None:
    found = list(samples("nll_loss", dtype))
    assert len(found) > 50
    for sample in found:
        scores = sample.input.log_softmax(min(1, sample.input.dim() - 1))
        want, got = (f(scores, *sample.args, **sample.kwargs) for f in (F.nll_loss, ours))
        if all_ignored(want, sample):
            assert got == 0
        else:
            torch.testing.assert_close(got, want)


def test_errors_of_nll_loss_and_cross_entropy() -> None:
    """No OpInfo lists error inputs for cross entropy; these are inputs that it rejects, and those of related operators."""
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    refused = [
        ((z, y[:3]), {}), ((z, y[:, None]), {}), ((z, torch.tensor([0, 1, 3, 0])), {}), ((z, torch.tensor([0, 1, -1, 0])), {}),
        ((z, y), {"weight": torch.ones(2)}), ((z, y), {"weight": torch.ones(3, 1)}), ((z, y), {"reduction": "abc"}),
        ((z, y), {"label_smoothing": 1.5}), ((z, torch.rand(4, 2)), {}), ((z, torch.rand(4, 3)), {"ignore_index": 1}),
        ((z.long(), y), {}), ((z.to(torch.complex64), y), {}),
    ]  # fmt: skip
    for args, options in refused:
        for loss in (F.cross_entropy, ours):
            with pytest.raises((IndexError, ValueError, TypeError, RuntimeError)) as error:
                loss(*args, **options)
            assert loss is F.cross_entropy or type(error.value) is not RuntimeError, (args, options)
    for name in ("cross_entropy", "nll_loss"):
        if (errors := info(name).error_inputs_func) is not None:
            for each in errors(info(name), "cpu"):
                with pytest.raises((IndexError, ValueError, TypeError)):
                    ours(each.sample_input.input, *each.sample_input.args, **each.sample_input.kwargs)


def test_derivatives_of_every_sample() -> None:
    done = 0
    for sample in samples("cross_entropy", torch.float64, requires_grad=True):
        if all_ignored(F.cross_entropy(sample.input, *sample.args, **sample.kwargs), sample):
            continue
        for gamma in (0.0, 2.0):

            def loss(z: Tensor, sample: Any = sample, gamma: float = gamma) -> Tensor:
                return ops.focal_loss(z, *sample.args, gamma=gamma, **sample.kwargs)

            assert torch.autograd.gradcheck(loss, (sample.input,), check_forward_ad=True, check_batched_grad=True)
            assert torch.autograd.gradgradcheck(loss, (sample.input,), check_fwd_over_rev=True)
            done += 1
    assert done >= 36


def test_other_layouts_and_meta_of_every_sample() -> None:
    for sample in samples("cross_entropy", torch.float32):
        want = ours(sample.input, *sample.args, **sample.kwargs)
        strided = sample.noncontiguous()
        assert not strided.input.is_contiguous()
        torch.testing.assert_close(ours(strided.input, *strided.args, **strided.kwargs), want)
        away = sample.transform(lambda each: each.to("meta") if isinstance(each, Tensor) else each)
        made = ours(away.input, *away.args, **away.kwargs)
        assert (made.shape, made.dtype, made.device.type) == (want.shape, want.dtype, "meta")
