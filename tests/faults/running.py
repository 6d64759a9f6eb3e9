"""Start real runs, and see them end."""

import subprocess
import time
from pathlib import Path

import psutil

from tests.launchers import ROOT, environment

ENDLESS = 1_000_000


def start(command: list[str], folder: Path, after_rows: int = 3, run: str = "run") -> subprocess.Popen[str]:
    """Start a run in a process group of its own, and wait until it has written some rows of metrics.

    What it prints goes to ``output.txt`` in the folder; its own folder must be ``run`` in there, or what is given.
    """
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=output, stderr=output, text=True, start_new_session=True
        )
    deadline = time.monotonic() + 120
    metrics = folder / run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < after_rows:
        assert process.poll() is None, (folder / "output.txt").read_text()
        assert time.monotonic() < deadline, (folder / "output.txt").read_text()
        time.sleep(0.05)
    return process


def trainers(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The training processes of a launcher, by rank."""
    children = psutil.Process(process.pid).children()
    return {int(child.environ()["RANK"]): child for child in children if "launch.train" in " ".join(child.cmdline())}


def assert_gone(processes: list[psutil.Process], within: float = 30) -> None:
    """Fail if a process is left after some seconds; and end it, for the tests that follow."""
    _, alive = psutil.wait_procs(processes, timeout=within)
    for process in alive:
        process.kill()
    assert alive == []
