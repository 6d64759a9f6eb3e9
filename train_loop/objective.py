"""(model, batch) -> the summed loss over the masked tokens, with the head on masked positions only.

A stock ``*ForMaskedLM`` computes logits of the whole vocabulary at every
position and then ignores 85 % of them. Here the encoder's output is gathered at
the masked positions before the head sees it: same loss, same gradients, and at
length 128 a DistilRoBERTa step needs 1.67 times less arithmetic.

In the last layer nothing but attention mixes positions, and nobody reads what it
makes of the unmasked ones. So where the model's modules allow it, the gathering
moves up to the end of that attention: 1.84 times less (`gather_in_last_layer`).
"""

import logging
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from train_loop.logits import compute_logits
from train_loop.model import first_position

logger = logging.getLogger(__name__)

_ATTENTION_END = "attention.output"  # in a layer of BERT's kin
# Where a call of `masked_logits` gathers, and what; of each thread by itself, for a model may serve many at once.
_gathering: ContextVar[tuple[nn.Module, Tensor] | None] = ContextVar("gathering", default=None)


class MaskedLMObjective(nn.Module):
    """What DDP wraps: everything from ids to the scalar happens inside this module.

    The gathering is a forward hook on the encoder (``model.base_model``), so it
    serves any ``AutoModelForMaskedLM``; it does nothing but in a call of
    `masked_logits`. To train on another objective, write another module with this
    forward.

    Attributes:
        last_layer: Name of the last layer, in which the gathering happens where
            its attention ends; None: at the end of the encoder.
        pad_vocabulary_to: In training the logits are computed as if the vocabulary
            were a multiple of this; it changes no value and no shape.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.first_position = first_position(model)
        self.last_layer: str | None = None
        self.pad_vocabulary_to = 1
        if _gather_after_encoder not in model.base_model._forward_hooks.values():  # of another objective
            model.base_model.register_forward_hook(_gather_after_encoder)

    def forward(
        self,
        input_ids: Tensor,
        masked_positions: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """The sum of the cross-entropies of the masked tokens, a scalar in fp32; 0 if there are none.

        Args:
            input_ids: ``[B, L]``.
            masked_positions: ``[M]``, in the flattened ``[B * L]``.
            labels: ``[M]``, the tokens that were there.
            attention_mask: ``[B, L]``, or None where no block is padded.
            position_ids: ``[B, L]``, counted from 0 in each document, and 0 in the
                padding: each document is computed as if it were alone. Or None:
                a block is one document.
        """
        logits = self.masked_logits(input_ids, masked_positions, attention_mask, position_ids)
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def masked_logits(
        self,
        input_ids: Tensor,
        masked_positions: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """``[M, V]``: the logits at the masked positions, and nowhere else."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if position_ids is not None:
            inputs["attention_mask"] = self._inside_documents(position_ids)
            inputs["position_ids"] = position_ids + self.first_position

        layer = None if self.last_layer is None else self.model.get_submodule(self.last_layer)
        # With gradient checkpointing the backward computes the layer again, and gathers nothing there.
        if layer is None or (layer.training and getattr(layer, "gradient_checkpointing", False)):
            where = self.model.base_model
        else:
            where = layer.get_submodule(_ATTENTION_END)
        token = _gathering.set((where, masked_positions))
        try:
            logits = compute_logits(self.model, inputs, pad_to=self.pad_vocabulary_to)
        finally:
            _gathering.reset(token)
        # A family whose head does not read the encoder's first output would go unnoticed, and be slow or wrong.
        assert logits.shape[:-1].numel() == len(masked_positions), (
            f"{type(self.model).__name__}: the head gave logits at {logits.shape[:-1].numel()} positions, "
            f"not at the {len(masked_positions)} masked ones"
        )
        return logits.flatten(0, -2)

    def _inside_documents(self, position_ids: Tensor) -> Any:
        """`document_mask` in the form that the model takes: the library applies one of four dimensions as it is."""
        config = self.model.config
        masks = {"full_attention": document_mask(position_ids)}
        has_windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if has_windows:  # ModernBERT: one mask for all layers would undo the windows of most of them
            index = torch.arange(position_ids.shape[1], device=position_ids.device)
            near_LL = (index[:, None] - index).abs() <= config.sliding_window
            masks["sliding_attention"] = masks["full_attention"] & near_LL
        if config._attn_implementation == "eager":  # adds its mask to the scores; sdpa takes booleans
            dtype = self.model.dtype
            lowest = torch.finfo(dtype).min
            masks = {name: torch.zeros_like(m, dtype=dtype).masked_fill(~m, lowest) for name, m in masks.items()}
        return masks if has_windows else masks["full_attention"]


