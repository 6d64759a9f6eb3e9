"""Records what a run is made with: machine, versions, commit. It records no name of a host or a user, and no secret."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from data.cores import available_cores
from train_loop import run_files

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "huggingface_hub", "numpy")


def record_start(folder: Path, accelerator: Accelerator, *, step: int) -> None:
    """Add this start, after ``step`` updates, to ``environment.json``, behind the earlier ones whose updates count."""
    path = folder / run_files.ENVIRONMENT
    earlier = json.loads(path.read_text(encoding="utf-8")) if step and path.exists() else []
    starts = [start for start in earlier if start["step"] < step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps([*starts, environment(accelerator, step)], indent=2), encoding="utf-8")
    temporary.replace(path)


def environment(accelerator: Accelerator, step: int) -> dict[str, Any]:
    """The entry of this start: when it was, on which machine, with which versions."""
    return {
        "step": step,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        **git_state(_ROOT),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": processor(),
        "cpu_cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": accelerator.device.type,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The version of each library that a run depends on."""
    return {name: metadata.version(name) for name in _PACKAGES}


def git_state(root: Path) -> dict[str, Any]:
    """The commit of the checkout at ``root``, and whether files differ from it; empty if there is no checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10)

    try:
        top, commit = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() != root.resolve():  # installed, perhaps inside another project
            return {}
        return {"git_commit": commit, "git_changes": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def processor() -> str:
    """The processor's model, or its architecture where the system does not name the model."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
