"""What one update tells of itself, and the error of one that is not finite."""

from dataclasses import dataclass

from accelerate.utils import gather_object
from torch import Tensor


class NonFiniteError(RuntimeError):
    """The loss or the gradient of an update is not a finite number, so the update was skipped."""


@dataclass(frozen=True)
class StepMetrics:
    """Of one update; tensors stay on the device until somebody logs them.

    Attributes:
        step: Number of the update, from 0.
        lr_factor: Factor on the peak learning rates.
        block_ids: Of this process's micro-batches, ``[B]`` each, on the CPU.
        loss_sums: ``[micro-batches, K]``, of the K terms of the loss, summed over this process's predictions.
        counts: ``[K]``, predictions in the global batch, 1 where there are none.
        grad_norm: Norm of the whole gradient, before clipping.
        is_skipped: Whether the loss or the gradient was not finite, the same on
            all processes: parameters and optimizers are then as they were, bit for bit.
            An overflow under fp16, by which its loss scaler finds the scale, skips
            the update in the same way and does not count as one.
        num_tokens, num_masked: Tokens, and masked tokens, in this process's micro-batches.
    """

    step: int
    lr_factor: float
    block_ids: list[Tensor]
    loss_sums: Tensor
    counts: Tensor
    grad_norm: Tensor
    is_skipped: Tensor
    num_tokens: int
    num_masked: int


def non_finite_error(metrics: StepMetrics) -> NonFiniteError:
    """What to say of an update that was skipped; to be called by all processes."""
    bad = [
        ids
        for ids, is_finite in zip(metrics.block_ids, metrics.loss_sums.isfinite().all(-1).tolist(), strict=True)
        if not is_finite
    ]
    block_ids = sorted(gather_object([i for ids in bad for i in ids.tolist()]))
    where = f"the loss of blocks {block_ids}" if block_ids else "the gradient, from finite losses,"
    return NonFiniteError(
        f"step {metrics.step + 1}: {where} is not a finite number; no weight was changed by it: "
        "look at these blocks' text, or lower learning_rate"
    )
