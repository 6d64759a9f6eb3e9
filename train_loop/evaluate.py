"""Token-weighted loss, perplexity and accuracy on fixed masks.

Sums first, one division at the end: a mean of batch means would depend on the
batch size. The masks come with the batches and are the same at every
evaluation, so two perplexities differ by the model alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from data.batch import MaskedBatch
from train_loop.objective import MaskedLMObjective


@dataclass(frozen=True)
class EvalMetrics:
    """Of one evaluation, over all processes."""

    eval_loss: float
    eval_perplexity: float
    eval_accuracy: float
    eval_num_masked_tokens: int


@torch.no_grad()
def evaluate(accelerator: Accelerator, objective: MaskedLMObjective, batches: Iterable[MaskedBatch]) -> EvalMetrics:
    """Evaluate on the batches of all processes.

    Args:
        objective: Not wrapped in DDP: there are no gradients to synchronise.
        batches: This process's batches.
    """
    was_training = objective.training
    objective.eval()
    sums = []
    for batch in batches:
        with accelerator.autocast():
            logits = objective.masked_logits(
                batch.input_ids, batch.masked_positions, batch.attention_mask, batch.position_ids
            ).float()
        batch_loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        batch_correct = (logits.argmax(-1) == batch.labels).sum()
        sums.append(torch.stack([batch_loss, batch_correct.float(), torch.full_like(batch_loss, batch.num_masked)]))
    objective.train(was_training)
    loss_sum, num_correct, num_masked = sum_over_processes(accelerator, sums)
    loss = loss_sum / max(num_masked, 1)
    return EvalMetrics(loss, perplexity(loss), num_correct / max(num_masked, 1), int(num_masked))


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def unigram_perplexity(accelerator: Accelerator, weights: Tensor, batches: Iterable[MaskedBatch]) -> float:
    """Perplexity of predicting every masked token by its frequency alone: what a model must beat to have learned.

    Args:
        weights: ``[V]``, occurrences in the training text plus one, so that no
            label has probability 0; 0 for special tokens, which are never labels.
        batches: This process's batches.
    """
    losses = -torch.log(weights.double() / weights.sum())
    sums = [torch.stack([losses[b.labels.cpu()].sum(), torch.tensor(float(b.num_masked))]) for b in batches]
    loss_sum, num_masked = sum_over_processes(accelerator, sums)
    return perplexity(loss_sum / max(num_masked, 1))


def sum_over_processes(accelerator: Accelerator, sums: list[Tensor]) -> list[float]:
    """Add up vectors of sums, of batches and then of processes, in double precision."""
    total = torch.stack(sums).cpu().double().sum(0)
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total.to(accelerator.device), "sum")
    return total.tolist()
