"""One optimizer update. Read this file first.

The loss of an update is the mean over all masked tokens of the global batch,
however that batch is spread over processes and micro-batches:

    loss = sum over all masked tokens of -log p(token) / num_masked

So the masked tokens are counted first, over all processes. Then each
micro-batch contributes its *sum*, scaled by one over that *global* count.
Means of micro-batches are never averaged: their counts differ.
"""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import Tensor, nn

from data import MaskedBatch
from train_loop.optim import set_learning_rates


class NonFiniteError(RuntimeError):
    """The loss or the gradient of an update is not a number; the weights are as they were before it."""


@dataclass(frozen=True)
class StepMetrics:
    """Of one update; tensors stay on the device until somebody logs them.

    Attributes:
        loss_sum: Summed loss of this process's masked tokens.
        num_masked: Masked tokens of the global batch.
        grad_norm: Norm of the whole gradient, before clipping.
        num_tokens: Tokens that this process's micro-batches held.
    """

    loss_sum: Tensor
    num_masked: Tensor
    grad_norm: Tensor
    num_tokens: int


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
    """Make one update of the parameters.

    Args:
        objective: Prepared; gives a micro-batch's summed loss.
        batches: This process's micro-batches of the update, at least one.
        step: Number of the update, from 0.
        lr_factor: Factor on the peak learning rates.
        max_grad_norm: Clip to this norm; 0 does not clip.

    Raises:
        NonFiniteError: On all processes alike, before any weight is touched.
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

    loss_sum = torch.stack(loss_sums).sum()
    grad_norm = accelerator.clip_grad_norm_(objective.parameters(), max_grad_norm or torch.inf)

    # After the all-reduce a bad value anywhere is in everybody's norm. Under fp16 an infinite norm is
    # normal, the loss scaler skips the update by itself, and the loss tells. This waits for the GPU.
    if not torch.isfinite(grad_norm if accelerator.scaler is None else accelerator.reduce(loss_sum, "sum")):
        raise _non_finite(step, batches, loss_sums)

    set_learning_rates(optimizers, lr_factor)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return StepMetrics(
        loss_sum=loss_sum,
        num_masked=num_masked,
        grad_norm=grad_norm,
        num_tokens=sum(batch.num_tokens for batch in batches),
    )


def dropout_seed(seed: int, step: int, first_block_id: int) -> int:
    """A generator seed that follows the micro-batch, not the process that computes it."""
    digest = hashlib.blake2b(f"{seed} {step} {first_block_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _non_finite(step: int, batches: Sequence[MaskedBatch], loss_sums: list[Tensor]) -> NonFiniteError:
    bad = [b for b, loss in zip(batches, loss_sums, strict=True) if not torch.isfinite(loss)]
    block_ids = sorted(gather_object([i for b in bad for i in b.block_ids.tolist()]))
    where = f"the loss of blocks {block_ids}" if block_ids else "the gradient, from finite losses,"
    return NonFiniteError(
        f"step {step + 1}: {where} is not a finite number; no weight was changed: "
        "look at these blocks' text, or lower learning_rate"
    )
