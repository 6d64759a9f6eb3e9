"""Masked language modelling (Devlin et al. 2019): the cross-entropy of the masked tokens."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.batch import MaskedBatch
from train_loop.config import TrainConfig
from train_loop.evaluate import sum_over_processes
from train_loop.objective import EvalMetrics, Objective
from train_loop.objectives.checks import attends_by_document, check_document_attention, gather_in_last_layer
from train_loop.objectives.masked_logits import MaskedLogits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedLMMetrics(EvalMetrics):
    """Means over all masked tokens of the held-out text; with weights, the loss bounds its negative log-likelihood."""

    eval_perplexity: float
    eval_accuracy: float
    eval_num_masked_tokens: int

    def row(self, tokens_per_byte: float) -> dict[str, float]:
        """Bits per byte too, for models of different tokenizers: as if each token of the text cost the loss."""
        return super().row(tokens_per_byte) | {"eval_bits_per_byte": self.eval_loss / math.log(2) * tokens_per_byte}


class MaskedLMObjective(Objective):
    """One term, with one prediction for each masked token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.logits = MaskedLogits(model)

    def count(self, batch: MaskedBatch) -> Sequence[int | Tensor]:
        """The masked tokens, or the sum of their weights."""
        return (_count(batch),)

    def forward(self, batch: MaskedBatch) -> Tensor:
        """The weighted sum of the cross-entropies of the masked tokens."""
        return _loss_sum(self._logits(batch).float(), batch).unsqueeze(0)

    def eval_sums(self, batch: MaskedBatch) -> Tensor:
        """Cross-entropy and what it counts, right predictions, masked tokens."""
        logits = self._logits(batch).float()
        loss = _loss_sum(logits, batch)
        num_correct = (logits.argmax(-1) == batch.labels).sum()
        counts = (torch.zeros_like(loss) + count for count in (_count(batch), batch.num_masked))
        return torch.stack([loss, num_correct.float(), *counts])

    def eval_metrics(self, sums: Sequence[float]) -> MaskedLMMetrics:
        """Their means."""
        loss_sum, num_correct, count, num_masked = sums
        loss = loss_sum / max(count, 1)
        return MaskedLMMetrics(loss, perplexity(loss), num_correct / max(num_masked, 1), int(num_masked))

    def _logits(self, batch: MaskedBatch) -> Tensor:
        inputs = (batch.input_ids, batch.masked_positions, batch.attention_mask, batch.position_ids, batch.documents)
        return self.logits(*inputs)

    def adapt(self, config: TrainConfig, block_size: int, *, document_attention: bool, has_padding: bool) -> None:
        """Gather in the last layer if that works, and attend within documents without padding or a mask likewise."""
        if config.masked_last_layer:
            gather_in_last_layer(self.logits)
        if document_attention or has_padding:
            self.takes_documents = attends_by_document(self.logits, block_size)
            if not self.takes_documents:
                kind, attention = self.model.config.model_type, self.model.config._attn_implementation
                logger.warning("texts are padded or masked: %r by %s does not take them side by side", kind, attention)
        if document_attention and not self.takes_documents:
            check_document_attention(self.logits, block_size)
        if self.model.device.type == "cuda":
            self.logits.pad_vocabulary_to = config.pad_vocabulary_to

    @property
    def last_layer(self) -> nn.Module | None:
        """The layer in which positions are gathered."""
        return self.logits.last_layer and self.logits.last_layer.layer


def _count(batch: MaskedBatch) -> int | Tensor:
    return batch.num_masked if batch.weights is None else batch.weights.sum().round().long()


def _loss_sum(logits: Tensor, batch: MaskedBatch) -> Tensor:
    if batch.weights is None:
        return F.cross_entropy(logits, batch.labels, reduction="sum")
    return F.cross_entropy(logits, batch.labels, reduction="none") @ batch.weights


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def unigram_perplexity(accelerator: Accelerator, weights: Tensor, batches: Iterable[MaskedBatch]) -> float:
    """Perplexity of predicting every masked token by its frequency alone. A model that has learned is below it.

    ``weights`` are ``[V]`` occurrences in the training text plus one, so that no label has probability 0; 0 for special
    tokens, which are never labels. The batches are this process's.
    """
    losses = -torch.log(weights.double() / weights.sum())
    sums = [torch.stack([losses[b.labels.cpu()].sum(), torch.tensor(float(b.num_masked))]) for b in batches]
    loss_sum, num_masked = sum_over_processes(accelerator, sums)
    return perplexity(loss_sum / max(num_masked, 1))
