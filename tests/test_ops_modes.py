"""The focal loss under each mode and kind of tensor that PyTorch has, at gamma 0 against ``F.cross_entropy`` doing the same.

A row of the table is a function of a loss; what it returns has to be the same for both losses, and where PyTorch's own raises,
zoo's may too. The kernels read memory by address, so the danger in most rows is a crash or a wrong number, not an error.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import checkpoint, flop_counter

from zoo import ops

Loss = Callable[[Tensor, Tensor], Tensor]
Row = Callable[[Loss], Any]
OURS: Loss = functools.partial(ops.focal_loss, gamma=0.0, reduction="weighted_mean")
ROWS: dict[str, Row] = {}


def row(function: Row) -> Row:
    ROWS[function.__name__] = function
    return function


def data(*batch: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    return torch.randn(*batch, 8, classes, generator=draw), torch.randint(classes, (*batch, 8), generator=draw)


def leaf() -> tuple[Tensor, Tensor]:
    z, y = data()
    return z.requires_grad_(), y


def gradient_by(loss: Loss, grad_output: Tensor) -> Tensor:
    z, y = leaf()
    return torch.autograd.grad(loss(z, y), z, grad_output)[0]


@row
def fake_tensors(loss: Loss) -> Any:
    with FakeTensorMode():
        z, y = torch.randn(8, 5, requires_grad=True), torch.zeros(8, dtype=torch.int64)
        value = loss(z, y)
        return value.shape, torch.autograd.grad(value, z)[0].shape


@row
def backward_inside_fake_mode(loss: Loss) -> Any:
    z, y = leaf()
    value = loss(z, y)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.autograd.grad(value, z)[0].shape


@row
def backward_with_a_fake_gradient(loss: Loss) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True):
        one = torch.ones(())
    return gradient_by(loss, one).shape


@row
def meta(loss: Loss) -> Any:
    z, y = torch.randn(8, 5, device="meta", requires_grad=True), torch.zeros(8, dtype=torch.int64, device="meta")
    value = loss(z, y)
    return value.shape, torch.autograd.grad(value, z)[0].shape


@row
def functional_tensors(loss: Loss) -> Any:
    z, y = data()
    made = loss(torch._to_functional_tensor(z), torch._to_functional_tensor(y))
    torch._sync(made)
    return torch._from_functional_tensor(made)


@row
def a_functional_gradient(loss: Loss) -> Any:
    made = gradient_by(loss, torch._to_functional_tensor(torch.full((), 2.0)))
    torch._sync(made)
    return torch._from_functional_tensor(made)


@row
def functionalize(loss: Loss) -> Any:
    return torch.func.functionalize(loss)(*data())


@row
def lazily_negated(loss: Loss) -> Any:
    z = torch.complex(torch.zeros(8, 5), data()[0]).conj().imag
    assert z.is_neg()
    return loss(z, data()[1])


@row
def lazily_negated_labels(loss: Loss) -> Any:
    return loss(data()[0], torch._neg_view(-data()[1]))


@row
def lazily_negated_weight(loss: Loss) -> Any:
    return loss(*data(), weight=torch._neg_view(-torch.arange(1.0, 6)))  # type: ignore[call-arg]


@row
def a_lazily_negated_gradient(loss: Loss) -> Any:
    minus = torch._neg_view(torch.ones(()))
    assert minus.is_neg() and minus == -1
    return gradient_by(loss, minus)


@row
def an_efficient_zero_gradient(loss: Loss) -> Any:
    return gradient_by(loss, torch._efficientzerotensor(())) + 0.0


@row
def efficient_zero_logits(loss: Loss) -> Any:
    return loss(torch._efficientzerotensor((8, 5)), data()[1])


@row
def sparse_logits(loss: Loss) -> Any:
    return loss(data()[0].to_sparse(), data()[1])


@row
def mkldnn_logits(loss: Loss) -> Any:
    return loss(data()[0].to_mkldnn(), data()[1])


class Sub(Tensor):
    pass


@row
def a_subclass(loss: Loss) -> Any:
    z, y = data()
    z = z.as_subclass(Sub).requires_grad_()
    value = loss(z, y)
    return value.as_subclass(Tensor), torch.autograd.grad(value, z)[0].as_subclass(Tensor)


@row
def a_wrapper_subclass(loss: Loss) -> Any:
    two = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    z, y = data()
    pair = two(z, 2 * z).requires_grad_()
    value = loss(pair, two(y, y))
    grad = torch.autograd.grad(value, pair)[0]
    return value.a, value.b, grad.a, grad.b


def traced_vjp(loss: Loss, mode: str) -> Any:
    z, y = data()

    def vjp(z: Tensor, by: Tensor) -> Tensor:
        return torch.func.vjp(lambda z: loss(z, y), z)[1](by)[0]

    return make_fx(vjp, tracing_mode=mode, _allow_non_fake_inputs=True)(z, torch.tensor(1.0))(z, torch.tensor(3.0))


def traced_backward(loss: Loss, mode: str) -> Any:
    z, y = leaf()

    def backward(z: Tensor, by: Tensor) -> Tensor:
        return torch.autograd.grad(loss(z, y), z, by)[0]

    return make_fx(backward, tracing_mode=mode, _allow_non_fake_inputs=True)(z, torch.tensor(1.0))(z, torch.tensor(3.0))


for _mode in ("real", "fake", "symbolic"):
    ROWS[f"make_fx_{_mode}_vjp"] = functools.partial(traced_vjp, mode=_mode)
    ROWS[f"make_fx_{_mode}_backward"] = functools.partial(traced_backward, mode=_mode)


@row
def flop_counter_mode(loss: Loss) -> Any:
    with flop_counter.FlopCounterMode(display=False):
        return gradient_by(loss, torch.tensor(2.0))


@row
def memory_tracker(loss: Loss) -> Any:
    tracker = pytest.importorskip("torch.distributed._tools.mem_tracker")
    with tracker.MemTracker():
        return gradient_by(loss, torch.tensor(2.0))


@row
def compiled_autograd(loss: Loss) -> Any:
    z, y = leaf()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        (3 * loss(z, y)).backward()
    return z.grad


@row
def inference_mode(loss: Loss) -> Any:
    with torch.inference_mode():
        return loss(*data()).clone()


@row
def saved_tensor_hooks(loss: Loss) -> Any:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        return gradient_by(loss, torch.tensor(1.0))


@row
def checkpointed(loss: Loss) -> Any:
    z, y = leaf()
    return torch.autograd.grad(checkpoint.checkpoint(loss, z, y, use_reentrant=False), z)[0]


@row
def logits_changed_after_the_loss(loss: Loss) -> Any:
    z, y = leaf()
    twice = 2 * z
    value = loss(twice, y)
    twice.zero_()
    return torch.autograd.grad(value, z)[0]


@row
def several_gradients_at_once(loss: Loss) -> Any:
    z, y = leaf()
    return torch.autograd.grad(loss(z, y), z, torch.arange(3.0), is_grads_batched=True)[0]


@row
def jit_trace(loss: Loss) -> Any:
    z, y = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda z, y: loss(z, y), (z, y), check_trace=False)
    leaf = (3 * z.flip(0)).requires_grad_()
    value = traced(leaf, y)
    return value, torch.autograd.grad(value, leaf)[0]


def at(y: Tensor, loss: Loss) -> Callable[[Tensor], Tensor]:
    return lambda z: loss(z, y)


TRANSFORMS: dict[str, Row] = {
    "grad": lambda loss: torch.func.grad(loss)(*data()),
    "grad_of_grad": lambda loss: torch.func.grad(lambda z, y: torch.func.grad(loss)(z, y).square().sum())(*data()),
    "vjp": lambda loss: torch.func.vjp(at(data()[1], loss), data()[0])[1](torch.tensor(3.0))[0],
    "jvp": lambda loss: torch.func.jvp(at(data()[1], loss), (data()[0],), (data()[0].flip(0),)),
    "vmap": lambda loss: torch.func.vmap(loss)(*data(3)),
    "vmap_over_logits": lambda loss: torch.func.vmap(loss, (0, None))(data(3)[0], data()[1]),
    "vmap_over_labels": lambda loss: torch.func.vmap(loss, (None, 0))(data()[0], data(3)[1]),
    "per_sample_gradients": lambda loss: torch.func.vmap(torch.func.grad(loss))(*data(3)),
    "vmap_vmap": lambda loss: torch.func.vmap(torch.func.vmap(loss))(*data(2, 3)),
    "vmap_jvp": lambda loss: torch.func.vmap(lambda z, y: torch.func.jvp(at(y, loss), (z,), (z.cos(),)))(*data(3)),
    "jacrev": lambda loss: torch.func.jacrev(loss)(*data()),
    "jacfwd": lambda loss: torch.func.jacfwd(loss)(*data()),
    "hessian": lambda loss: torch.func.hessian(loss)(*data()),
    "jacrev_jacrev": lambda loss: torch.func.jacrev(torch.func.jacrev(loss))(*data()),
    "linearize": lambda loss: torch.func.linearize(at(data()[1], loss), data()[0])[1](data()[0].cos()),
    "autograd_hessian": lambda loss: torch.autograd.functional.hessian(at(data()[1], loss), data()[0]),
    "autograd_hessian_vectorized": lambda loss: torch.autograd.functional.hessian(
        at(data()[1], loss), data()[0], vectorize=True
    ),
    "autograd_jvp": lambda loss: torch.autograd.functional.jvp(at(data()[1], loss), data()[0], data()[0].cos()),
}
ROWS.update(TRANSFORMS)


@row
def dual_numbers(loss: Loss) -> Any:
    z, y = data()
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(loss(forward_ad.make_dual(z, z.cos()), y)))


@row
def dual_numbers_without_a_tangent(loss: Loss) -> Any:
    with forward_ad.dual_level():
        return loss(*data())


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)(*arguments)


@row
def compiled_jvp(loss: Loss) -> Any:
    return compiled(lambda z, y: torch.func.jvp(lambda z: loss(z, y), (z,), (z.cos(),)), *data())


@row
def compiled_gradient(loss: Loss) -> Any:
    return compiled(torch.func.grad(loss), *data())


@row
def compiled_hessian(loss: Loss) -> Any:
    return compiled(torch.func.hessian(loss), *data())


@row
def compiled_gradient_of_each_sample(loss: Loss) -> Any:
    each = torch.func.vmap(torch.func.grad(lambda z, y: loss(z[None], y[None])))
    return compiled(each, *data())


@row
def compiled_dual_numbers(loss: Loss) -> Any:
    def tangent(z: Tensor, y: Tensor) -> Tensor | None:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(loss(forward_ad.make_dual(z, z.cos()), y)).tangent

    torch._dynamo.reset()
    return torch.compile(tangent, backend="aot_eager")(*data())


@row
def compiled_rows_by_a_mask(loss: Loss) -> Any:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        return compiled(lambda z, y: loss(z[y > 0], y[y > 0]), *data())


@row
def hook_and_create_graph(loss: Loss) -> Any:
    z, y = leaf()
    z.register_hook(lambda grad: 2 * grad)
    first = torch.autograd.grad(loss(z, y), z, create_graph=True)[0]
    return first, torch.autograd.grad(first.square().sum(), z)[0]


@row
def hook_and_create_graph_inside_a_net(loss: Loss) -> Any:
    z, y = leaf()
    inner = z.sin()
    inner.register_hook(lambda grad: 2 * grad)
    inner.retain_grad()
    first = torch.autograd.grad(loss(inner, y), z, create_graph=True)[0]
    return first, torch.autograd.grad(first.square().sum(), z)[0]


@row
def hook_of_several_tensors(loss: Loss) -> Any:
    z, y = leaf()
    seen: list[Any] = []
    torch.autograd.graph.register_multi_grad_hook([z], seen.append)
    loss(z, y).backward(create_graph=True)
    return z.grad, len(seen)


@row
def checkpointed_logits_are_freed(loss: Loss) -> Any:
    x, y = leaf()
    made: list[Any] = []

    def part(x: Tensor) -> Tensor:
        z = 2 * x
        made.append(weakref.ref(z))
        return loss(z, y)

    value = checkpoint.checkpoint(part, x, use_reentrant=False)
    alive = made[0]() is not None
    first = torch.autograd.grad(value, x, create_graph=True)[0]
    return alive, first, torch.autograd.grad(first.square().sum(), x)[0]


@row
def float16_under_autocast_with_a_scaled_loss(loss: Loss) -> Any:
    z, y = torch.full((8, 100), -16.0, dtype=torch.float16), torch.arange(8)
    z[:, :10] = 0
    z.requires_grad_()
    with torch.autocast("cpu", torch.float16):
        value = loss(z, y)
    (65536 * value).backward()
    return value, z.grad[:, 10:].float().sum()  # each is about 1e-9 before the factor, 0 in float16


@row
def storage_that_was_freed(loss: Loss) -> Any:
    z, y = data()
    z.untyped_storage().resize_(0)
    return loss(z, y)


@row
def labels_whose_storage_was_freed(loss: Loss) -> Any:
    z, y = data()
    y.untyped_storage().resize_(0)
    return loss(z, y)


@row
def labels_beyond_the_classes_in_eight_bits(loss: Loss) -> Any:
    z, y = data()
    y = y.to(torch.uint8)
    y[0] = 156  # the default ignore_index, -100, in eight bits
    return loss(z, y)


@contextlib.contextmanager
def one_process() -> Iterator[Any]:
    """A process group with only this process, and its mesh."""
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def dtensor(loss: Loss, placement: str) -> Any:
    with one_process() as mesh:
        tensors = importlib.import_module("torch.distributed.tensor")
        place = [tensors.Shard(0) if placement == "rows" else tensors.Replicate()]
        z, y = (tensors.distribute_tensor(each, mesh, place) for each in data())
        value = loss(z.requires_grad_(), y)
        (2 * value).backward()
        return value.full_tensor(), z.grad.full_tensor()


for _place in ("replicated", "rows"):
    ROWS[f"dtensor_{_place}"] = functools.partial(dtensor, placement=_place)


def wrapped_layer(loss: Loss, wrap: Callable[[torch.nn.Module, Any], torch.nn.Module]) -> Tensor:
    z, y = data()
    net = torch.nn.Linear(5, 5)
    with torch.no_grad():
        net.weight.copy_(torch.eye(5))
        net.bias.zero_()
    with one_process() as mesh:
        loss(wrap(net, mesh)(z), y).backward()
        grad = net.weight.grad
        return grad.full_tensor() if hasattr(grad, "full_tensor") else grad


@row
def ddp(loss: Loss) -> Any:
    return wrapped_layer(loss, lambda net, mesh: torch.nn.parallel.DistributedDataParallel(net))


@row
def fsdp2(loss: Loss) -> Any:
    shard = importlib.import_module("torch.distributed.fsdp").fully_shard
    return wrapped_layer(loss, lambda net, mesh: shard(net, mesh=mesh))


def outcome(of: Row, loss: Loss) -> Any:
    try:
        return of(loss)
    except Exception as error:
        return error


@pytest.mark.parametrize("name", ROWS)
def test_each_mode_gives_what_cross_entropy_gives(served_quickly: str, name: str) -> None:
    want, got = outcome(ROWS[name], F.cross_entropy), outcome(ROWS[name], OURS)
    if isinstance(want, Exception):
        assert isinstance(got, Exception) or name in BETTER, (want, got)
    else:
        assert not isinstance(got, Exception), got
        torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-7)


BETTER = {
    "efficient_zero_logits",
    "backward_inside_fake_mode",
    "backward_with_a_fake_gradient",
    "sparse_logits",
    "a_functional_gradient",
}
"""Cases in which zoo's loss may return a value although PyTorch's raises."""
