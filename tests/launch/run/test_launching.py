"""``--num_processes``: the command starts its processes itself, and ends as they do."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from launch.run.launching import processes_to_start
from tests.faults.running import ENDLESS, assert_gone, start
from tests.launchers import assert_same_run, launcher, rows, run, tiny_run

_TWO = [sys.executable, "-m", "launch.mlm", "train", "--num_processes", "2"]


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(corpus_file: Path, cache_dir: str, tmp_path: Path) -> None:
    words = tiny_run(corpus_file, cache_dir)
    done = run(_TWO, *words, "--output_dir", str(tmp_path / "two"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "= 2 process(es) x" in done.stdout
    assert run(launcher("python", 1), *words, "--output_dir", str(tmp_path / "one")).returncode == 0
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_is_passed_on_and_the_command_ends_after_the_checkpoint(
    number: signal.Signals, corpus_file: Path, cache_dir: str, tmp_path: Path
) -> None:
    """SIGINT goes to the whole group, as from a terminal; SIGTERM to the command alone, as from a scheduler."""
    words = tiny_run(corpus_file, cache_dir, eval_steps=ENDLESS, max_steps=ENDLESS, lr_scheduler_type="constant")
    process = start([*_TWO, *words, "--output_dir", str(tmp_path / "run")], tmp_path)
    family = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.wait(timeout=60) == 128 + number
    assert not any(child.is_running() for child in family)  # it waited for them
    assert_gone(family)
    last = rows(tmp_path / "run")[-1]["step"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{last:08d}"]
    output = (tmp_path / "output.txt").read_text()
    assert f"stopped after step {last} by {number.name}" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"block_size": 100_000}, 2, "error: dataset="),
        pytest.param({"learning_rate": 1e30, "max_grad_norm": 0}, 1, "error: ", marks=pytest.mark.slow),
    ],
)
def test_an_error_is_one_line_with_its_own_code(
    changes: dict[str, float], code: int, message: str, corpus_file: Path, cache_dir: str, tmp_path: Path
) -> None:
    done = run(_TWO, *tiny_run(corpus_file, cache_dir, **changes), "--output_dir", str(tmp_path / "run"))
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_command_ends_as_the_process_that_was_killed(corpus_file: Path, cache_dir: str, tmp_path: Path) -> None:
    words = tiny_run(corpus_file, cache_dir, eval_steps=ENDLESS, max_steps=ENDLESS, lr_scheduler_type="constant")
    process = start([*_TWO, *words, "--output_dir", str(tmp_path / "run")], tmp_path)
    family = psutil.Process(process.pid).children(recursive=True)
    next(child for child in family if child.environ().get("RANK") == "1").kill()
    assert process.wait(timeout=60) in (1, 128 + signal.SIGKILL)  # perhaps the other one, which misses it, is first
    assert_gone(family)
    assert "Traceback" not in (tmp_path / "output.txt").read_text()


def test_a_number_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name in ("LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert processes_to_start(None) == 1
    assert processes_to_start(3) == 3
    with pytest.raises(ValueError, match="num_processes=0 must be at least 1"):
        processes_to_start(0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes_to_start(None) == processes_to_start(2) == 1
    with pytest.raises(ValueError, match="num_processes=3: the launcher started 2"):
        processes_to_start(3)