def _gather_after_encoder(encoder: nn.Module, args: Any, output: Any) -> Any:
    if (positions := _positions_at(encoder)) is None:
        return None
    output.last_hidden_state = _gather(output[0], positions)
    return output


def _gather_after_attention(end: nn.Module, attended_and_residual: tuple[Tensor, Tensor]) -> Any:
    if (positions := _positions_at(end)) is None:
        return None
    return tuple(_gather(hidden_BLD, positions) for hidden_BLD in attended_and_residual)


def _positions_at(module: nn.Module) -> Tensor | None:
    """The positions that are gathered at a module in this call; a compiled layer gathers none."""
    gathering = None if torch.compiler.is_compiling() else _gathering.get()
    return gathering[1] if gathering is not None and gathering[0] is module else None


def _gather(hidden_BLD: Tensor, positions: Tensor) -> Tensor:
    """``[1, M, D]``."""
    return hidden_BLD.flatten(0, 1).index_select(0, positions).unsqueeze(0)


def document_mask(position_ids: Tensor) -> Tensor:
    """``[B, 1, L, L]`` bool: which tokens attend to which, those of a document to each other.

    position_ids  0 1 2 0 1 0 0     two documents, then two tokens of padding
    document      1 1 1 2 2 3 4

    So each token of padding is a document of its own: no other attends to it,
    and its own row is not all False, which would give NaN.
    """
    document_BL = (position_ids == 0).cumsum(dim=1)
    return (document_BL[:, :, None] == document_BL[:, None, :]).unsqueeze(1)


def check_document_attention(objective: MaskedLMObjective, block_size: int) -> None:
    """Raise ValueError if two documents in one block do not get the logits that each gets alone.

    Tried out, not looked up: a model may convolve across the border, mix the
    whole block, or have no place for such a mask. To be called once, before the
    model is prepared; it costs the forward of a few blocks and draws no dropout.
    """
    was_training = objective.training
    objective.eval()
    try:
        problem = _leak(objective, block_size)
    finally:
        objective.train(was_training)
    if problem is not None:
        raise ValueError(
            f"document_attention: model_type {objective.model.config.model_type!r} {problem}: "
            "use --document_attention false, or a model such as roberta, bert, modernbert"
        )


