"""The measurements of one update, and the error for an update that is not finite."""

from dataclasses import dataclass

from torch import Tensor


class NonFiniteError(RuntimeError):
    """The loss or the gradient of an update is not a finite number, so the update was skipped."""


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
