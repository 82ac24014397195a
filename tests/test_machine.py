"""The precision of a run, and the devices and precisions that it rejects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zoo import machine, thread_settings
from zoo.errors import UsageError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bf16_where_the_hardware_multiplies_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast and not including_emulation)
    assert [machine.precision("auto", where) for where in (CPU, GPU)] == ["bf16" if fast else "fp32"] * 2
    for name in ("fp32", "bf16"):
        assert machine.precision(name, CPU) == machine.precision(name, GPU) == name


def test_fp16_needs_a_gpu() -> None:
    assert machine.precision("fp16", GPU) == "fp16"
    with pytest.raises(UsageError, match="precision = 'fp16' needs a GPU"):
        machine.precision("fp16", CPU)


VARIABLES = thread_settings.VARIABLES


@pytest.mark.parametrize(
    ("variables", "processes", "expected"),
    [
        ({}, 1, (8, "cores")),
        ({}, 2, (4, "cores")),
        ({"OMP_NUM_THREADS": "3"}, 1, (3, "OMP_NUM_THREADS")),
        ({"OMP_NUM_THREADS": "3,2"}, 2, (3, "OMP_NUM_THREADS")),
        ({"OMP_NUM_THREADS": "many"}, 1, (8, "cores")),
        ({"OMP_NUM_THREADS": "0"}, 1, (8, "cores")),
        ({"SLURM_CPUS_PER_TASK": "2"}, 1, (2, "SLURM_CPUS_PER_TASK")),
        ({"SLURM_CPUS_PER_TASK": "2", "OMP_NUM_THREADS": "4"}, 1, (4, "OMP_NUM_THREADS")),
        ({"ZOO_THREADS": "5", "OMP_NUM_THREADS": "4"}, 1, (5, "--threads")),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 2, (4, "cores")),
        ({"OMP_NUM_THREADS": "2", "TORCHELASTIC_RUN_ID": "x"}, 2, (2, "OMP_NUM_THREADS")),
    ],
)
def test_what_decides_the_threads(
    variables: dict[str, str], processes: int, expected: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*VARIABLES, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert machine.threads(processes) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, (150_000, 100_000)),
        ({"cpu.max": "max 100000"}, (0, 100_000)),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, (400_000, 100_000)),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, (-1, 100_000)),
        ({"cpu.max": "nonsense"}, (0, 1)),
        ({}, (0, 1)),
    ],
)
def test_the_share_of_a_container(
    files: dict[str, str], expected: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(thread_settings, "CGROUP", tmp_path)
    assert thread_settings._quota() == expected
    assert machine.cores() >= 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpu", "no device 'gpu'"),
        ("meta", "cannot compute"),
        ("privateuseone", "cannot be used"),
        ("mps", "'mps' cannot be used"),
        ("xpu", "'xpu' cannot be used"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name: str, says: str) -> None:
    if name in ("mps", "xpu") and getattr(torch, name).is_available():
        pytest.skip(f"{name} is here")
    with pytest.raises(UsageError, match=says) as caught:
        machine.device(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 200


def test_a_device_that_torch_can_use_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.device("cpu") == CPU
    assert machine.precision("auto", torch.device("mps")) == "fp32"
