"""Two machines played on one: a torchrun each, with folders of their own and no shared disk."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.launchers import ROOT, environment

_TORCHRUN = str(Path(sys.executable).parent / "torchrun")


def start_machines(words: list[list[str]]) -> list[subprocess.Popen[str]]:
    """Start ``launch.train`` on each machine, with one process, by its own words."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    join = ("--nnodes", str(len(words)), "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port)
    return [
        subprocess.Popen(
            [_TORCHRUN, *join, "--node_rank", str(rank), "-m", "launch.train", *of_machine],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, of_machine in enumerate(words)
    ]


def run_machines(words: list[list[str]]) -> list[subprocess.CompletedProcess[str]]:
    """`start_machines`, to the end."""
    started = start_machines(words)
    done = []
    for process in started:
        out, err = process.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done
