"""Which precision a run takes, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from zoo import machine
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
