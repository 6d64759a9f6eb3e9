"""Commands that push, in processes of their own, whose Hub is the stand-in."""

import subprocess
import sys
from pathlib import Path

from tests.hub import TOKEN, USER, Hub
from tests.launchers import ROOT

NAME = f"{USER}/tiny"
REPOSITORY = f"models/{NAME}"


def train_words(folder: Path, model_folder: Path, eli5_folder: Path) -> list[str]:
    words = ["--dataset", str(eli5_folder), "--eval_fraction", "0.2", "--model_name_or_path", str(model_folder)]
    words += ["--block_size", "16", "--global_batch_size", "8", "--max_steps", "4", "--eval_steps", "2"]
    words += ["--logging_steps", "1", "--learning_rate", "1e-3", "--cpu_threads", "1"]
    return [*words, "--output_dir", str(folder), "--cache_dir", str(folder.parent / "cache")]


def python(
    words: list[str], hub: Hub | None, tmp_path: Path, token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(("-m", *words) if words[0].startswith("launch.") else words)]
    environment = None if hub is None else hub.environment(tmp_path, token)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


_IMPATIENT = """
import sys, time
from train_loop.sharing import hub as publish
from {module} import main
publish._LIMITS = dict.fromkeys(publish._LIMITS, 0.3)
time.sleep = lambda seconds: None
main(sys.argv[1:])
"""


def impatient(words: list[str], hub: Hub, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """A command that waits a third of a second for the Hub, and does not wait before it tries again."""
    return python(["-c", _IMPATIENT.format(module=words[0]), *words[1:]], hub, tmp_path)


def publish(hub: Hub, tmp_path: Path, model: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(["launch.publish", "--model", str(model), "--repo_id", NAME, *words], hub, tmp_path)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]
