"""The batch script, run by bash with a stand-in for ``scontrol``: SIGUSR1 saves, and asks to be queued again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.running import ENDLESS
from tests.launchers import ROOT, environment, tiny_run
from train_loop.run_checkpoints import checkpoints


@pytest.mark.slow
def test_usr1_saves_and_requeues(corpus_file: Path, cache_dir: str, tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "accelerate_config.yaml").symlink_to(ROOT / "accelerate_config.yaml")
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_GPUS_ON_NODE": "2", "PYTHONPATH": str(ROOT)}
    variables = environment() | slurm | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    words = tiny_run(corpus_file, cache_dir, eval_steps=ENDLESS, max_steps=ENDLESS, lr_scheduler_type="constant")
    command = ["bash", str(ROOT / "launch" / "slurm" / "train.sbatch"), *words, "--output_dir", "run"]
    with (tmp_path / "output.txt").open("w") as output:
        job = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=output, stderr=output)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text()) < 100:
        assert job.poll() is None, (tmp_path / "output.txt").read_text()
    job.send_signal(signal.SIGUSR1)
    job.wait(timeout=60)
    assert (tmp_path / "asked").read_text().split() == ["requeue", "77"]
    assert len(checkpoints(tmp_path / "run")) == 1
