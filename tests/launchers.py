"""The commands that users launch with, for tests that start real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
DIFFUSION = ("--masking", "diffusion", "--mask_replace_prob", "1", "--random_replace_prob", "0")
REPLACED_TOKENS = ("--objective", "replaced_tokens")
_BIN = Path(sys.executable).parent
ACCELERATE = (str(_BIN / "accelerate"), "launch")
_CONFIGURED = (*ACCELERATE, "--config_file", "accelerate_config.yaml")


def launcher(name: str, num_processes: int) -> list[str]:
    """``python``, ``accelerate`` or ``torchrun``, up to and including ``-m launch.train``."""
    start: dict[str, tuple[str, ...]] = {
        "python": (sys.executable,),
        "accelerate": (*_CONFIGURED, *(("--multi_gpu", "--num_processes", str(num_processes)) * (num_processes > 1))),
        "torchrun": (str(_BIN / "torchrun"), "--nproc_per_node", str(num_processes)),
    }
    assert num_processes == 1 or name != "python"
    return [*start[name], "-m", "launch.train"]


def environment() -> dict[str, str]:
    """As a user on a machine without a GPU has it: several processes need to be told to use the CPU."""
    return {**{k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}, "ACCELERATE_USE_CPU": "true"}


def run(command: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in the repository's root."""
    return subprocess.run(
        [*command, *words], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tiny_run(corpus_file: Path, cache_dir: str, **changes: str | int | float) -> list[str]:
    """Words of a ModernBERT, which has no dropout, so that its batches may be cut into other micro-batches.

    21 blocks, 10 an update: the third update of each epoch is a single block, of which a second process has none.
    """
    settings = {
        "dataset": corpus_file,
        "eval_fraction": 0.9,
        "cache_dir": cache_dir,
        "train_tokenizer": True,
        "vocab_size": 300,
        "block_size": 40,
        "model_type": "modernbert",
        "global_batch_size": 10,
        "max_steps": 8,
        "eval_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "cpu_threads": 1,  # two threads of each of two processes would wait for each other most of the time
        **changes,
    }
    shape = ["hidden_size=32", "num_hidden_layers=2", "num_attention_heads=4", "intermediate_size=48"]
    return [*(word for name, value in settings.items() for word in (f"--{name}", str(value))), "--model_config", *shape]


OF_THE_MACHINE = {"seconds", "tokens_per_second", "flop_utilization", "peak_memory_bytes"}
"""What differs between two times that the same run is made."""


def assert_same_run(one: Path, other: Path, besides: Set[str] = frozenset()) -> None:
    """P1 and P4 across worlds: losses and norms to 1e-5, counts exactly."""
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - OF_THE_MACHINE - {"probes"} - besides:
            exact = key in {
                "step",
                "epoch",
                "num_masked_tokens",
                "num_tokens",
                "eval_num_masked_tokens",
                "learning_rate",
                "tokens_by_source",
            }
            assert b[key] == (a[key] if exact else pytest.approx(a[key], rel=1e-5)), key
        for mine, theirs in zip(a.get("probes", ()), b.get("probes", ()), strict=True):
            scores = [[fill["score"] for fill in probe["fills"]] for probe in (mine, theirs)]
            assert scores[1] == pytest.approx(scores[0], rel=1e-4)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() < 1e-4, name  # after 8 AdamW updates of up to 1e-3
