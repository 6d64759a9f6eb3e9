"""A process or a loader worker that dies or hangs: the rest end with a named error, and the run goes on exactly."""

import re
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from launch.run.processes import what_was_lost
from tests.faults.running import ENDLESS, assert_gone, start, trainers
from tests.launchers import launcher, rows, run, tiny_run

PROCESS_TIMEOUT = 8
TORCHRUN_KILLS_AFTER = 30


def _words(corpus_file: Path, cache_dir: str) -> list[str]:
    return tiny_run(
        corpus_file,
        cache_dir,
        eval_steps=ENDLESS,
        save_steps=5,
        lr_scheduler_type="constant",
        dataloader_num_workers=1,
        process_timeout=PROCESS_TIMEOUT,
        dataloader_timeout=PROCESS_TIMEOUT,
    )


def _assert_same_end(one: Path, other: Path) -> None:
    """Parameters and optimizer of the last checkpoints, bit for bit, and the training rows."""
    last = sorted((one / "checkpoints").iterdir())[-1].name
    for name in ("model.safetensors", "optimizer.safetensors"):
        first, second = (load_file(folder / "checkpoints" / last / name) for folder in (one, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert [row["loss"] for row in rows(one) if "loss" in row] == [row["loss"] for row in rows(other) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        *[("rank killed", "process 0: another process died")] * 3,
        *[("worker killed", "process 1: a loader worker died")] * 3,
        ("rank stuck", "process 0: another process died, or did not answer"),
    ],
)
def test_the_rest_end_with_a_named_error_and_the_run_goes_on_exactly(
    fault: str, message: str, corpus_file: Path, cache_dir: str, tmp_path: Path
) -> None:
    words = [*_words(corpus_file, cache_dir), "--output_dir", str(tmp_path / "run")]
    process = start([*launcher("torchrun", 2), *words, "--max_steps", str(ENDLESS)], tmp_path, after_rows=12)
    family = psutil.Process(process.pid).children(recursive=True)
    victim = trainers(process)[1]
    began = time.monotonic()
    if fault == "rank killed":
        victim.kill()
    elif fault == "rank stuck":
        victim.suspend()
    else:
        victim.children()[-1].kill()
    limit = PROCESS_TIMEOUT + TORCHRUN_KILLS_AFTER + 10
    assert process.wait(timeout=limit) != 0
    assert_gone(family, within=limit - (time.monotonic() - began))
    assert f"error: {message}" in (tmp_path / "output.txt").read_text()

    newest = max(int(path.name[-8:]) for path in (tmp_path / "run" / "checkpoints").iterdir() if not path.suffix)
    last = str(newest + 7)
    resumed = run(launcher("torchrun", 2), *words, "--max_steps", last, "--resume_from_checkpoint", "latest")
    assert resumed.returncode == 0, resumed.stderr
    whole = tmp_path / "whole"
    done = run(launcher("torchrun", 2), *words, "--max_steps", last, "--output_dir", str(whole))
    assert done.returncode == 0, done.stderr
    _assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_under_torchruns_restarts_the_run_goes_on_by_itself(
    corpus_file: Path, cache_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch 2.13 else keeps the dead processes' addresses, and the restarted ones look for each other there.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    steps = ("--max_steps", "300")
    patience = ("--process_timeout", "60")  # two processes that restart meet within this
    words = [*_words(corpus_file, cache_dir), *steps, *patience, "--resume_from_checkpoint", "latest"]
    torchrun = launcher("torchrun", 2)
    torchrun[1:1] = ["--max_restarts", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    process = start([*torchrun, *words, "--output_dir", str(tmp_path / "run")], tmp_path, after_rows=20)
    trainers(process)[1].kill()
    assert process.wait(timeout=180) == 0, (tmp_path / "output.txt").read_text()
    assert re.search(r"resumed +.*step-\d+, after step \d+", (tmp_path / "output.txt").read_text())
    done = run(launcher("torchrun", 2), *words, "--output_dir", str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    _assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_worker_that_dies_in_the_middle_of_a_batch_is_named_too() -> None:
    """Its pipe breaks before torch sees that it is dead: once in six tries the error was no DataLoader's."""
    assert "a loader worker died" in str(what_was_lost(ConnectionResetError(104, "Connection reset by peer")))
    assert "a loader worker died" in str(what_was_lost(EOFError()))
    assert what_was_lost(OSError(28, "No space left on device")) is None
