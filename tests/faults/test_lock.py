"""Two runs in one folder: the second is refused in one line, and the first is as it would have been."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.running import ENDLESS, start
from tests.launchers import launcher, rows, run, tiny_run


@pytest.mark.slow
def test_a_second_run_in_the_folder_of_a_run_is_refused_until_that_one_has_ended(
    corpus_file: Path, cache_dir: str, tmp_path: Path
) -> None:
    """Also right after a kill, while the loader workers of the killed run may still be there."""
    words = tiny_run(
        corpus_file,
        cache_dir,
        eval_steps=ENDLESS,
        save_steps=20,
        dataloader_num_workers=1,
        output_dir=str(tmp_path / "run"),
    )
    first = start([*launcher("python", 1), *words, "--max_steps", str(ENDLESS)], tmp_path, after_rows=30)
    for more in (("--resume_from_checkpoint", "latest"), ("--overwrite_output_dir",)):
        second = run(launcher("python", 1), *words, *more)
        assert second.returncode == 2
        assert second.stderr.splitlines()[-1].startswith(f"error: output_dir='{tmp_path / 'run'}' is in use")
    assert first.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert steps == list(range(1, len(steps) + 1))  # no row twice
    last = steps[-1] + 2
    third = run(launcher("python", 1), *words, "--resume_from_checkpoint", "latest", "--max_steps", str(last))
    assert third.returncode == 0, third.stderr
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == list(range(1, last + 1))
