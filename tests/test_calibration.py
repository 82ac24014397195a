"""Temperature scaling: the fit, the file, and its use in every prediction of a run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from zoo import calibration, run, run_folders
from zoo.__main__ import run as zoo
from zoo.errors import DataError, FileError


@pytest.mark.parametrize("wanted", [0.3, 1.0, 4.0])
def test_the_fit_finds_the_temperature_that_made_the_labels(wanted: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 5, generator=draw)
    targets = torch.multinomial((logits / wanted).softmax(1), 1, generator=draw).squeeze(1)
    assert calibration.fit(logits, targets) == pytest.approx(wanted, rel=0.05)


def test_logits_that_separate_the_classes_stay_within_bounds() -> None:
    targets = torch.arange(4).repeat(5)
    assert calibration.LEAST <= calibration.fit(9.0 * F.one_hot(targets), targets) <= calibration.MOST


def test_images_that_do_not_determine_a_temperature_change_nothing() -> None:
    """All of them correct: ever more confident outputs would be better."""
    targets = torch.arange(4).repeat(5)
    with pytest.raises(
        DataError, match=r"20 val images do not determine a temperature \(20 are classified correctly.*data.val=0.2"
    ):
        calibration.of(9.0 * F.one_hot(targets), targets, split="val", weights="w")


@pytest.mark.parametrize(("wanted", "n"), [(0.5, 200), (3.0, 1000)])
def test_the_interval_holds_the_temperature_in_95_per_cent_of_draws(wanted: float, n: int) -> None:
    draw = torch.Generator().manual_seed(1)
    inside = 0
    for _ in range(200):
        logits = 3 * torch.randn(n, 5, generator=draw)
        targets = torch.multinomial((logits / wanted).softmax(1), 1, generator=draw).squeeze(1)
        low, high = calibration.interval(logits, targets, calibration.fit(logits, targets))
        inside += low <= wanted <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_few_images_have_a_wide_interval_and_separated_ones_the_bounds() -> None:
    targets = torch.arange(4).repeat(5)
    assert calibration.interval(torch.zeros(20, 4), targets, 1.0) == (calibration.LEAST, calibration.MOST)
    draw = torch.Generator().manual_seed(0)
    low, high = calibration.interval(torch.randn(10, 4, generator=draw), targets[:10], 1.0)
    assert high / low > 2


def test_a_run_is_calibrated_once_and_everywhere(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(small_run, tmp_path / "run")
    plain, x = run.load(folder), torch.randn(3, 3, 32, 32)
    assert zoo(["eval", str(folder), "--calibrate", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads((folder / "calibration.json").read_text())
    assert found["loss_after"] <= found["loss_before"]
    ends = f"[{found['low']:.3f}, {found['high']:.3f}]"
    assert f"temperature {found['temperature']:.3f} {ends} from {found['n']:,} validation images" in err
    assert json.loads(out)["temperature"] == found["temperature"]
    scaled = run.load(folder)
    with torch.inference_mode():
        torch.testing.assert_close(scaled.model(x), plain.model(x) / found["temperature"])
    assert list(scaled.model.state_dict()) == list(plain.model.state_dict())
    assert zoo(["eval", str(folder), "--calibrate"]) == 0
    assert json.loads((folder / "calibration.json").read_text())["temperature"] == pytest.approx(found["temperature"], rel=1e-3)


def test_a_calibration_of_other_weights_is_not_used(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(small_run, tmp_path / "run")
    calibration.save(folder, calibration.Calibration(2.0, "val", 1, 1.0, 1.0, "of others"))
    assert run.load(folder).temperature == 1.0
    assert "belongs to other weights and is ignored" in capsys.readouterr().err
    for text in ("", "{}", '{"temperature": "hot"}', "\xff"):
        (folder / "calibration.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(FileError, match=r"damaged file .*calibration.json.*zoo eval --calibrate"):
            run.load(folder)
    run_folders.clear(folder)
    assert not (folder / "calibration.json").exists()


def test_an_exported_file_is_calibrated_too(small_run: Path, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    import zoo.export

    folder = shutil.copytree(small_run, tmp_path / "run")
    plain = run.load(folder)
    calibration.save(folder, calibration.Calibration(2.0, "val", 1, 1.0, 1.0, plain.weights))
    zoo.export.onnx(run.load(folder), tmp_path / "model.onnx", preprocess="none")
    x = torch.randn(3, 3, 32, 32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    answers = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.inference_mode():
        torch.testing.assert_close(torch.tensor(answers), plain.model(x) / 2, atol=1e-4, rtol=1e-4)
    facts = {each.key: each.value for each in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert facts["temperature"] == "2"


def test_half_precision_does_not_change_the_predicted_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 10, generator=draw).bfloat16()
    model = torch.nn.Identity()
    calibration.apply(model, 2.7)
    assert torch.equal(model(logits).argmax(1), logits.argmax(1))
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied(logits), model(logits))


def test_weights_that_were_changed_are_not_calibrated(small_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_run, tmp_path / "run")
    loaded = run.load(folder)
    with torch.no_grad():
        next(loaded.model.parameters()).mul_(1.3)
    with pytest.raises(ValueError, match=r"run.model has other weights than the run"):
        run.calibrate(loaded)
    assert not (folder / "calibration.json").exists()


def test_a_run_without_validation_images_cannot_be_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        zoo(
            [
                "train",
                "cnn_small",
                "--data",
                "synthetic",
                "--val",
                "0",
                "--epochs",
                "1",
                "data.per_class=10",
                "--out",
                str(tmp_path / "r"),
            ]
        )
        == 0
    )
    for words in ([], ["--split", "train"]):
        assert zoo(["eval", str(tmp_path / "r"), "--calibrate", *words]) == 3
        assert "the val split is empty (synthetic, data.val 0.0); train with data.val above 0" in capsys.readouterr().err
