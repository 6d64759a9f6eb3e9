"""Test what will work on this machine, by trying it.

mlm doctor --output_dir /data/runs    # what a run would need is told by mlm train --dry_run
"""

import contextlib
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psutil

from launch.run.errors import OneLineParser, one_line_errors
from train_loop.watching.columns import say

_WRITTEN = 256_000_000  # bytes
_PATIENCE = timedelta(seconds=60)  # for two processes to meet

Finding = tuple[str, str]  # ``ok``, ``note`` or ``FAIL``, and a sentence


@one_line_errors
def main(arguments: list[str]) -> None:
    """Print a line for each finding; exit 1 if training cannot work."""
    parser = OneLineParser(prog="mlm doctor", description=__doc__)
    parser.add_argument("--output_dir", default="runs", metavar="FOLDER", help="where runs are to be written")
    options = parser.parse_args(arguments)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "devices": _devices,
        "processes": _processes,
        "disk": lambda: _disk(Path(options.output_dir)),
        "hub": _hub,
    }
    failed = False
    for name, check in checks.items():
        try:
            findings = list(check())
        except Exception as error:  # any error is a finding
            findings = [("FAIL", f"{type(error).__name__}: {' '.join(str(error).split())}")]
        for verdict, text in findings:
            say(text, f"{verdict:5} {name:10} ")
            failed = failed or verdict == "FAIL"
    sys.exit(int(failed))


def _versions() -> Iterator[Finding]:
    from launch.run.environment import versions

    shown = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield "ok", f"Python {platform.python_version()}, {shown}"


def _devices() -> Iterator[Finding]:
    import torch

    from data.cores import available_cores
    from train_loop.speed.flops import matmul_rate

    torch.set_num_threads(available_cores())
    rate = matmul_rate(torch.device("cpu"), "no") / 1e9
    yield "ok", f"CPU, {available_cores()} cores, {rate:,.0f} GFLOP/s in fp32"
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        memory = torch.cuda.get_device_properties(device).total_memory / 1e9
        with torch.cuda.device(device):
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        rate = matmul_rate(device, precision) / 1e12
        yield "ok", f"{torch.cuda.get_device_name(device)}, {memory:.0f} GB, {rate:,.0f} TFLOP/s in {precision}"
    if not torch.cuda.is_available():
        yield "note", "no GPU that torch can use"
    elif torch.cuda.device_count() > 1:
        yield "note", f"mlm train uses all {torch.cuda.device_count()} GPUs; fewer by --num_processes"


def _processes() -> Iterator[Finding]:
    """Start two processes that reduce a tensor together, as those of ``accelerate launch`` do."""
    import torch
    from torch.multiprocessing.spawn import spawn

    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_meet, (backend, f"file://{folder}/meeting"), nprocs=2)  # type: ignore[no-untyped-call]
        except Exception as error:  # with the traceback of a process
            yield "FAIL", f"two processes did not meet over {backend}: {str(error).splitlines()[-1]}"
            return
    yield "ok", f"two processes met over {backend}"
    yield from _address()


def _address() -> Iterator[Finding]:
    """Where the processes of other machines would look for this one: at the address of its own name."""
    with contextlib.suppress(OSError):  # it has none, and gloo takes an interface
        if (address := socket.gethostbyname(socket.gethostname())).startswith("127."):
            up = ", ".join(name for name, state in psutil.net_if_stats().items() if state.isup and name != "lo")
            where = f"this machine's name is {address} to itself: for several machines, set GLOO_SOCKET_IFNAME and"
            yield "note", f"{where} NCCL_SOCKET_IFNAME to the interface between them ({up or 'there is none'})"


def _meet(rank: int, backend: str, meeting: str) -> None:
    import torch
    from torch import distributed

    distributed.init_process_group(backend, init_method=meeting, timeout=_PATIENCE, rank=rank, world_size=2)
    ones = torch.ones(1, device=torch.device("cuda", rank) if backend == "nccl" else None)
    distributed.all_reduce(ones)
    assert ones.item() == 2, f"the sum of two ones is {ones.item()}"
    distributed.destroy_process_group()


def _disk(folder: Path) -> Iterator[Finding]:
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(nearest).free
    if free < 4 * _WRITTEN:
        yield "note", f"{free / 1e9:.1f} GB free for {folder}: a checkpoint of DistilRoBERTa takes 1 GB"
        return
    with tempfile.NamedTemporaryFile(dir=nearest) as file:
        start = time.perf_counter()
        file.write(bytes(_WRITTEN))
        file.flush()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - start
    yield "ok", f"{free / 1e9:.0f} GB free for {folder}, written at {_WRITTEN / seconds / 1e6:,.0f} MB/s"


def _hub() -> Iterator[Finding]:
    import huggingface_hub
    from huggingface_hub import constants

    from train_loop.sharing.locate import hub_problem

    if constants.HF_HUB_OFFLINE:
        yield "note", "HF_HUB_OFFLINE is set: models and datasets from the Hub come from the cache alone"
        return
    if problem := hub_problem():
        yield "note", problem
        return
    yield "ok", f"{constants.ENDPOINT} answers"
    if huggingface_hub.get_token() is None:
        yield "note", "nobody is logged in: to push a model, hf auth login"
        return
    try:
        yield "ok", f"logged in as {huggingface_hub.whoami()['name']}"
    except huggingface_hub.errors.HfHubHTTPError:
        yield "note", "the token is not accepted: hf auth login"


if __name__ == "__main__":
    main(sys.argv[1:])
