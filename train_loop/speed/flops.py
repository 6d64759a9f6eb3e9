"""The arithmetic that training needs, and the rate of the device: their quotient is the FLOP utilisation."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from data.batch import MaskedBatch
from train_loop.objective import Objective

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward and a backward.

    Attributes:
        per_token: For every token: the encoder.
        per_masked_token: Beside that, for every masked one: the head.
    """

    per_token: float
    per_masked_token: float

    def of(self, num_tokens: float, num_masked: float) -> float:
        """For a number of tokens, some of which are masked."""
        return num_tokens * self.per_token + num_masked * self.per_masked_token


@dataclass(frozen=True)
class Arithmetic:
    """The cost of a token, and the operations per second of all processes' devices together."""

    flops: Flops
    rate: float


def measure_arithmetic(accelerator: Accelerator, objective: Objective, length: int) -> Arithmetic:
    """Count and measure. All processes call this, and measure at the same time."""
    accelerator.wait_for_everyone()
    rate = torch.tensor(matmul_rate(accelerator.device, accelerator.mixed_precision), device=accelerator.device)
    return Arithmetic(count_flops(objective, length), float(accelerator.reduce(rate, "sum")))


def count_flops(objective: Objective, length: int) -> Flops:
    """Count the matrix products and attention in forwards of a block of ``length`` tokens.

    A product of the forward becomes two in the backward, so it counts three times.
    Recomputation by gradient checkpointing does not count: training needs the same
    arithmetic without it. Draws no random number.
    """
    one, two = (_flops_of_forward(objective, length, num_masked) for num_masked in (1, 2))
    per_masked = two - one
    return Flops(per_token=3 * (one - per_masked) / length, per_masked_token=3 * per_masked)


@torch.no_grad()
def _flops_of_forward(objective: Objective, length: int, num_masked: int) -> int:
    batch = MaskedBatch.of_zeros(1, length, num_masked=num_masked, device=next(objective.parameters()).device)
    was_training = objective.training
    objective.eval()
    # torch's counter does not know the attention on a CPU.
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        objective(batch)
    objective.train(was_training)
    return counter.get_total_flops()


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]


def matmul_rate(device: torch.device, precision: str, seconds: float = 0.2) -> float:
    """Measure the floating-point operations per second of large matrix products, for about ``seconds``."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 1024
    random = torch.Generator(device).manual_seed(0)  # a generator of its own: the run's stays as it is
    a, b = (torch.randn(size, size, generator=random, device=device).to(_DTYPES[precision]) for _ in range(2))
    c = torch.empty_like(a)

    def ten_products() -> None:
        for _ in range(10):
            torch.mm(a, b, out=c)
        if on_gpu:
            torch.cuda.synchronize(device)

    ten_products()  # the first ones wake the device and choose the kernel
    start, rounds = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        ten_products()
        rounds += 1
    return 2 * size**3 * 10 * rounds / passed
