"""Trials of what a model allows, on the device and at the precision of the run, and what such trials need."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.batch import DocumentBorders
from train_loop.model import encoder_layers
from train_loop.objectives.document_attention import NAME
from train_loop.objectives.masked_logits import LastLayer, MaskedLogits

_num_users: Counter[nn.Module] = Counter()  # threads that use a module which was in training mode
_mode_lock = threading.Lock()


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; its last user puts it back into training mode if it was in it."""
    with _mode_lock:
        was_training = module.training or _num_users[module] > 0
        if was_training:
            _num_users[module] += 1
            module.eval()
    try:
        yield
    finally:
        if was_training:
            with _mode_lock:
                _num_users[module] -= 1
                if not _num_users[module]:
                    del _num_users[module]
                    module.train()


def random_texts(model: PreTrainedModel, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``[B, L]`` random tokens and their attention mask, on the CPU; the first length must be the longest."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.get_input_embeddings().num_embeddings
    input_ids = torch.randint(1, vocab_size, (len(lengths), lengths[0]), generator=generator)
    # Never the padding token, which has no position of its own in RoBERTa and similar models.
    input_ids = (input_ids + (getattr(model.config, "pad_token_id", None) or 0)) % vocab_size
    return input_ids, (torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]).long()


def check_document_attention(logits: MaskedLogits, block_size: int) -> None:
    """Raise ValueError if two documents in one block do not get the logits that each gets alone.

    A model may convolve across the border, mix the whole block, or ignore the mask. Call it once, before the model is
    prepared. It costs the forward of a few blocks and draws no dropout.
    """
    with without_dropout(logits.model):
        problem = _leak(logits, block_size, is_flat=False)
    if problem is not None:
        raise ValueError(
            f"document_attention: model_type {logits.model.config.model_type!r} {problem}: "
            "use --document_attention false, or a model such as roberta, bert, modernbert"
        )


def attends_by_document(logits: MaskedLogits, block_size: int) -> bool:
    """Let a model attend within the documents of a row, see `attend`, if each then gets the logits it gets alone.

    A model with other attention than sdpa does not, and one that hands it over to no function. Call it once, as
    `check_document_attention`, which tries the same with a mask.
    """
    model = logits.model
    if model.config._attn_implementation not in ("sdpa", NAME):
        return False
    model.set_attn_implementation(NAME)
    with without_dropout(model):
        problem = _leak(logits, block_size, is_flat=True)
    if problem is not None:
        model.set_attn_implementation("sdpa")
    return problem is None


@torch.no_grad()
def _leak(logits: MaskedLogits, block_size: int, *, is_flat: bool) -> str | None:
    """How the model mixes two documents of one block, at the first and last token of each; None if it does not."""
    device = logits.model.device
    block_size = min(block_size, 512)  # beyond all windows
    tokens = random_texts(logits.model, [block_size])[0].to(device)
    # The short one feels a leak most; the long one goes past a local window and is not where its positions are.
    short = min(4, block_size // 2)
    lengths = [short, block_size - short]
    ends = [torch.tensor([0, n - 1], device=device) for n in lengths]
    apart = [logits(*one) for one in zip(torch.split(tokens, lengths, dim=1), ends, strict=True)]
    documents, position_ids = DocumentBorders.of(lengths, device)
    both_ends = torch.cat([ends[0], ends[1] + short])
    is_second = torch.arange(block_size, device=device) >= short
    try:
        # The block, then with another second document, then with another first one.
        packed, first, second = (
            logits(block, both_ends, None, position_ids, documents if is_flat else None).float()
            for block in (tokens, *(torch.where(other, tokens.flip(1), tokens) for other in (is_second, ~is_second)))
        )
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return "takes no mask of documents"
    # Bounds are in units of the logits' standard deviation. Another document changes nothing at any precision, since
    # the same products are computed; the smallest leak seen, in a test's tiny untrained model, is more than 6e-3.
    # A document alone rounds differently: by less than 1e-5, or by 21 roundings of half precision in 12 layers with
    # large weights. "not <" treats NaN as a leak.
    expected = torch.cat(apart).float()
    changed = torch.cat([first[:2], second[2:]]) - packed
    if not changed.abs().max() < 1e-3 * expected.std():
        return "mixes the documents of a block"
    if not (packed - expected).abs().max() < max(1e-3, 64 * _rounding(device.type)) * expected.std():
        return "mixes the documents of a block"
    return None


def _rounding(device_type: str) -> float:
    """The relative rounding of a matrix product's factors at the current precision: 2^-24 in fp32, 2^-8 in bf16."""
    if torch.is_autocast_enabled(device_type):
        return torch.finfo(torch.get_autocast_dtype(device_type)).eps / 2
    is_tf32 = device_type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-11 if is_tf32 else 2.0**-24


def gather_in_last_layer(logits: MaskedLogits) -> bool:
    """Gather in the last layer, in its attention, if that changes no logit. Return whether it does.

    From the end of the attention on no position reads another, in most families. Trials find out which module reads
    the layer's input, which linear map ends the attention, and whether that holds. Call it once, before the model is
    prepared. It costs about three forwards of two small blocks and draws no dropout.
    """
    with without_dropout(logits.model):
        late, candidates = _candidates(logits)
        for last_layer in candidates:
            logits.gather_in(last_layer)
            # In units of the logits' standard deviation: rounding is below 1e-5, or a few roundings of half precision
            # in the operations after the gathering. "not <" treats NaN as a difference.
            bound = max(1e-4, 16 * _rounding(late.device.type)) * late.std()
            with contextlib.suppress(AssertionError, IndexError, RuntimeError, TypeError, ValueError):
                if (_logits_of_two_blocks(logits) - late).abs().max() < bound:
                    return True
    logits.gather_in(None)
    return False


def _candidates(logits: MaskedLogits) -> tuple[Tensor, list[LastLayer]]:
    """The logits, and where the last layer may be gathered in: its modules by what they read, as they are called."""
    called: list[tuple[nn.Module, Any]] = []
    modules = [module for layer in encoder_layers(logits.model)[-1:] for module in layer.modules()]
    hooks = [module.register_forward_pre_hook(lambda *call: called.append(call)) for module in modules]
    late = _logits_of_two_blocks(logits)
    for hook in hooks:
        hook.remove()
    if not called:
        return late, []
    (layer, given), *inner = called
    first = [module for module, args in inner if args and args[0] is given[0] and not isinstance(module, nn.Linear)]
    linear = [(module, args[0]) for module, args in inner if isinstance(module, nn.Linear)]
    num_readers = Counter(id(read) for _, read in linear)  # queries, keys and values are made of one tensor
    ends = [module for module, read in linear if num_readers[id(read)] == 1]
    return late, [LastLayer(layer, one, end) for end in ends for one in first]


@torch.no_grad()
def _logits_of_two_blocks(logits: MaskedLogits) -> Tensor:
    """``[M, V]`` at some positions of two random blocks, one of them padded."""
    device = logits.model.device
    input_ids, attention_mask = (tensor.to(device) for tensor in random_texts(logits.model, (8, 5)))
    positions = torch.tensor([0, 3, 4, 7, 8, 10, 12], device=device)
    return logits(input_ids, positions, attention_mask).float()
