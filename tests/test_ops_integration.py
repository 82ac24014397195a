"""The focal loss op with other parts of PyTorch: transforms, compilers, processes, threads, and missing libraries."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ops_cases import SETS, both
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo import doctor, ops
from zoo.training import loop
from zoo.training.batches import Batch

ROOT = Path(__file__).resolve().parent.parent


def test_autocast_takes_what_comes(served: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.randn(8, 4, requires_grad=True) @ torch.randn(4, 3)
        loss = ops.focal_loss(logits, torch.randint(3, (8,)))
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()


def test_compile_and_export() -> None:
    class Net(torch.nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return ops.focal_loss(2 * logits, target, 1.5, label_smoothing=0.1)

    logits, target = torch.randn(12, 5, requires_grad=True), torch.randint(5, (12,))
    want = Net()(logits, target)
    (want_grad,) = torch.autograd.grad(want, logits)
    got = torch.compile(Net(), fullgraph=True, backend="aot_eager")(logits, target)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, logits)[0], want_grad)
    program = torch.export.export(
        Net(), (logits.detach(), target), dynamic_shapes=({0: torch.export.Dim("n")}, {0: torch.export.Dim("n")})
    )
    assert any("focal_loss" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(logits.detach()[:7], target[:7]), Net()(logits[:7], target[:7]).detach())


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    """Inductor generates code around the op and calls the op unchanged."""

    def net(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return 3 * ops.focal_loss(logits.tanh() * 2, target, 1.5, weight, label_smoothing=0.1)

    compiled = torch.compile(net, fullgraph=True)
    for rows in (12, 30, 31):  # the second makes the size dynamic
        logits, target = torch.randn(rows, 5, requires_grad=True), torch.randint(5, (rows,))
        target[1] = -100
        weight = torch.rand(5)
        want, got = net(logits, target, weight), compiled(logits, target, weight)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got, logits)[0], torch.autograd.grad(want, logits)[0])


DISTRIBUTED = """
import sys
import torch, torch.distributed as dist
from zoo import ops
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
net, weight = torch.nn.Linear(8, 5), torch.rand(5)
x, y = torch.randn(12, 8), torch.randint(5, (12,))
def loss(model, rows):
    return ops.focal_loss(model(x[rows]), y[rows], 1.5, weight, label_smoothing=0.1)
want, alone = (torch.autograd.grad(loss(net, rows), list(net.parameters())) for rows in (slice(0, 12), slice(6 * rank, 6 * rank + 6)))
team = torch.nn.parallel.DistributedDataParallel(net)
loss(team, slice(6 * rank, 6 * rank + 6)).backward()
for whole, half, parameter in zip(want, alone, net.parameters()):
    torch.testing.assert_close(parameter.grad, whole)
    assert not torch.allclose(half, whole)
dist.destroy_process_group()
print("the same")
"""


SHARDED = """
import sys
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from zoo import ops
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
torch.manual_seed(0)
logits, target, weight = torch.randn(11, 6), torch.randint(6, (11,)), torch.rand(6)
target[:4] = -100  # so that the mean over rows is not the mean of the two halves' means
shares = torch.softmax(torch.randn(11, 6), 1)
def check(z, y, w, reduction):
    value = ops.focal_loss(z, y, 1.5, w, reduction=reduction)
    value.sum().backward()
    whole = lambda each: each.full_tensor() if hasattr(each, "full_tensor") else each
    return whole(value.detach()), whole(z.grad)
for labels in (target, shares):
    for reduction in ("mean", "weighted_mean", "sum", "none"):
        want = check(logits.clone().requires_grad_(), labels, weight, reduction)
        for place in (Shard(0), Replicate(), Shard(1)):
            by = Replicate() if place == Shard(1) and labels is target else place
            z = distribute_tensor(logits.clone(), mesh, [place]).requires_grad_()
            got = check(z, distribute_tensor(labels, mesh, [by]), distribute_tensor(weight, mesh, [Replicate()]), reduction)
            torch.testing.assert_close(got, want)
net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 6))
x, y = torch.randn(12, 8), torch.randint(6, (12,))
want = torch.autograd.grad(ops.focal_loss(net(x), y, 1.5), list(net.parameters()))
fully_shard(net, mesh=mesh)
half = slice(6 * rank, 6 * rank + 6)
ops.focal_loss(net(x[half]), y[half], 1.5).backward()
torch.testing.assert_close([each.grad.full_tensor() for each in net.parameters()], list(want))
dist.destroy_process_group()
print("the same")
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [DISTRIBUTED, SHARDED], ids=["DDP", "DTensor and FSDP2"])
def test_two_processes_give_the_loss_and_gradients_of_one(script: str, tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", script, str(rank), str(tmp_path / "meet")] for rank in range(2)]
    teams = [subprocess.Popen(each, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in commands]
    outcomes = [each.communicate(timeout=120) for each in teams]
    assert [out.strip() for out, _ in outcomes] == ["the same"] * 2, outcomes


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("C++ avx2, CUDA", "ok"),
        ("PyTorch (no compiler found)", "absent"),
        ("zoo's compiled extension cannot be loaded (x)", "broken"),
    ],
)
def test_the_doctor_names_the_kernel(monkeypatch: pytest.MonkeyPatch, text: str, state: str) -> None:
    monkeypatch.setattr(ops, "kernel", lambda: text)
    assert ("focal loss kernel", state, text) in doctor._kernels()


