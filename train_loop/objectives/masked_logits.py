"""The logits of a masked language model at the masked positions, and nowhere else.

A stock ``*ForMaskedLM`` computes logits of the whole vocabulary at every position and then ignores 85 % of them. Here
the encoder's output is gathered at the masked positions before the head sees it: same loss, same gradients, and at
length 128 a DistilRoBERTa step needs 1.67 times less arithmetic.

In the last layer only the attention mixes positions, and nothing reads what the layer makes of the unmasked ones. So
where the model's modules allow it, the gathering moves up into that attention, in front of its last product: 1.84 times
less (`gather_in_last_layer`). Residual connections see the masked positions alone.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from data.batch import DocumentBorders
from train_loop.model import first_position
from train_loop.objectives.logits import compute_logits


class LastLayer(NamedTuple):
    """A layer, the module in it that first reads its input, and the linear map that ends its attention."""

    layer: nn.Module
    first: nn.Module
    end: nn.Module


@dataclass
class _Gathering:
    """Where a call of `MaskedLogits` gathers which positions; ``whole_BLD`` is what the last layer was given."""

    where: LastLayer | nn.Module
    positions: Tensor
    whole_BLD: Tensor | None = None


_gathering: ContextVar[_Gathering | None] = ContextVar("gathering", default=None)  # threads may share a model


class MaskedLogits:
    """Computes the logits of a model at the masked positions of a batch.

    The gathering is a forward hook on the encoder (``model.base_model``), so it serves any ``AutoModelForMaskedLM``.
    Outside of a call it does nothing.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.first_position = first_position(model)
        self.has_windows = "sliding_attention" in (getattr(model.config, "layer_types", None) or ())
        self.last_layer: LastLayer | None = None  # where positions are gathered; None: at the end of the encoder
        self._hooks: list[RemovableHandle] = []
        # In training logits are computed as if the vocabulary were a multiple of this; no value or shape changes.
        self.pad_vocabulary_to = 1
        if _gather_after_encoder not in model.base_model._forward_hooks.values():  # of an earlier one
            model.base_model.register_forward_hook(_gather_after_encoder)

    def gather_in(self, last_layer: LastLayer | None) -> None:
        """Gather in this layer; None: at the end of the encoder."""
        for hook in self._hooks:
            hook.remove()
        free = (m for m in last_layer or () if _gather_in_layer not in m._forward_pre_hooks.values())
        self._hooks = [module.register_forward_pre_hook(_gather_in_layer) for module in free]
        self.last_layer = last_layer

    def __call__(
        self,
        input_ids: Tensor,
        masked_positions: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        documents: DocumentBorders | None = None,
        **others: Any,
    ) -> Tensor:
        """``[M, V]``, in the precision of the forward. Arguments are as in `MaskedBatch`; others are the model's own.

        With ``position_ids``, which are 0 in the padding, each document is computed as if it were alone; without, a
        block is one document. ``documents`` are for a model whose attention is `attend`, instead of a mask.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, **others}
        if position_ids is not None:
            inputs["position_ids"] = position_ids + self.first_position
            if documents is None:
                inputs["attention_mask"] = self._inside_documents(position_ids)
            else:
                inputs["documents"] = documents
                if self.has_windows:  # it would make a mask of them
                    inputs["attention_mask"] = {"full_attention": None, "sliding_attention": None}

        # With gradient checkpointing the backward computes the layer again, outside of this call: it would not gather.
        last = self.last_layer
        if last is None or (last.layer.training and getattr(last.layer, "gradient_checkpointing", False)):
            token = _gathering.set(_Gathering(self.model.base_model, masked_positions))
        else:
            token = _gathering.set(_Gathering(last, masked_positions))
        try:
            logits = compute_logits(self.model, inputs, pad_to=self.pad_vocabulary_to)
        finally:
            _gathering.reset(token)
        # A head that does not read the encoder's first output would be slow or wrong without this check.
        assert logits.shape[:-1].numel() == len(masked_positions), (
            f"{type(self.model).__name__}: the head gave logits at {logits.shape[:-1].numel()} positions, "
            f"not at the {len(masked_positions)} masked ones"
        )
        return logits.flatten(0, -2)

    def _inside_documents(self, position_ids: Tensor) -> Any:
        """`document_mask` in the form for the model. transformers passes a four-dimensional mask through unchanged."""
        config = self.model.config
        masks = {"full_attention": document_mask(position_ids)}
        if self.has_windows:  # ModernBERT: one mask for all layers would undo the windows of most of them
            index = torch.arange(position_ids.shape[1], device=position_ids.device)
            near_LL = (index[:, None] - index).abs() <= config.sliding_window
            masks["sliding_attention"] = masks["full_attention"] & near_LL
        if config._attn_implementation == "eager":  # adds its mask to the scores; sdpa takes booleans
            dtype = self.model.dtype
            lowest = torch.finfo(dtype).min
            masks = {name: torch.zeros_like(m, dtype=dtype).masked_fill(~m, lowest) for name, m in masks.items()}
        return masks if self.has_windows else masks["full_attention"]


def _gather_after_encoder(encoder: nn.Module, args: Any, output: Any) -> Any:
    gathering = _gathering.get()
    if gathering is None or gathering.where is not encoder:
        return None
    output.last_hidden_state = _gather(output[0], gathering.positions)
    return output


def _gather_in_layer(module: nn.Module, args: Any) -> Any:
    """Give the layer the masked positions of its input, its first module all of them, and the end of attention few."""
    gathering = None if torch.compiler.is_compiling() else _gathering.get()
    if gathering is None or not isinstance(gathering.where, LastLayer):
        return None
    if module is gathering.where.first:
        return gathering.whole_BLD, *args[1:]
    if module is gathering.where.layer:
        gathering.whole_BLD = args[0]
    return _gather(args[0], gathering.positions), *args[1:]


def _gather(hidden_BLD: Tensor, positions: Tensor) -> Tensor:
    """``[1, M, D]``."""
    return hidden_BLD.flatten(0, 1).index_select(0, positions).unsqueeze(0)


def document_mask(position_ids: Tensor) -> Tensor:
    """``[B, 1, L, L]`` bool: whether a token attends to another, which it does within its document.

    position_ids  0 1 2 0 1 0 0     two documents, then two tokens of padding
    document      1 1 1 2 2 3 4

    Each token of padding is a document of its own. So no other token attends to it, and its own row is not all False,
    which would give NaN.
    """
    document_BL = (position_ids == 0).cumsum(dim=1)
    return (document_BL[:, :, None] == document_BL[:, None, :]).unsqueeze(1)
