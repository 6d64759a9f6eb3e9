"""One optimizer update. Read this file first.

The loss of an update is the mean over all masked tokens of the global batch,
however that batch is spread over processes and micro-batches:

    loss = sum over all masked tokens of -log p(token) / num_masked

So the masked tokens are counted first, over all processes. Then each
micro-batch contributes its *sum*, scaled by one over that *global* count.
Means of micro-batches are never averaged: their counts differ.

Nothing here waits for the GPU: whether an update is finite is known there, our
optimizers look there, and the loop asks when it logs.
"""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from data.batch import MaskedBatch
from train_loop.optim import set_learning_rates
from train_loop.step_metrics import StepMetrics


def train_step(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizers: Sequence[AcceleratedOptimizer],
    batches: Sequence[MaskedBatch],
    *,
    step: int,
    lr_factor: float,
    max_grad_norm: float,
    seed: int,
) -> StepMetrics:
    """Make one update of the parameters, or skip it if it is not finite.

    Args:
        objective: Prepared; gives a micro-batch's summed loss.
        batches: This process's micro-batches of the update, at least one.
        step: Number of the update, from 0.
        lr_factor: Factor on the peak learning rates.
        max_grad_norm: Clip to this norm; 0 does not clip.
    """
    # full, not tensor: that would wait for the GPU to copy one number.
    num_masked = torch.full((), sum(batch.num_masked for batch in batches), device=accelerator.device)
    num_masked = accelerator.reduce(num_masked, "sum").clamp(min=1)
    # DDP divides the summed gradients by the number of processes.
    scale = accelerator.num_processes / num_masked

    loss_sums = []
    for i, batch in enumerate(batches):
        is_last = i == len(batches) - 1
        torch.manual_seed(dropout_seed(seed, step, int(batch.block_ids[0])))
        with nullcontext() if is_last else accelerator.no_sync(objective):
            micro_loss = objective(
                batch.input_ids, batch.masked_positions, batch.labels, batch.attention_mask, batch.position_ids
            )
            accelerator.backward(micro_loss * scale)
        loss_sums.append(micro_loss.detach())

    grad_norm = accelerator.clip_grad_norm_(objective.parameters(), max_grad_norm or torch.inf)
    # After the all-reduce a bad value anywhere is in everybody's norm.
    is_skipped = is_bad = ~torch.isfinite(grad_norm)
    if accelerator.scaler is not None:
        loss_is_bad = ~torch.isfinite(accelerator.reduce(torch.stack(loss_sums).sum(), "sum"))
        is_bad = is_bad | loss_is_bad
        # Below a scale of 1 it is not the scaling that made the gradient infinite.
        is_skipped = loss_is_bad | (is_bad & (accelerator.scaler.scale(torch.ones_like(grad_norm)) < 1))

    set_learning_rates(optimizers, lr_factor)
    _step_unless(is_bad, optimizers, accelerator.scaler)
    for optimizer in optimizers:
        optimizer.zero_grad()
    return StepMetrics(
        step=step,
        lr_factor=lr_factor,
        block_ids=[batch.block_ids for batch in batches],
        loss_sums=torch.stack(loss_sums),
        num_masked=num_masked,
        grad_norm=grad_norm,
        is_skipped=is_skipped,
        num_tokens=sum(batch.num_tokens for batch in batches),
    )


def _step_unless(
    is_bad: Tensor, optimizers: Sequence[AcceleratedOptimizer], scaler: torch.amp.GradScaler | None
) -> None:
    """Step all optimizers, or change nothing of any; then let fp16's loss scaler choose the next scale, once.

    Our optimizers read the flag on the device, by the way that torch made for its
    loss scaler. For one that cannot, this waits.
    """
    for optimizer in (prepared.optimizer for prepared in optimizers):
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = is_bad.float()
            optimizer.step()
            del optimizer.found_inf
        elif not is_bad:
            optimizer.step()
    if scaler is not None:
        scaler.update()


def dropout_seed(seed: int, step: int, first_block_id: int) -> int:
    """A generator seed that follows the micro-batch, not the process that computes it."""
    digest = hashlib.blake2b(f"{seed} {step} {first_block_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
