"""Peers of the focal loss benchmark: why one has no row, which variant of ``F.linear_cross_entropy`` a row measures."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from zoo.bench import _heads, _losses, focal_loss

ROW = {
    "n": "8", "c": "4", "dtype": "fp32", "threads": "1", "pass": "forward+backward", "contender": "zoo", "noisy": "no",
    "median_us": "1", "times_copy": "1", "ratio": "1", "grad_error": "0", "peak_mb": "1",
}  # fmt: skip
STEP = ROW | {"pass": "resnet32 training step", "n": "128", "loss_share": "0.01"}


@pytest.mark.parametrize(
    ("device", "installed", "torch_has_it", "says"),
    [
        ("cpu", True, True, ["its kernels are in Triton, which needs a GPU", "its softmax_focal_loss has no CPU kernel"]),
        ("cpu", False, False, ["Triton", "no CPU kernel", "F.linear_cross_entropy: it is in torch from 2.15 on, this is"]),
        ("NVIDIA H100", False, True, ["no row of Liger: not installed", "no row of mmcv: not installed"]),
        ("NVIDIA H100", True, True, []),
    ],
)
def test_the_table_says_why_a_peer_has_no_row(
    monkeypatch: pytest.MonkeyPatch, device: str, installed: bool, torch_has_it: bool, says: list[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(F, "linear_cross_entropy", print, raising=False)
    if not torch_has_it:
        monkeypatch.delattr(F, "linear_cross_entropy")
    lines = _losses.absent(device)
    assert len(lines) == len(says) and all(word in line for word, line in zip(says, lines, strict=True))
    share = "share of the loss in a resnet32 training step, batch 128: zoo 1.00%"
    assert focal_loss.table([row | {"device": device} for row in (ROW, STEP)]).caption == "\n".join([share, *lines])


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.15 has it")
def test_one_row_measures_linear_cross_entropy_in_parts_of_the_batch() -> None:
    """Without options it computes the logits of the whole batch."""
    head = _heads.Head.draw(512, 2000, torch.device("cpu"))
    losses = _heads.contenders(torch.device("cpu"))
    peak = {name: focal_loss._peak(head.call(loss)) for name, loss in losses.items()}
    logits = 512 * 2000 * 4 / 1e6
    assert peak["F.linear_cross_entropy"] >= 2 * logits
    assert peak["F.linear_cross_entropy chunked"] < logits
    assert all(max(head.error(loss)) < 1e-5 for loss in losses.values())


def test_a_wrong_gradient_of_the_layer_is_seen() -> None:
    head = _heads.Head.draw(32, 10, torch.device("cpu"))
    doubled = head.error(lambda x, w, y: F.cross_entropy(F.linear(x, 2 * w - w.detach()), y))
    assert doubled[0] < 1e-6 and doubled[1] == pytest.approx(1, rel=1e-3)


def test_a_peer_that_fails_is_left_out_and_zoo_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("no kernel image\nfor this device")

    head, known = _heads.Head.draw(16, 10, torch.device("cpu")), _heads.contenders(torch.device("cpu"))
    monkeypatch.setattr(_heads, "contenders", lambda device: known | {_heads.PEERS[2]: fails})
    rows = focal_loss._layers(head, 1, 0.01)
    assert [row["contender"] for row in rows] == list(known)
    assert "skipped  Liger linear_cross_entropy: no kernel image\n" in capsys.readouterr().err
    monkeypatch.setattr(_heads, "contenders", lambda device: known | {_heads.OWN[0]: fails})
    with pytest.raises(RuntimeError, match="no kernel image"):
        focal_loss._layers(head, 1, 0.01)
