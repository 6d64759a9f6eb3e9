"""Measures the memory of a process by DDP, HSDP and FSDP2, beside what is counted for it before.

test_shards.py starts it on four processes, with a model of 52 M parameters; with ``10`` for the layers they are 95 M.
"""

import ctypes
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import AutoConfig, AutoModelForMaskedLM

from data import MaskedBatch
from train_loop import MaskedLMObjective, Objective, TrainConfig, build_optimizers, train_step
from train_loop.objective import freeze_unused
from train_loop.parallel import full_state, prepare
from train_loop.speed.memory import memory_needed

SIZE, LENGTH, NUM_MASKED = 4, 128, 77


def _resident(name: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at the most since `_forget`."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def _forget() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _at_a_save(accelerator: Accelerator, bare: Objective, optimizers: Sequence[Optimizer], way: str) -> None:
    """One whole tensor at a time, and gloo's own copy of it; the main process has host copies of all."""
    _forget()
    before, largest = _resident("VmRSS"), max(p.nbytes for p in bare.parameters())
    full_state(bare, optimizers, is_wanted=accelerator.is_main_process)
    more = (_resident("VmHWM") - before) / largest
    if accelerator.process_index == 1:
        print(f"{way:6} x {accelerator.num_processes}, at a save beside the shard: {more:.2f} of the largest tensor")
    assert more < 2.1 or accelerator.is_main_process, (way, more)


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator()
    number = accelerator.num_processes
    shape = {"vocab_size": 30_000, "max_position_embeddings": LENGTH + 2, "num_hidden_layers": int(sys.argv[1])}
    config = AutoConfig.for_model("roberta", **shape)
    ways = {"DDP": {}, "HSDP": {"shard": True, "replicas": 2}, "FSDP2": {"shard": True}}
    kept: dict[str, int] = {}
    for way, settings in ways.items():
        _forget()
        before = _resident("VmRSS")
        bare = MaskedLMObjective(AutoModelForMaskedLM.from_config(config))
        freeze_unused(bare)
        train = TrainConfig(**settings)
        need = memory_needed(accelerator, bare, build_optimizers(bare, train), SIZE, LENGTH, NUM_MASKED / SIZE / LENGTH)
        objective, optimizers = prepare(accelerator, bare, build_optimizers, train)
        _forget()
        for step in range(3):
            batch = MaskedBatch.of_zeros(SIZE, LENGTH, num_masked=NUM_MASKED, device=accelerator.device)
            train_step(accelerator, objective, optimizers, [batch], step=step, lr_factor=1.0, max_grad_norm=1.0, seed=0)
        peak = _resident("VmHWM") - before
        states = [value for one in optimizers for slots in one.state.values() for value in slots.values()]
        mine = [t.to_local() if isinstance(t, DTensor) else t for t in (*bare.parameters(), *states)]
        gradients = sum(t.nbytes for t in mine[: len(list(bare.parameters()))])  # they were there, and are None now
        kept[way] = sum(t.nbytes for t in mine) + gradients
        counted = need(number // settings.get("replicas", 1) if settings else 1)
        if accelerator.is_main_process:
            size = sum(p.numel() for p in bare.parameters()) / 1e6
            print(f"{way:6} x {number}, {size:.0f} M parameters, a process: kept {kept[way] / 1e9:.3f} GB,", end=" ")
            share = kept[way] / kept["DDP"]
            print(f"{share:.3f} of DDP's; at the most {peak / 1e9:.3f} GB, {counted / 1e9:.3f} counted")
        assert 0.75 < peak / counted < 1.25, (way, peak, counted)
        if settings:
            _at_a_save(accelerator, bare, optimizers, way)
        del bare, objective, optimizers, states, mine
    assert kept["FSDP2"] < (1 / number + 0.02) * kept["DDP"]
    accelerator.end_training()


if __name__ == "__main__":
    main()