def test_eight_threads_at_once(served: str) -> None:
    logits, target = torch.randn(4000, 20), torch.randint(20, (4000,))
    want = both(logits, target)
    found: list[tuple[Tensor, Tensor]] = []
    workers = [threading.Thread(target=lambda: found.append(both(logits, target))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(found) == 8
    assert all(torch.equal(loss, want[0]) and torch.equal(grad, want[1]) for loss, grad in found)


FORKED = """
import os, torch
from zoo import ops
torch.set_num_threads(2)
x, y = torch.randn(20000, 10), torch.randint(10, (20000,))
want = ops.focal_loss(x, y)
pid = os.fork()
if pid == 0:
    os._exit(0 if torch.equal(ops.focal_loss(x, y), want) else 3)
print("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(ops._C is None, reason="the formula is PyTorch's own, which hangs in a bare fork")
def test_fork_after_a_parallel_region() -> None:
    ran = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "exit 0", ran.stderr


def test_a_library_that_does_not_load_is_reported_on_use(tmp_path: Path) -> None:
    package = tmp_path / "zoo"
    package.mkdir()
    for path in [*(ROOT / "zoo").glob("focal_*.py"), *(ROOT / "zoo" / name for name in ("__init__.py", "ops.py", "spec.py"))]:
        (package / path.name).write_bytes(path.read_bytes())
    (package / "_C.so").write_bytes(b"not a library")
    code = "import zoo, zoo.ops, torch; print(zoo.ops.kernel()); zoo.ops.focal_loss(torch.zeros(1, 2), torch.tensor([0]))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "cannot be loaded" in ran.stdout and "rebuild" in ran.stdout
    assert ran.stderr.strip().splitlines()[-1].startswith("ImportError: zoo's compiled extension cannot be loaded")


class Found:
    """Replaces zoo._C_cuda after a kernel met a wrong label in row 3."""

    row = 3

    def take_wrong_row(self) -> int:
        row, self.row = self.row, -1
        return row


def test_a_wrong_label_on_cuda_is_reported_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_C_cuda", Found())
    ops.focal_loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))  # CPU tensors do not consult it
    with FakeTensorMode():
        logits, target = torch.empty(4, 3, device="cuda"), torch.empty(4, dtype=torch.int64, device="cuda")
        with pytest.raises(IndexError, match="^target row 3 of an earlier focal loss on CUDA was out of range"):
            ops.focal_loss(logits, target)
        assert ops.focal_loss(logits, target).shape == ()


def test_training_tells_of_a_wrong_label_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_C_cuda", Found())
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    step = loop.Step(torch.optim.SGD(net.parameters(), lr=0.1), lambda at: 0.1, torch.device("cpu"))
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), np.arange(2), np.zeros((2, 1)))
    outcomes = contextlib.nullcontext(), pytest.raises(IndexError, match="target row 3"), contextlib.nullcontext()
    for on_cuda, wanted in zip((False, True, True), outcomes, strict=True):
        value = SimpleNamespace(item=lambda: float("nan"), is_cuda=on_cuda, numel=lambda: 1, requires_grad=True)
        with wanted:
            assert loop._update(net, lambda z, y, value=value: value, step, 0, [batch]) is None


def test_kernel_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.kernel().startswith(("C++ ", "PyTorch ("))
    monkeypatch.setattr(ops, "_C", None)
    assert ops.kernel().startswith("PyTorch (")


def test_every_instruction_set_is_reached_here() -> None:
    if ops._C is None:
        pytest.skip(f"no compiled library: {ops.kernel()}")
    assert {"formula", "default"} <= set(SETS)
    with pytest.raises(ValueError, match="no sse9"):
        ops._C.capability("sse9")


@pytest.mark.parametrize("name", [*SETS[1:], "sse9"])
def test_the_environment_chooses_the_instruction_set(name: str) -> None:
    """An unavailable instruction set is not an error: the best one is used."""
    code = "from zoo import ops; print(ops.kernel().split(',')[0])"
    environment = {**os.environ, "ZOO_CPU_CAPABILITY": name}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == f"C++ {name if name in SETS else SETS[-1]}" or ops._C is None, ran.stderr


@pytest.mark.parametrize(("weight", "most"), [(None, 28), (torch.ones(10), 29)], ids=["plain", "weighted"])
def test_a_small_call_makes_few_calls(weight: Tensor | None, most: int) -> None:
    """At 128 x 10 the calls of Python take longer than the kernel; the limit is the number when it was last reduced."""
    if ops._C is None:
        pytest.skip(f"the formula makes many: {ops.kernel()}")
    z, y = torch.randn(128, 10, requires_grad=True), torch.randint(10, (128,))
    made: list[str] = []

    def note(frame: FrameType, event: str, what: Any) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(str(Path(ops.__file__).parent)):
            made.append(frame.f_code.co_name if event == "call" else what.__name__)

    sys.setprofile(note)
    try:
        ops.focal_loss(z, y, weight=weight).backward()
    finally:
        sys.setprofile(None)
    assert "run" in made and len(made) <= most, (len(made), made)
