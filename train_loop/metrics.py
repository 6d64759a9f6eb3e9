"""Numbers of a run: summed on the device, read when they are logged, always in ``metrics.jsonl``."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from train_loop.step import StepMetrics


class TrainWindow:
    """The updates since the last training row.

    Adding an update waits for nothing; `read` does, and lets all processes' sums meet.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.reset()

    def reset(self) -> None:
        """Begin a new window now; evaluations and saving are so kept out of the throughput."""
        self._start = time.perf_counter()
        self._num_tokens = 0
        self._loss_sums: list[Tensor] = []
        self._num_masked: list[Tensor] = []
        self._grad_norm: Tensor | None = None

    @property
    def num_steps(self) -> int:
        """Updates in the window."""
        return len(self._loss_sums)

    def add(self, metrics: StepMetrics, *, learning_rate: float) -> None:
        """Count one update in."""
        self._learning_rate = learning_rate
        self._num_tokens += metrics.num_tokens
        self._loss_sums.append(metrics.loss_sum)
        self._num_masked.append(metrics.num_masked)
        self._grad_norm = metrics.grad_norm

    def read(self) -> dict[str, float]:
        """A training row, over all processes; then begin anew.

        ``loss`` is the mean over the window's masked tokens, ``learning_rate`` and
        ``grad_norm`` are of its last update, ``tokens_per_second`` counts all tokens.
        """
        local = torch.stack(self._loss_sums).sum()
        num_tokens = torch.full_like(local, self._num_tokens)
        loss_sum, num_tokens = self._accelerator.reduce(torch.stack([local, num_tokens]), "sum").unbind()
        num_masked = int(torch.stack(self._num_masked).sum())
        assert self._grad_norm is not None
        row = {
            "loss": float(loss_sum) / num_masked,
            "learning_rate": self._learning_rate,
            "grad_norm": float(self._grad_norm),
            "num_masked_tokens": num_masked,
            "tokens_per_second": float(num_tokens) / (time.perf_counter() - self._start),
        }
        self.reset()
        return row


class MetricsFile:
    """``metrics.jsonl``, one row a line; written by the main process only."""

    def __init__(self, path: Path, *, keep_through_step: int, writes: bool) -> None:
        """Begin with the rows up to ``keep_through_step``: the run that goes on from there writes the later ones."""
        self._path = path
        self._writes = writes
        if writes:
            kept = []
            if keep_through_step > 0 and path.exists():
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= keep_through_step]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it is in the file when this returns. What is not finite is null: JSON has no infinity."""
        if self._writes:
            row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
