"""One optimizer update. Read this file first.

The loss of an update is a mean over all predictions of the global batch (the masked tokens), however that batch is
spread over processes and micro-batches:

    loss = sum over all masked tokens of -log p(token) / number of masked tokens

So the predictions are counted first, over all processes. Then each micro-batch contributes its *sum*, scaled by one
over that *global* count. Means of micro-batches are never averaged: their counts differ. An objective may have several
such terms, each with its own count and weight.

Nothing here waits for the GPU: whether an update is finite is known there, our optimizers look there, and the loop asks
when it logs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from data.batch import MaskedBatch
from train_loop.optim import set_learning_rates, step_unless
from train_loop.parallel import clip_grad_norm, gradient_sync, unwrapped


@dataclass(frozen=True)
class StepMetrics:
    """Measurements of one update. Tensors stay on the device until they are logged."""

    step: int  # number of the update, from 0
    lr_factor: float  # on the peak learning rates
    block_ids: list[Tensor]  # of this process's micro-batches, [B] each, on the CPU
    loss_sums: Tensor  # [micro-batches, K], of the K terms of the loss, summed over this process's predictions
    counts: Tensor  # [K], predictions in the global batch, 1 where there are none
    grad_norm: Tensor  # of the whole gradient, before clipping
    # Whether the loss or the gradient was not finite on any process. Parameters and optimizers are then unchanged, bit
    # for bit. An overflow by which fp16's loss scaler finds the scale changes nothing either, but is not counted here.
    is_skipped: Tensor
    num_tokens: int  # in this process's micro-batches
    num_masked: int


def train_step(
    accelerator: Accelerator,
    objective: nn.Module,  # prepared; gives the sums of a micro-batch
    optimizers: Sequence[AcceleratedOptimizer],
    batches: Sequence[MaskedBatch],  # this process's micro-batches of the update, at least one
    *,
    step: int,  # number of the update, from 0
    lr_factor: float,  # on the peak learning rates
    max_grad_norm: float,  # clip to this norm; 0 does not clip
    seed: int,  # of dropout
) -> StepMetrics:
    """Make one update of the parameters, or skip it if it is not finite."""
    bare = unwrapped(objective)
    local_counts = map(sum, zip(*(bare.count(batch) for batch in batches), strict=True))
    # zeros plus, not tensor: that would wait for the GPU to copy one number.
    zero = torch.zeros((), dtype=torch.long, device=accelerator.device)
    counts = torch.stack([zero + count for count in local_counts])
    counts = accelerator.reduce(counts, "sum").clamp(min=1)
    # DDP divides the summed gradients by the number of processes.
    weights = [weight * accelerator.num_processes for weight in bare.terms.values()]
    scales = torch.stack([weight / count for weight, count in zip(weights, counts, strict=True)])

    loss_sums = []
    for i, batch in enumerate(batches):
        torch.manual_seed(dropout_seed(seed, step, int(batch.block_ids[0])))
        with gradient_sync(accelerator, objective, is_last=i == len(batches) - 1):
            micro_sums = objective(batch)
            accelerator.backward((micro_sums * scales).sum())
        loss_sums.append(micro_sums.detach())

    grad_norm = clip_grad_norm(accelerator, objective, max_grad_norm)
    # After the all-reduce a bad value anywhere is in everybody's norm.
    is_skipped = is_bad = ~torch.isfinite(grad_norm)
    if accelerator.scaler is not None:
        loss_is_bad = ~torch.isfinite(accelerator.reduce(torch.stack(loss_sums).sum(), "sum"))
        is_bad = is_bad | loss_is_bad
        # Below a scale of 1 it is not the scaling that made the gradient infinite.
        is_skipped = loss_is_bad | (is_bad & (accelerator.scaler.scale(torch.ones_like(grad_norm)) < 1))

    set_learning_rates(optimizers, lr_factor)
    step_unless(is_bad, optimizers, accelerator.scaler)
    for optimizer in optimizers:
        optimizer.zero_grad()
    return StepMetrics(
        step=step,
        lr_factor=lr_factor,
        block_ids=[batch.block_ids for batch in batches],
        loss_sums=torch.stack(loss_sums),
        counts=counts,
        grad_norm=grad_norm,
        is_skipped=is_skipped,
        num_tokens=sum(batch.num_tokens for batch in batches),
        num_masked=sum(batch.num_masked for batch in batches),
    )


def dropout_seed(seed: int, step: int, first_block_id: int) -> int:
    """A generator seed that follows the micro-batch, not the process that computes it."""
    digest = hashlib.blake2b(f"{seed} {step} {first_block_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
