"""Checks that the processes and devices of a run are those that were asked for.

``accelerate launch`` can start fewer processes than it was told to, without a message: ``--cpu --num_processes 2``
starts one, and so does a config file with ``num_processes: 8`` but without ``distributed_type: MULTI_GPU``. A run with
another number of processes is refused.
"""

import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DDPCommunicationHookType, ProjectConfiguration

from data.cores import available_cores
from train_loop import run_files
from train_loop.config import TrainConfig
from train_loop.watching.trackers import check_trackers


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Join the processes that were started, and set threads and precision. Raises ValueError for what cannot be."""
    _check_environment()
    hook = DDPCommunicationHookType.BF16 if config.bf16_gradients else DDPCommunicationHookType.NO
    check_trackers(config)
    # A setting counts more than what the launcher says.
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("mixed_precision=fp16 needs a GPU: use --mixed_precision bf16, or no")
    # Accelerate would set one thread and warn of it; the number that counts is set below.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // local_processes())))
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=config.trackers or None,
        project_config=ProjectConfiguration(logging_dir=str(Path(config.output_dir) / run_files.TENSORBOARD)),
        kwargs_handlers=[
            # The buffers of masked language models are constants: positions, frequencies.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True, comm_hook=hook),
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout)),
        ],
    )
    asked = requested_processes()
    if asked is not None and asked != accelerator.num_processes:
        raise ValueError(
            f"{asked} processes were asked for and {accelerator.num_processes} started; "
            f"to start {asked} on one machine: mlm train --num_processes {asked} ..."
        )
    if accelerator.device.type == "cuda":  # on some CPUs this would mean bf16
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if accelerator.device.type == "cpu":
        # Accelerate's launcher sets one thread, which leaves the other cores idle.
        torch.set_num_threads(config.cpu_threads or max(1, available_cores() // local_processes()))
    return accelerator


def _check_environment() -> None:
    """Raise ValueError for options of the launcher that this project does not support."""
    # The loop divides the loss itself: Accelerate must not divide it a second time.
    if (steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise ValueError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps} is set in the environment: unset it, "
            "and use --gradient_accumulation_steps"
        )
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):  # on a CPU, Accelerate ignores them without a message
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() in ("true", "1"):
            way_out = "and for shards --shard true" if kind == "FSDP" else "or NO for one process"
            raise ValueError(f"Accelerate's {kind} is not supported: use distributed_type MULTI_GPU, {way_out}")
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "fp8":
        raise ValueError("Accelerate's mixed_precision fp8 is not supported: use bf16, or fp16 on an older GPU")
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        raise ValueError(
            f"Accelerate's dynamo_backend {backend} is not supported: it would compile for every number of masked "
            "tokens; set it to no, and use --torch_compile true"
        )


def device_notes(accelerator: Accelerator) -> Iterator[str]:
    """Lines on GPUs and bf16 arithmetic that the run leaves unused, and on what the launcher asked for in vain."""
    available = torch.cuda.device_count()
    if accelerator.device.type == "cuda" and available > local_processes():
        yield (
            f"{available - local_processes()} of this machine's {available} GPUs are idle; to use all: mlm train "
            f"--num_processes {available} ..., or torchrun --nproc_per_node {available} on each of several machines"
        )
    used = accelerator.mixed_precision
    if (asked := os.environ.get("ACCELERATE_MIXED_PRECISION", used).lower()) != used:
        yield f"the launcher says precision {asked}: --mixed_precision {used} counts"
    if used == "no" and has_bf16(accelerator.device.type):
        yield "it has bf16 arithmetic, not used here: --mixed_precision bf16"


def has_bf16(device: str) -> bool:
    """Whether this machine's GPU or processor computes in bf16, not by way of fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return device == "cpu" and any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def check_compiler() -> None:
    """Raise ValueError if there is no compiler for the code that ``torch_compile`` generates."""
    wanted = os.environ.get("CXX", "g++")
    if shutil.which(wanted) is None:
        raise ValueError(
            f"torch_compile=true needs a C++ compiler, and {wanted} is not there: install it, "
            "name another one in the variable CXX, or use --torch_compile false"
        )


def requested_processes() -> int | None:
    """The number of processes in the options or the config file of ``accelerate launch``; None without that launcher.

    The launcher does not pass the number on, so its command line is read, with its own parser.
    """
    if (arguments := _arguments_of_accelerate()) is None:
        return None
    options, _ = launch_command_parser().parse_known_args(arguments)
    if options.num_processes is not None:
        return int(options.num_processes)
    has_default = Path(default_config_file).is_file() and not options.cpu
    file = options.config_file or (default_config_file if has_default else None)
    return None if file is None else int(load_config_from_file(file).num_processes)


def has_launcher() -> bool:
    """Whether this process's parent is `accelerate launch` or `torchrun`."""
    return "TORCHELASTIC_RUN_ID" in os.environ or _arguments_of_accelerate() is not None


def _arguments_of_accelerate() -> list[str] | None:
    """What follows ``accelerate launch`` on the parent's command line; None if the parent is something else."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent is not None else []
    names = [Path(word).name for word in words]
    if "accelerate-launch" in names:
        return words[names.index("accelerate-launch") + 1 :]
    if "accelerate" in names and words[names.index("accelerate") + 1 :][:1] == ["launch"]:
        return words[names.index("accelerate") + 2 :]
    return None


def local_processes() -> int:
    """The number of processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def what_was_lost(error: Exception) -> str | None:
    """A line for an error whose cause is a process or loader worker that died or hung; None for any other error."""
    text = " ".join(str(error).split())
    # When a worker dies while the DataLoader reads from it, the error is the pipe's.
    if "DataLoader" in text or isinstance(error, ConnectionError | EOFError):
        who = "a loader worker died, or gave no batch within dataloader_timeout"
    elif _is_of_communication(error):
        who = "another process died, or did not answer within process_timeout"
    else:
        return None
    return f"{who}; go on with --resume_from_checkpoint latest ({text:.200})"


def why_not_met(error: Exception) -> str | None:
    """A line for an error of processes that did not find each other at the start; None for any other error."""
    if not _is_of_communication(error):
        return None
    return (
        f"the {os.environ.get('WORLD_SIZE')} processes did not meet ({' '.join(str(error).split()):.200}): start the "
        "command on every machine, within process_timeout. Where a machine knows its own name as 127.0.1.1, or has "
        "several interfaces, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the one between the machines, such as "
        "eth0, and for torchrun add --rdzv_conf is_host=true on the first machine"
    )


def _is_of_communication(error: Exception) -> bool:
    names = ("gloo", "Gloo", "NCCL")
    return isinstance(error, torch.distributed.DistError) or any(name in str(error) for name in names)
