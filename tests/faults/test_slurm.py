"""The batch script, run by bash with stand-ins for ``scontrol`` and ``srun``.

SIGUSR1 saves, and asks to be queued again; the job that is queued again goes on.
"""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.namespaces import Machine, two_machines, why_not
from tests.faults.running import ENDLESS
from tests.launchers import ROOT, environment, rows, tiny_run
from train_loop.run_checkpoints import checkpoints

_SRUN = """#!/usr/bin/env bash
# Starts a task on each node, and passes SIGTERM on.
while [[ "$1" == -* ]]; do shift; done
pids=()
trap 'kill -TERM "${{pids[@]}}"' TERM
{starts}
for pid in "${{pids[@]}}"; do
    while kill -0 "$pid" 2> /dev/null; do wait "$pid" && true; code=$?; done
done
exit "$code"
"""


def _words(folder: Path, corpus_file: Path, starts: list[str]) -> list[str]:
    """A folder to submit from, and the words of a run in it."""
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "accelerate_config.yaml").symlink_to(ROOT / "accelerate_config.yaml")
    names = "\n".join(f"node{i}" if len(starts) > 1 else "localhost" for i in range(len(starts)))
    stand_ins = {
        "scontrol": f'#!/bin/sh\n[ "$1" = show ] && echo "{names}" || echo "$@" > {folder}/asked\n',
        "srun": _SRUN.format(starts="\n".join(f'{start} "$@" & pids+=($!)' for start in starts)),
    }
    (folder / "bin").mkdir()
    for name, text in stand_ins.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return tiny_run(corpus_file, str(folder / "cache"), eval_steps=ENDLESS, lr_scheduler_type="constant")


def _variables(folder: Path, nodes: int) -> dict[str, str]:
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": str(nodes)}
    gpus = {"SLURM_GPUS_ON_NODE": str(2 // nodes), "PYTHONPATH": str(ROOT)}
    return environment() | slurm | gpus | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_usr1_saves_and_requeues_and_the_run_goes_on(nodes: int, corpus_file: Path, tmp_path: Path) -> None:
    if nodes == 1:
        _submit_twice(["SLURM_NODEID=0"], None, corpus_file, tmp_path)
    elif (reason := why_not()) is not None:
        pytest.skip(reason)
    else:
        with two_machines(tmp_path / "machines") as machines:
            starts = [f"SLURM_NODEID={m.number} {shlex.join(m.enter)}" for m in machines]
            _submit_twice(starts, machines[0], corpus_file, tmp_path)


def _submit_twice(starts: list[str], head: Machine | None, corpus_file: Path, folder: Path) -> None:
    words = _words(folder, corpus_file, starts)
    before = ["env", "-C", str(folder)] if head is None else [*head.enter, "env", "-C", str(folder)]
    command = [*before, "bash", str(ROOT / "launch" / "slurm" / "train.sbatch"), *words, "--output_dir", "run"]
    for _ in range(2):
        (folder / "asked").unlink(missing_ok=True)
        known = rows(folder / "run") if (folder / "run").exists() else []
        with (folder / "output.txt").open("a") as output:
            variables = _variables(folder, len(starts))
            job = subprocess.Popen([*command, "--max_steps", str(ENDLESS)], env=variables, stdout=output, stderr=output)
        metrics = folder / "run" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < len(known) + 5:
            assert job.poll() is None, (folder / "output.txt").read_text()
        job.send_signal(signal.SIGUSR1)
        job.wait(timeout=90)
        assert (folder / "asked").read_text().split() == ["requeue", "77"]
    steps = [row["step"] for row in rows(folder / "run")]
    assert steps == list(range(1, len(steps) + 1))
    assert checkpoints(folder / "run")[-1].name == f"step-{steps[-1]:08d}"
    assert "resumed" in (folder / "output.txt").read_text()
