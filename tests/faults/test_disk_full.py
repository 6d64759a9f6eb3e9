"""A disk that is full while saving: a clear error, the earlier checkpoints as they were, then what a setting says."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchers import launcher, rows, run, tiny_run
from train_loop.checkpoint import verify
from train_loop.run_checkpoints import checkpoints, find_checkpoint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for some checkpoints of the tiny run, but not for all."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _words(corpus_file: Path, cache_dir: str, disk: Path) -> list[str]:
    words = tiny_run(corpus_file, cache_dir, max_steps=20, eval_steps=20, save_steps=1, save_total_limit="none")
    return [*words, "--output_dir", str(disk / "run")]


def _assert_intact(disk: Path) -> int:
    """Every checkpoint there is is valid, and nothing half-written takes room; return the last one's step."""
    there = checkpoints(disk / "run")
    assert there
    for folder in there:
        verify(folder)
    assert not list((disk / "run" / "checkpoints").glob("*.tmp"))
    assert find_checkpoint("latest", disk / "run") == there[-1]
    return int(there[-1].name[-8:])


@pytest.mark.parametrize("attempt", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 3))])
def test_the_run_ends_and_can_go_on_when_there_is_room(
    attempt: int, small_disk: Path, corpus_file: Path, cache_dir: str
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * (37_000 * attempt))  # each attempt fills up at another byte
    words = _words(corpus_file, cache_dir, small_disk)
    done = run(launcher("python", 1), *words)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "earlier checkpoints are as they were" in errors[0]
    assert "Traceback" not in done.stderr
    step = _assert_intact(small_disk)

    ballast.unlink()
    for old in checkpoints(small_disk / "run")[:-1]:
        for path in old.iterdir():
            path.unlink()
        old.rmdir()
    resumed = run(
        launcher("python", 1), *words, "--resume_from_checkpoint", "latest", "--max_steps", str(step + 1)
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert f"after step {step}" in resumed.stdout


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [0, 1])
def test_or_it_goes_on_without(attempt: int, small_disk: Path, corpus_file: Path, cache_dir: str) -> None:
    """The metrics are written to the same full disk, so a little room is left for them."""
    words = _words(corpus_file, cache_dir, small_disk)
    done = run(launcher("python", 1), *words, "--on_save_error", "warn", "--save_steps", str(2 + attempt))
    assert "could not be written" in done.stderr
    assert "training goes on" in done.stderr
    assert "Traceback" not in done.stderr
    _assert_intact(small_disk)
    assert rows(small_disk / "run")
