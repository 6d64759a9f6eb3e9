"""Evaluation on held-out text, with fixed masks.

Sums first, one division at the end: a mean of batch means would depend on the batch size. The masks come with the
batches and are the same at every evaluation, so two evaluations differ by the model alone.
"""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from data.batch import MaskedBatch
from train_loop.objective import EvalMetrics, Objective


@torch.no_grad()
def evaluate(accelerator: Accelerator, objective: Objective, batches: Iterable[MaskedBatch]) -> EvalMetrics:
    """Evaluate on the batches of all processes, without DDP: there are no gradients to synchronise."""
    was_training = objective.training
    objective.eval()
    sums = []
    for batch in batches:
        with accelerator.autocast():
            sums.append(objective.eval_sums(batch))
    objective.train(was_training)
    return objective.eval_metrics(sum_over_processes(accelerator, sums))


def sum_over_processes(accelerator: Accelerator, sums: list[Tensor]) -> list[float]:
    """Add up vectors of sums, of batches and then of processes, in double precision."""
    total = torch.stack(sums).cpu().double().sum(0)
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total.to(accelerator.device), "sum")
    return total.tolist()
