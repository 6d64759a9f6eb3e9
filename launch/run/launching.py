"""Starts a command in several processes of this machine, through torch's elastic launcher."""

import logging
import os
import sys
import uuid
from typing import NoReturn

import torch
from accelerate.utils import get_int_from_env, parse_flag_from_env
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from data.cores import available_cores
from launch.run.processes import has_launcher

_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK")


def processes_to_start(asked: int | None) -> int:
    """The number of processes to start here: ``asked``, by default one for each GPU; 1 if a launcher started this one.

    Raises:
        ValueError: That number cannot be started.
    """
    if has_launcher() or get_int_from_env(_RANKS, -1) >= 0:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if asked not in (None, started):
            raise ValueError(f"num_processes={asked}: the launcher started {started}; give it this number instead")
        return 1
    num_gpus = 0 if parse_flag_from_env("ACCELERATE_USE_CPU") else torch.cuda.device_count()
    number = max(1, num_gpus) if asked is None else asked
    if number < 1 or number > num_gpus > 0:
        most = f", and at most {num_gpus}, the GPUs of this machine" if num_gpus else ""
        raise ValueError(f"num_processes={asked} must be at least 1{most}")
    if not num_gpus:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return number


def start_processes(number: int, timeout: float) -> NoReturn:
    """Run the command line of this process in ``number`` processes, and exit with their code.

    The processes do not get Ctrl-C from the terminal: this process passes it on, as it does SIGTERM, and waits for
    their checkpoint. The exit code is that of the first process that failed, or 128 and the signal's number.

    Args:
        timeout: Seconds to wait for the processes after a signal, before they are killed.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(timeout)))  # the default is 30
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // number)))  # else Accelerate warns
    elastic = logging.getLogger("torch.distributed.elastic")  # tells in its own words what a process has told
    elastic.addHandler(logging.NullHandler())
    elastic.propagate = False
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # the machine's own name need not resolve
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as error:
        sys.stderr.flush()
        os._exit(128 + error.sigval)  # a normal exit prints a traceback of the rendezvous's thread, which still runs
    sys.exit(0)
