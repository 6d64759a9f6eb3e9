"""Trackers: what TensorBoard's own reader finds in a run's folder, whole and resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.launch.conftest import Train

TENSORBOARD = ("--report_to", "tensorboard")


def _read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard" / "mlm-train-loop"))
    events.Reload()
    return events


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = _read(folder)
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def _event_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "tensorboard" / "mlm-train-loop").iterdir() if path.is_file()]


def _in_float32(rows: list[dict[str, Any]], name: str) -> list[tuple[int, Any]]:
    return [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]


def test_tensorboard_has_the_rows_the_probes_and_the_settings(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_written")
    rows = train(tmp_path, *TENSORBOARD, "--probe", "the cat <mask> on a mat")
    scalars = _scalars(tmp_path)
    names = {name for row in rows for name in row} - {"step", "probes"}
    assert set(scalars) == names
    for name in names:
        assert scalars[name] == _in_float32(rows, name)
    (text,) = {tag for tag in _read(tmp_path).Tags()["tensors"] if tag.startswith("probes")}
    first = _read(tmp_path).Tensors(text)[0]
    assert first.step == 3
    assert b"the cat <mask> on a mat: " in first.tensor_proto.string_val[0]
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").rglob("*") if path.is_file())
    assert b"mlm_probability: 0.15" in written  # hparams.yml
    assert b"hf_not_to_be_written" not in written


def test_a_resumed_run_goes_on_in_the_same_tracker_run_without_repeated_steps(train: Train, tmp_path: Path) -> None:
    """Killed after step 9 with the checkpoint of step 3: the rows of 4 to 9 come again and are read once."""
    words = (*TENSORBOARD, "--max_steps", "9", "--save_total_limit", "none")
    train(tmp_path, *words)
    tracker_id = (tmp_path / "tracker_id").read_text()
    for step in (6, 9):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    rows = train(tmp_path, *words, "--resume_from_checkpoint", "latest")
    assert (tmp_path / "tracker_id").read_text() == tracker_id
    assert len(_event_files(tmp_path)) == 2  # one of each start
    scalars = _scalars(tmp_path)
    assert scalars["seconds"] == _in_float32(rows, "seconds")
    assert [step for step, _ in scalars["loss"]] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [step for step, _ in scalars["eval_loss"]] == [3, 6, 9]

    train(tmp_path, *TENSORBOARD, "--overwrite_output_dir")
    assert (tmp_path / "tracker_id").read_text() != tracker_id
    assert len(_event_files(tmp_path)) == 1


def test_without_report_to_there_is_no_tracker(train: Train, tmp_path: Path) -> None:
    train(tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert not (tmp_path / "tracker_id").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tensorbord", "report_to='tensorbord': the trackers are tensorboard, wandb, trackio"),
        ("tensorboard,wandb", "report_to=tensorboard,wandb: wandb is not installed: pip install wandb"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_one_line(
    names: str,
    message: str,
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train_loop.watching.trackers.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", "--report_to", names)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "run").exists()
