"""Several processes train the same model as one process, up to rounding."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from zoo.errors import UsageError, ZooError
from zoo.training import checkpoint
from zoo.training.processes import Team, _batch_norm, joined
from zoo.training.signals import Interrupted

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ["cnn_small", "epochs=2", "data=synthetic", "device=cpu", "batch_size=1021", "data.imbalance=exp:0.05",
            "precision=fp32", "schedule=constant", "lr=0.01"]  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 250])
def test_shares_make_up_the_batch(n: int) -> None:
    shares = [range(n)[Team(rank, 3).share(n)] for rank in range(3)]
    if n < 3:
        assert all(list(share) == list(range(n)) for share in shares)
    else:
        assert [row for share in shares for row in share] == list(range(n))
        assert all(len(share) > 0 for share in shares)


def test_batch_norm_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *arguments: None)  # a team of one
    ours, theirs = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    images = torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1
    first, second = images.clone().requires_grad_(), images.clone().requires_grad_()
    a, b = _batch_norm(ours, first), theirs(second)
    torch.testing.assert_close(a, b)
    (a**3).sum().backward()
    (b**3).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 1


def start(out: Path, *more: str, processes: int = 2) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "zoo", "train", *SETTINGS, "--out", str(out), *more]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), ("mixup=0.2", "ema=0.9"), ("freeze=conv", "allow_random_frozen=true", "unfreeze=['1:stage<=2']")]
)
def test_two_processes_give_what_one_gives(tmp_path: Path, more: tuple[str, ...]) -> None:
    states = []
    for processes in (1, 2):
        child = start(tmp_path / str(processes), *more, processes=processes)
        _, err = child.communicate(timeout=300)
        assert child.returncode == 0, err
        assert err.count("epoch 2/2") == 1, err
        states.append(checkpoint.load_state(tmp_path / str(processes))[0])
    one, two = states
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_a_signal_stops_all_and_the_run_goes_on(tmp_path: Path) -> None:
    child = start(tmp_path / "run", "epochs=50")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert "resume with: zoo train --resume" in err, err
    assert checkpoint.load_state(tmp_path / "run")[1].epoch >= 1


@pytest.mark.parametrize("saved", [True, False])
def test_an_interruption_reaches_other_processes(saved: bool) -> None:
    """It is broadcast as its pickle; SIGHUP's code is SIGTERM's."""
    error = Interrupted(signal.SIGHUP, saved=saved)
    error.run = Path("run")  # type: ignore[attr-defined]
    there = pickle.loads(pickle.dumps(error))
    assert (str(there), there.code, there.saved, there.run) == ("SIGHUP", 143, saved, Path("run"))


def test_an_interruption_of_the_first_process_is_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait in the broadcast, which must take place."""
    sent: list[list[object]] = []
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box: sent.append(list(box)))

    def stopped() -> None:
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        Team(rank=0, size=2).broadcast(stopped)
    assert isinstance(sent[0][1], Interrupted)


@pytest.mark.parametrize(("size", "why"), [("x", "invalid literal"), ("2", "MASTER_ADDR")])
def test_an_environment_without_a_team_is_one_line(size: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UsageError, match=rf"WORLD_SIZE={size}, .*unset WORLD_SIZE"), joined():
        pass


def test_a_killed_process_is_one_line_in_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *arguments: None)
    text = "[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:13978: Connection reset by peer"  # torch 2.15
    with pytest.raises(ZooError, match="lost another of the 2 processes; .* --resume"), joined():
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="own fault"), joined():
        raise RuntimeError("own fault")
