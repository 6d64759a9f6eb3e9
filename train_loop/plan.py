"""The batch arithmetic: how a global batch is divided, and the number of updates."""

import math
from dataclasses import dataclass, replace

from train_loop.config import TrainConfig

_DEFAULT_GLOBAL_BATCH_SIZE = 32


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is divided: the numbers that ``--dry_run`` prints."""

    global_batch_size: int  # blocks per update
    micro_batch_size: int  # blocks that a process takes at once
    micro_batches_per_step: int  # of a process in an update (gradient accumulation)
    steps_per_epoch: int | None  # updates in an epoch; the last may be smaller. None when streaming or growing
    total_steps: int  # updates in the run
    eval_steps: int  # updates between evaluations
    initial_batch_size: int  # blocks of the first update; the global batch size, unless the batch grows
    batch_warmup_steps: int  # updates in which it grows evenly; 0: it does not

    def blocks_before(self, step: int) -> int:
        """Blocks in the updates before one; where the batch grows, an epoch's end cuts none short."""
        full, initial, num = self.global_batch_size, self.initial_batch_size, self.batch_warmup_steps
        added = 0 if num == 0 else min(step, num) ** 2 * (full - initial) // (2 * num)
        return step * initial + added + max(0, step - num) * (full - initial)

    def cut(self, micro_batches_per_step: int) -> "BatchPlan":
        """The same plan with each update cut into so many micro-batches. Requires a plan with one."""
        size = -(-self.micro_batch_size // micro_batches_per_step)
        number = -(-self.micro_batch_size // size)
        return replace(self, micro_batch_size=size, micro_batches_per_step=number)


def plan_batches(config: TrainConfig, blocks_per_epoch: int | None, num_processes: int) -> BatchPlan:
    """Work out the batch arithmetic; ``blocks_per_epoch`` is None when streaming.

    Raises ValueError if the global batch cannot be divided as the settings say.
    """
    per_device = None if config.per_device_train_batch_size == "auto" else config.per_device_train_batch_size
    global_batch_size = config.global_batch_size or _DEFAULT_GLOBAL_BATCH_SIZE
    if config.gradient_accumulation_steps is not None:
        per_device = per_device or 8
        global_batch_size = per_device * config.gradient_accumulation_steps * num_processes
    if global_batch_size < num_processes:
        raise ValueError(
            f"global_batch_size={global_batch_size} is less than one block for each of {num_processes} processes: "
            f"use --global_batch_size {num_processes} or more, or fewer processes"
        )
    largest_share = -(-global_batch_size // num_processes)
    micro_batch_size = per_device or largest_share
    if micro_batch_size > largest_share:
        raise ValueError(
            f"per_device_train_batch_size={micro_batch_size} is larger than a process's share of the global batch, "
            f"{largest_share} of {global_batch_size} blocks on {num_processes} processes: "
            f"use --per_device_train_batch_size {largest_share}, "
            f"or --global_batch_size {micro_batch_size * num_processes}"
        )
    if blocks_per_epoch is not None:
        steps_per_epoch = -(-blocks_per_epoch // global_batch_size)
        total_steps = config.max_steps or math.ceil(config.num_train_epochs * steps_per_epoch)
    elif config.max_steps is not None:
        steps_per_epoch, total_steps = None, config.max_steps
    else:
        raise ValueError("streaming: nobody knows how much text there is: say how many updates to make by --max_steps")
    initial, growing = config.initial_batch_size or global_batch_size, config.batch_warmup_steps
    growing = round(growing * total_steps if growing < 1 else growing)
    if initial > global_batch_size or growing > total_steps:
        most = f"at most {global_batch_size} blocks and {total_steps} updates"
        raise ValueError(f"initial_batch_size={initial} and batch_warmup_steps={growing}: {most}")
    if growing:
        steps_per_epoch = None
    return BatchPlan(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        micro_batches_per_step=-(-largest_share // micro_batch_size),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        eval_steps=config.eval_steps or steps_per_epoch or max(1, total_steps // 10),
        initial_batch_size=initial,
        batch_warmup_steps=growing,
    )
