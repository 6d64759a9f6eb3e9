"""Replaced-token detection (ELECTRA, Clark et al. 2020): a small generator fills the masks, and the model says which
tokens are not those of the text. By default the two share embeddings as in DeBERTaV3 (He et al. 2021).
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from data.batch import MaskedBatch
from train_loop.config import TrainConfig
from train_loop.model import first_position
from train_loop.objective import EvalMetrics, Objective
from train_loop.objectives.checks import gather_in_last_layer
from train_loop.objectives.masked_lm import perplexity
from train_loop.objectives.masked_logits import MaskedLogits

_SHARING = ("gradient_disentangled", "all", "none")


@dataclass(frozen=True)
class ReplacedTokenMetrics(EvalMetrics):
    """The loss is the weighted sum of both terms; the last three are of the discriminator."""

    eval_generator_perplexity: float
    eval_accuracy: float
    eval_original_share: float  # of all tokens: the accuracy of always saying original
    eval_replaced_accuracy: float  # of the replaced tokens


class ReplacedTokenObjective(Objective):
    """The model is the encoder of the discriminator; its head and the generator are weights of the objective.

    The generator is a masked language model that begins as its first ``generator_layers``, by default half of them.
    Where the embeddings are ``gradient_disentangled``, the discriminator reads the generator's, without a gradient to
    them, plus a difference that it learns. With ``all`` both terms train one table; with ``none`` each has its own.
    """

    auto_class = AutoModel
    terms: ClassVar = {"generator": 1.0, "discriminator": 50.0}

    def __init__(self, model: PreTrainedModel, generator_layers: int = 0, embedding_sharing: str = _SHARING[0]) -> None:
        super().__init__(model)
        config, most = deepcopy(model.config), model.config.num_hidden_layers
        config.num_hidden_layers = generator_layers or max(1, most // 2)
        if not 1 <= config.num_hidden_layers <= most or embedding_sharing not in _SHARING:
            raise ValueError(f"generator_layers is from 1 to {most}, and embedding_sharing {', '.join(_SHARING)}")
        self.generator = AutoModelForMaskedLM.from_config(config)
        self.generator.base_model.load_state_dict(model.state_dict(), strict=False)
        self.logits = MaskedLogits(self.generator)
        width, own, read = config.hidden_size, model.get_input_embeddings(), self.generator.get_input_embeddings()
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.difference = nn.Parameter(torch.zeros_like(own.weight)) if embedding_sharing == _SHARING[0] else None
        if embedding_sharing == "all":
            read.weight = own.weight
            self.generator.tie_weights()
        elif self.difference is not None:
            own.weight.requires_grad_(False)
            model.register_state_dict_pre_hook(lambda *_: self._embeddings())

    def count(self, batch: MaskedBatch) -> Sequence[int | Tensor]:
        """The masked tokens, and all tokens."""
        return (batch.num_masked, batch.num_tokens if batch.attention_mask is None else batch.attention_mask.sum())

    def forward(self, batch: MaskedBatch) -> Tensor:
        """The sums of the cross-entropies: of the masked tokens, and of whether each token is replaced."""
        return self.eval_sums(batch)[:2]

    def eval_sums(self, batch: MaskedBatch) -> Tensor:
        """Both losses, masked tokens, all tokens, those judged right; the replaced ones, those of them judged right."""
        logits_MV = self.logits(batch.input_ids, batch.masked_positions, batch.attention_mask).float()
        filled_M = sample(logits_MV.detach(), batch)
        input_ids = batch.input_ids.flatten().scatter(0, batch.masked_positions, filled_M).view_as(batch.input_ids)
        is_replaced = torch.zeros_like(input_ids, dtype=torch.bool).flatten()
        is_replaced[batch.masked_positions] = filled_M != batch.labels
        inputs = {"input_ids": input_ids, "attention_mask": batch.attention_mask}
        if first := first_position(self.model):  # it would not count padding tokens, which the generator may sample
            inputs["position_ids"] = torch.arange(first, first + input_ids.shape[1], device=input_ids.device)[None]
        hidden_BLD = functional_call(self.model, self._embeddings(), kwargs=inputs, tie_weights=False)[0]
        logits = self.head(hidden_BLD).float().flatten()
        is_token = (batch.block_ids >= 0).to(logits.device, non_blocking=True)[:, None].expand_as(input_ids)
        is_token = (is_token if batch.attention_mask is None else is_token & batch.attention_mask.bool()).flatten()
        losses = F.binary_cross_entropy_with_logits(logits, is_replaced.float(), reduction="none") * is_token
        generator_loss = F.cross_entropy(logits_MV, batch.labels, reduction="sum")
        is_right = (logits > 0) == is_replaced
        counts = [of.sum() for of in (is_token, is_token & is_right, is_replaced, is_replaced & is_right)]
        return torch.stack([generator_loss, losses.sum(), torch.full_like(losses[0], batch.num_masked), *counts])

    def eval_metrics(self, sums: Sequence[float]) -> ReplacedTokenMetrics:
        """Their means."""
        generator_loss, loss, num_masked, num_tokens, num_right, num_replaced, num_found = sums
        means = generator_loss / max(num_masked, 1), loss / max(num_tokens, 1)
        total = sum(weight * mean for weight, mean in zip(self.terms.values(), means, strict=True))
        shares = num_right / max(num_tokens, 1), 1 - num_replaced / max(num_tokens, 1), num_found / max(num_replaced, 1)
        return ReplacedTokenMetrics(total, perplexity(means[0]), *shares)

    def adapt(self, config: TrainConfig, block_size: int, *, document_attention: bool, has_padding: bool) -> None:
        """Let the generator gather in its last layer, if that works, and pad its vocabulary on a GPU."""
        if document_attention:
            raise ValueError("objective=replaced_tokens attends to whole blocks: use --document_attention false")
        if config.masked_last_layer:
            gather_in_last_layer(self.logits)
        if self.model.device.type == "cuda":
            self.logits.pad_vocabulary_to = config.pad_vocabulary_to

    def _embeddings(self) -> dict[str, Tensor]:
        """The ``[V, D]`` of the discriminator, by their name in the model; it gets the values for whoever saves it."""
        if self.difference is None:
            return {}
        own = self.model.get_input_embeddings()
        table = self.generator.get_input_embeddings().weight.detach() + self.difference
        own.weight.data = table.detach()
        return {f"{name}.weight": table for name, module in self.model.named_modules() if module is own}


@torch.no_grad()
def sample(logits_MV: Tensor, batch: MaskedBatch) -> Tensor:
    """``[M]`` tokens drawn from the softmax of the logits, as the largest of them with Gumbel noise.

    The noise is a hash of which tokens of the block are masked. That follows from (seed, epoch, block id), so the draws
    are the same in any micro-batch and process, others in each epoch, and fixed in evaluations. A cumulative sum would
    need one draw a token, but has V borders near which rounding changes the sample.
    """
    length = batch.input_ids.shape[1]
    rows, columns = batch.masked_positions // length, (batch.masked_positions % length).int()
    of_tokens = _mix(_mix(columns) + batch.labels.int())
    of_blocks = torch.zeros_like(batch.input_ids[:, 0], dtype=torch.int32).index_add(0, rows, of_tokens)
    of_vocabulary = _mix(torch.arange(logits_MV.shape[1], dtype=torch.int32, device=logits_MV.device))
    bits_MV = _mix(_mix(of_blocks[rows] + columns)[:, None] ^ of_vocabulary) & 0x7FFFFFFF | 1
    return (logits_MV - torch.log(-torch.log1p(-bits_MV * 2.0**-31))).argmax(-1)


def _mix(x: Tensor) -> Tensor:
    """A hash of 32 bits (Wellons' lowbias32), elementwise: int32 in and out, the same on every device."""
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D  # & removes the copies of the sign
    x = (x ^ (x >> 15 & 0x1FFFF)) * -0x7B935975
    return x ^ (x >> 16 & 0xFFFF)
