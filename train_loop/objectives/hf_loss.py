"""The loss of this project for transformers' `Trainer`, whose own scales the gradient of many models wrongly."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from train_loop.objectives.checks import gather_in_last_layer
from train_loop.objectives.masked_logits import MaskedLogits


class MaskedLMLoss:
    """``compute_loss_func`` for `Trainer`: the mean over all predictions of an update, on any number of processes.

    With ``MaskedLMCollator(tokenizer, gives_positions=True)``, the model also computes its head, and where it can the
    end of its last layer, at the masked positions only, unless it is compiled (`tests.audit` proves both).

    >>> Trainer(model, arguments, data_collator=collator, compute_loss_func=MaskedLMLoss(model), ...)
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Let the model's forward take ``masked_positions``; it then gives logits ``[M, V]``, and stays as it was."""
        logits, forward = MaskedLogits(model), model.forward
        gather_in_last_layer(logits)

        @functools.wraps(forward)  # `Trainer` asks its signature which columns the model takes
        def gathering(*args: Any, masked_positions: Tensor | None = None, **inputs: Any) -> Any:
            is_compiling = torch.compiler.is_compiling()  # by `Trainer`, as a whole: its graph would not gather
            if masked_positions is None or args or is_compiling or {"labels", "position_ids"} & inputs.keys():
                return forward(*args, **inputs)
            return MaskedLMOutput(logits=logits(masked_positions=masked_positions, **inputs))

        model.forward = gathering

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The cross-entropies of the masked tokens of a micro-batch, over the number of those of the whole update."""
        is_masked = labels != -100
        logits = outputs["logits"]
        logits = logits if logits.dim() == 2 else logits[is_masked]
        total = F.cross_entropy(logits.float(), labels[is_masked], reduction="sum")
        return total / (is_masked.sum() if num_items_in_batch is None else num_items_in_batch)