@torch.no_grad()
def _leak(objective: MaskedLMObjective, block_size: int) -> str | None:
    """What the model does to two documents in one block, seen at the first and last token of each; None if nothing."""
    model = objective.model
    device = next(objective.parameters()).device
    vocab_size = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(1, vocab_size, (1, block_size), generator=torch.Generator().manual_seed(0)).to(device)
    # Never the padding token, which has no position of its own in RoBERTa's kin.
    tokens = (tokens + (getattr(model.config, "pad_token_id", None) or 0)) % vocab_size
    # The short one feels a leak most; the long one goes past a local window and is not where its positions are.
    short = min(4, block_size // 2)
    lengths = [short, block_size - short]
    ends = [torch.tensor([0, n - 1], device=device) for n in lengths]
    apart = [objective.masked_logits(*one) for one in zip(tokens.split(lengths, dim=1), ends, strict=True)]
    position_ids = torch.cat([torch.arange(n, device=device) for n in lengths]).unsqueeze(0)
    is_second = torch.arange(block_size, device=device) >= short
    try:
        # The block, then with another second document, then with another first one.
        packed, first, second = (
            objective.masked_logits(block, torch.cat([ends[0], ends[1] + short]), position_ids=position_ids).float()
            for block in (tokens, *(torch.where(other, tokens.flip(1), tokens) for other in (is_second, ~is_second)))
        )
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return "takes no mask of documents"
    # In units of the logits' spread. What another document changes is nothing at all, at any precision, as the same
    # products are computed; the least leak, through the few untrained units of a test's model, is more than 6e-3.
    # Alone, they round otherwise: by less than 1e-5, or 21 roundings of half precision in 12 layers with large
    # weights. "not <" takes NaN for a leak.
    expected = torch.cat(apart).float()
    changed = torch.cat([first[:2], second[2:]]) - packed
    if not changed.abs().max() < 1e-3 * expected.std():
        return "mixes the documents of a block"
    if not (packed - expected).abs().max() < max(1e-3, 64 * _rounding(device.type)) * expected.std():
        return "mixes the documents of a block"
    return None


def _rounding(device_type: str) -> float:
    """By how much a matrix product rounds its factors, as it is computed now: 2^-24 in fp32, 2^-8 in bf16."""
    if torch.is_autocast_enabled(device_type):
        return torch.finfo(torch.get_autocast_dtype(device_type)).eps / 2
    is_tf32 = device_type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-11 if is_tf32 else 2.0**-24


def gather_in_last_layer(objective: MaskedLMObjective) -> bool:
    """Let the objective gather as early as it can, in the last layer, if that changes no logit; whether it does.

    BERT's kin end a layer's attention by a module of (attended, residual), and
    from there on each position is for itself. Whether that is so is tried out,
    not looked up. To be called once, before the model is
    prepared; it costs two forwards of two small blocks and draws no dropout.
    """
    ends = [name for name, _ in objective.model.named_modules() if name.endswith(f".{_ATTENTION_END}")]
    if not ends:
        return False
    end = objective.model.get_submodule(ends[-1])
    if _gather_after_attention not in end._forward_pre_hooks.values():
        end.register_forward_pre_hook(_gather_after_attention)
    was_training = objective.model.training
    objective.model.eval()
    try:
        late = _logits_of_two_blocks(objective)
        objective.last_layer = ends[-1].removesuffix(f".{_ATTENTION_END}")
        early = _logits_of_two_blocks(objective)
        # In units of the logits' spread; rounding makes less than 1e-5, or a few roundings of half precision in what
        # comes after the gathering. "not <" takes NaN for a difference.
        bound = max(1e-4, 16 * _rounding(late.device.type))
        differ = not (early - late).abs().max() < bound * late.std()
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError):
        differ = True
    finally:
        objective.model.train(was_training)
    if differ:
        objective.last_layer = None
        logger.warning(
            "masked_last_layer: model_type %r needs its last layer at all positions", objective.model.config.model_type
        )
    return not differ


@torch.no_grad()
def _logits_of_two_blocks(objective: MaskedLMObjective) -> Tensor:
    """``[M, V]`` at some positions of two random blocks, one of them padded."""
    device = next(objective.parameters()).device
    vocab_size = objective.model.get_input_embeddings().num_embeddings
    input_ids = torch.randint(vocab_size, (2, 8), generator=torch.Generator().manual_seed(0)).to(device)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 5:] = 0
    positions = torch.tensor([0, 3, 4, 7, 8, 10, 12], device=device)
    return objective.masked_logits(input_ids, positions, attention_mask).float()


def freeze_unused(objective: MaskedLMObjective) -> list[str]:
    """Freeze the parameters that the loss does not reach (some families keep a pooler) and return their names.

    DDP would wait for their gradients for ever. One forward and backward of two tokens finds them.

    Raises:
        ValueError: The model does not compute at this precision, or with this attention.
    """
    device = next(objective.parameters()).device
    input_ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    position = torch.zeros(1, dtype=torch.long, device=device)
    try:
        objective(input_ids, position, position).backward()
    except RuntimeError as error:
        raise ValueError(
            f"model_type {objective.model.config.model_type!r} does not compute with attn_implementation="
            f"{objective.model.config._attn_implementation} at this mixed_precision: {' '.join(str(error).split())}; "
            "change one of them"
        ) from error
    unused = [name for name, parameter in objective.named_parameters() if parameter.grad is None]
    objective.zero_grad(set_to_none=True)
    for name in unused:
        objective.get_parameter(name).requires_grad_(False)
    return unused
