"""The arithmetic that training needs, and what the devices can do: their measured rate, and their published peak."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from data.batch import MaskedBatch
from train_loop.evaluate import sum_over_processes
from train_loop.objective import Objective
from train_loop.objectives.checks import without_dropout

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_PEAKS: dict[str, list[Any]] = yaml.safe_load(Path(__file__).with_name("gpu_peaks.yaml").read_text(encoding="utf-8"))
_OTHER_CHIPS = {"MIG", "Laptop", "D", "Ti"}  # words of slower or faster namesakes


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward and a backward."""

    per_token: float  # the encoder
    per_masked_token: float  # beside that, the head

    def of(self, num_tokens: float, num_masked: float) -> float:
        """For a number of tokens, some of which are masked."""
        return num_tokens * self.per_token + num_masked * self.per_masked_token


@dataclass(frozen=True)
class Arithmetic:
    """The cost of a token, and what the devices of all processes can do together, in operations per second."""

    flops: Flops
    rate: float  # measured, of large matrix products
    peak: float | None  # by the vendor's datasheets; None if one of the devices is not in our table


def measure_arithmetic(accelerator: Accelerator, objective: Objective, length: int) -> Arithmetic:
    """Count and measure. All processes call this."""
    name = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else "CPU"
    ours = published_peak(name, accelerator.mixed_precision) or math.nan
    (peak,) = sum_over_processes(accelerator, [torch.tensor([ours])])
    rate = measure_rate(accelerator)
    return Arithmetic(count_flops(objective, length), rate, None if math.isnan(peak) else peak)


def measure_rate(accelerator: Accelerator) -> float:
    """Measure the rate of all devices together. All processes call this, and measure at the same time."""
    accelerator.wait_for_everyone()
    try:
        rate = matmul_rate(accelerator.device, accelerator.mixed_precision)
    except torch.OutOfMemoryError:  # in the middle of a run, which must not end for a measurement
        rate = 0.0
    return sum_over_processes(accelerator, [torch.tensor([rate])])[0]


def published_peak(device_name: str, precision: str) -> float | None:
    """The floating-point operations per second of a GPU by its datasheet; None if the table lacks it.

    The name is CUDA's, and the precision Accelerate's ``mixed_precision``: in full, TF32 counts if PyTorch may use it.
    """
    words = set(re.split(r"[ -]", device_name))
    found = next((peaks for name, peaks in _PEAKS.items() if words.issuperset(name.split())), None)
    if found is None or words & _OTHER_CHIPS or (precision == "bf16" and found[1] is None):
        return None
    half, tf32, full = found
    if precision != "no":
        return half * 1e12
    return 1e12 * (tf32 if tf32 is not None and torch.get_float32_matmul_precision() != "highest" else full)


def count_flops(objective: Objective, length: int) -> Flops:
    """Count the matrix products and attention in forwards of a block of ``length`` tokens.

    A product of the forward becomes two in the backward, so it counts three times. Recomputation by gradient
    checkpointing does not count: training needs the same arithmetic without it. Draws no random number.
    """
    one, two = (_flops_of_forward(objective, length, num_masked) for num_masked in (1, 2))
    per_masked = two - one
    return Flops(per_token=3 * (one - per_masked) / length, per_masked_token=3 * per_masked)


def _flops_of_forward(objective: Objective, length: int, num_masked: int) -> int:
    batch = MaskedBatch.of_zeros(1, length, num_masked=num_masked, device=next(objective.parameters()).device)
    with without_dropout(objective):
        return flops_of(lambda: objective(batch))


@torch.no_grad()
def flops_of(forward: Callable[[], object]) -> int:
    """The operations of a call."""
    # torch's counter does not know the attention on a CPU.
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        forward()
    return counter.get_total_flops()


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]


def matmul_rate(device: torch.device, precision: str, seconds: float = 0.2) -> float:
    """Measure the floating-point operations per second of large matrix products, for about ``seconds``."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 1024
    random = torch.Generator(device).manual_seed(0)  # a generator of its own: the run's stays as it is
    a, b = (torch.randn(size, size, generator=random, device=device).to(_DTYPES[precision]) for _ in range(2))

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize(device)  # PyTorch's own timer would wait for the current GPU
        return time.perf_counter()

    names = {"torch": torch, "a": a, "b": b, "c": torch.empty_like(a)}
    product = Timer("torch.mm(a, b, out=c)", timer=now, globals=names, num_threads=torch.get_num_threads())
    return 2 * size**3 / product.blocked_autorange(min_run_time=seconds).mean
