"""The parts of a run. `loop.train` makes the updates with them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from data.batch import Loader, MaskedBatch
from train_loop.checkpoint import TrainState
from train_loop.config import TrainConfig
from train_loop.objective import Objective
from train_loop.parallel import unwrapped
from train_loop.plan import BatchPlan
from train_loop.processes import Processes
from train_loop.run_checkpoints import RunCheckpoints


class Stopped(Exception):
    """A process was told to stop. ``step`` is the last step made, of which there is a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass
class Run:
    """The parts of a run."""

    config: TrainConfig
    accelerator: Accelerator
    processes: Processes
    objective: nn.Module  # prepared by Accelerate, as the optimizers are; perhaps wrapped in DDP
    optimizers: list[AcceleratedOptimizer]
    lr_factor: Callable[[int], float]  # step -> factor on the peak learning rates
    plan: BatchPlan
    loader: Loader  # of this process's micro-batches
    eval_batches: Callable[[], Iterable[MaskedBatch]]  # this process's, from the start at each call
    eval_tokens_per_byte: float  # of the evaluation text, without special tokens
    state: TrainState
    checkpoints: RunCheckpoints  # used on the main process only

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.output_dir)

    @property
    def bare_objective(self) -> Objective:
        """The objective without DDP around it."""
        return unwrapped(self.objective)
