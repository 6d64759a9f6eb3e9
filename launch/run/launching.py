"""Starts a command in several processes of this machine, through torch's elastic launcher."""

import logging
import os
import sys
import uuid
from typing import NoReturn

import torch
from accelerate.utils import parse_flag_from_env
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from launch.run.processes import has_launcher


def processes_to_start(asked: int | None) -> int:
    """The processes to start here: ``asked`` or one for each GPU, 1 under a launcher. ValueError if it cannot be."""
    if has_launcher() or "LOCAL_RANK" in os.environ:
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if asked not in (None, started):
            raise ValueError(f"num_processes={asked}: the launcher started {started}; give it this number instead")
        return 1
    num_gpus = 0 if parse_flag_from_env("ACCELERATE_USE_CPU") else torch.cuda.device_count()
    number = max(1, num_gpus) if asked is None else asked
    if number < 1 or number > num_gpus > 0:
        most = f", and at most {num_gpus}, the GPUs of this machine" if num_gpus else ""
        raise ValueError(f"num_processes={asked} must be at least 1{most}")
    return number


def start_processes(number: int, timeout: float) -> NoReturn:
    """Run the command line of this process in ``number`` processes, and exit with the code of the first that failed.

    Ctrl-C reaches this process alone, which passes it on, as it does SIGTERM, and waits for their checkpoint for
    ``timeout`` seconds, before they are killed.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(timeout)))  # the default is 30
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elastic = logging.getLogger("torch.distributed.elastic")  # tells again what the processes have told
    elastic.handlers, elastic.propagate = [logging.NullHandler()], False
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        max_restarts=0,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # the default, the machine's own name, need not resolve
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
