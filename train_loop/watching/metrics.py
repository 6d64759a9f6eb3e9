"""Numbers of a run: summed on the device, read when they are logged, always in ``metrics.jsonl``."""

import itertools
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from train_loop.evaluate import sum_over_processes
from train_loop.speed.flops import Arithmetic, measure_rate
from train_loop.step import StepMetrics


class NonFiniteError(RuntimeError):
    """The loss or the gradient of an update is not a finite number, so the update was skipped."""


@dataclass
class TrainWindow:
    """The updates since the last training row.

    Adding an update does not wait for the device. Reading does, and adds up the sums of all processes.
    """

    accelerator: Accelerator
    terms: Mapping[str, float]  # the weight of each term of the loss, by name
    peaks: Mapping[str, float]  # learning rates by the names that they have in a row; one schedule scales all
    arithmetic: Arithmetic

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new window now, so that evaluations and saves are not part of the throughput."""
        self._start = time.perf_counter()
        self._updates: list[StepMetrics] = []

    @property
    def num_steps(self) -> int:
        """Updates in the window."""
        return len(self._updates)

    def add(self, metrics: StepMetrics) -> None:
        """Add an update."""
        self._updates.append(metrics)

    def take_skipped(self) -> list[StepMetrics]:
        """Remove and return the updates that were skipped because they were not finite."""
        flags = torch.stack([update.is_skipped for update in self._updates]).tolist()
        taken = [update for update, is_skipped in zip(self._updates, flags, strict=True) if is_skipped]
        self._updates = [update for update, is_skipped in zip(self._updates, flags, strict=True) if not is_skipped]
        return taken

    def read(self) -> dict[str, float]:
        """A training row, over all processes. A new window begins.

        ``loss`` is the mean over the window's masked tokens. If it has several terms, it is their weighted sum, and
        ``loss_NAME`` is the mean of each. Learning rates and ``grad_norm`` are those of the last update.
        ``num_tokens`` and ``tokens_per_second`` count all tokens. ``flop_utilization`` is the share of the devices'
        measured matrix-product rate that was used for arithmetic which the loss needs, and ``mfu`` that of their
        published peak, where it is known. A rate below what the updates reached was measured on a busy machine, and is
        measured again. ``peak_memory_bytes`` is the largest of all processes, since the run began.
        """
        last = self._updates[-1]
        local_losses = torch.cat([update.loss_sums for update in self._updates]).cpu().double().sum(0)
        local_tokens = sum(update.num_tokens for update in self._updates)
        local_masked = sum(update.num_masked for update in self._updates)
        local_seconds = time.perf_counter() - self._start  # the losses are here, so the device has finished
        local = torch.cat([local_losses, local_losses.new_tensor([local_tokens, local_masked, local_seconds])])
        *loss_sums, num_tokens, num_masked, seconds = sum_over_processes(self.accelerator, [local])
        seconds /= self.accelerator.num_processes
        counts = torch.stack([update.counts for update in self._updates]).sum(0).tolist()
        means = {name: loss / count for name, loss, count in zip(self.terms, loss_sums, counts, strict=True)}
        flops_per_second = self.arithmetic.flops.of(num_tokens, num_masked) / seconds
        if flops_per_second > self.arithmetic.rate:
            rate = max(measure_rate(self.accelerator), flops_per_second)
            self.arithmetic = replace(self.arithmetic, rate=rate)
        peak = self.arithmetic.peak
        row = {
            "loss": sum(self.terms[name] * mean for name, mean in means.items()),
            **({f"loss_{name}": mean for name, mean in means.items()} if len(means) > 1 else {}),
            **{name: peak * last.lr_factor for name, peak in self.peaks.items()},
            "grad_norm": float(last.grad_norm),
            "num_masked_tokens": int(num_masked),
            "num_tokens": int(num_tokens),
            "tokens_per_second": num_tokens / seconds,
            "flop_utilization": flops_per_second / self.arithmetic.rate,
            **({} if peak is None else {"mfu": flops_per_second / peak}),
            "peak_memory_bytes": largest_peak_memory(self.accelerator),
        }
        self.reset()
        return row


def largest_peak_memory(accelerator: Accelerator) -> int:
    """The largest peak memory of all processes, in bytes. All processes call this."""
    return int(accelerator.gather(torch.tensor([peak_memory()], device=accelerator.device)).max())


def peak_memory() -> int:
    """Peak memory in bytes: of tensors on the GPU, or without one of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        # getrusage would include the peak of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class MetricsFile:
    """``metrics.jsonl``, one row a line; written by the main process only."""

    def __init__(self, path: Path, *, keep: Callable[[dict[str, Any]], bool], writes: bool) -> None:
        """Keep the earlier rows for which ``keep`` is true; a resumed run writes the later ones again."""
        self._path = path
        self._writes = writes
        self._start = time.perf_counter()
        if writes:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
            kept = [line for line in lines if line.endswith("\n") and keep(json.loads(line))]
            if kept:
                self._start -= json.loads(kept[-1]).get("seconds", 0.0)
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)

    @property
    def seconds(self) -> float:
        """The run's time so far, over all its starts, without the pauses between them."""
        return time.perf_counter() - self._start

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it is in the file when this returns. Non-finite numbers become null, as JSON has none."""
        if self._writes:
            row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def non_finite_error(metrics: StepMetrics) -> NonFiniteError:
    """The error for an update that was skipped. All processes call this."""
    is_finite = metrics.loss_sums.isfinite().all(-1).tolist()
    bad = [ids.tolist() for ids, finite in zip(metrics.block_ids, is_finite, strict=True) if not finite]
    block_ids = sorted(gather_object(list(itertools.chain.from_iterable(bad))))
    where = f"the loss of blocks {block_ids}" if block_ids else "the gradient, from finite losses,"
    return NonFiniteError(
        f"step {metrics.step + 1}: {where} is not a finite number; no weight was changed by it: "
        "look at these blocks' text, or lower learning_rate"
    )
