"""Load a masked language model or build one, and check that it fits the tokenizer and the blocks."""

import difflib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from train_loop.config import ModelConfig

logger = logging.getLogger(__name__)

# Where transformers' defaults are not those of the paper's own models; in half precision BERT's 1e-12 is zero.
_PUBLISHED = {"roberta": {"layer_norm_eps": 1e-5}}


def open_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,  # one more than the tokenizer's largest id
    block_size: int,
    seed: int,  # of the initialisation
    auto_class: Any = AutoModelForMaskedLM,  # see `Objective`; as for `load_model`
) -> PreTrainedModel:
    """Load or build the model of the settings, in fp32, and check it against the tokenizer and the blocks.

    Raises ValueError if the model cannot be loaded or built, or does not fit.
    """
    torch.manual_seed(seed)
    if config.model_name_or_path is not None:
        name, revision = config.model_name_or_path, config.model_revision
        model = load_model(name, revision, config.attn_implementation, auto_class=auto_class)
    else:
        model = _from_scratch(config, tokenizer, vocab_size, auto_class)
    check_fit(model, config, vocab_size=vocab_size, block_size=block_size)
    if config.gradient_checkpointing:
        # The name since transformers 5.23, and the one before.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        try:
            enable()
        except ValueError as error:
            raise ValueError(f"gradient_checkpointing: {_short(error)}") from error
    return model


def load_model(
    name: str,
    revision: str | None = None,
    attn_implementation: str | None = None,
    *,
    auto_class: Any = AutoModelForMaskedLM,
    needs_all_weights: bool = False,
) -> PreTrainedModel:
    """Load a model from safetensors, in fp32. Weights that were not saved, such as a head's, start at random.

    Raises ValueError if the model does not exist, or is not a masked language model; with ``needs_all_weights`` also if
    it was saved without some of its weights.
    """
    try:
        model, info = auto_class.from_pretrained(
            name,
            revision=revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            attn_implementation=attn_implementation,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"model {name!r} cannot be loaded for masked language modeling: {_short(error)}") from error
    if missing := sorted(info["missing_keys"]):
        if needs_all_weights:
            raise ValueError(
                f"model {name!r} has no trained masked-language-modeling head (no weights for {', '.join(missing)}): "
                "train it first, or name a model that was saved with its head"
            )
        logger.warning("model %r has no weights for %s: they start at random", name, ", ".join(missing))
    # Copy out of the file's memory map. There a matrix may not begin at a multiple of 64 bytes, products of one row
    # then round differently, and a resumed run would differ from an uninterrupted one.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _from_scratch(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int, auto_class: Any
) -> PreTrainedModel:
    name = str(config.model_type)
    if name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        hint = _nearest(name, MODEL_FOR_MASKED_LM_MAPPING_NAMES) or "; for example: bert, roberta, modernbert"
        raise ValueError(f"model_type={name!r} is no masked language model of transformers{hint}")
    try:
        known = AutoConfig.for_model(name)
        names = {*known.to_dict(), *known.attribute_map}  # transformers accepts any
        for key in config.model_config:
            if key not in names:
                raise ValueError(f"there is no {key!r} in its configuration{_nearest(key, names)}")
        keys = [f"{kind}_token_id" for kind in ("pad", "bos", "eos", "cls", "sep")]
        ids = {key: getattr(tokenizer, key) for key in keys if hasattr(known, key)}
        values = {"vocab_size": vocab_size, **ids, **_PUBLISHED.get(name, {}), **config.model_config}
        model_config = AutoConfig.for_model(name, **values)
        return auto_class.from_config(model_config, attn_implementation=config.attn_implementation)
    except (TypeError, ValueError, ArithmeticError, ImportError) as error:
        raise ValueError(f"model_type={name!r} with model_config={config.model_config}: {_short(error)}") from error


def _nearest(name: str, names: Iterable[str]) -> str:
    return "".join(f"; did you mean {near!r}?" for near in difflib.get_close_matches(name, list(names), n=1))


def check_fit(model: PreTrainedModel, config: ModelConfig, *, vocab_size: int, block_size: int) -> None:
    """Raise ValueError if the tokenizer's ids or the blocks' positions go beyond the model; resize if asked to."""
    num_embeddings = model.get_input_embeddings().num_embeddings
    if vocab_size > num_embeddings:
        if not config.resize_token_embeddings:
            raise ValueError(
                f"the tokenizer has {vocab_size} tokens and the model embeddings for {num_embeddings}: "
                "use the model's own tokenizer, or --resize_token_embeddings"
            )
        model.resize_token_embeddings(vocab_size)
    longest = max_positions(model)
    if block_size > longest:
        hint = f"use --block_size {longest} or less"
        if config.model_type is not None:
            needed = model.config.max_position_embeddings + block_size - longest
            hint += f", or --model_config max_position_embeddings={needed}"
        raise ValueError(f"block_size={block_size} is longer than the model's {longest} positions: {hint}")


@torch.no_grad()
def add_rows(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]], counts: Mapping[int, int], init: str) -> None:
    """Give new tokens, whose ids are the largest, rows in embeddings and output, and a bias, from their ``pieces``.

    A row is half the mean of all old rows, half that of the pieces', ``weighted`` by their order (3:2:1) or not
    (``mean``). A bias makes up for the new word's frequency against theirs, by ``counts``. ``random`` is transformers'.
    """
    old, size = min(pieces), max(pieces) + 1
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size)
    head, logs = model.get_output_embeddings(), torch.tensor([math.log(counts.get(i) or 1) for i in range(size)])
    for table in (model.get_input_embeddings().weight, *head.parameters()):
        shift = logs if table.ndim == 1 else torch.zeros(size, 1)
        rows = table[:size] - shift
        centre = rows[:old].mean(0)
        for token, of in pieces.items() if init != "random" else ():
            weights = torch.arange(len(of), 0, -1.0) if init == "weighted" else torch.ones(len(of))
            table[token] = (centre + weights @ rows[list(of)] / weights.sum()) / 2 + shift[token]


def max_positions(model: PreTrainedModel) -> int:
    """The longest block that the model has positions for."""
    if (embeddings := _position_embeddings(model)) is not None:
        return embeddings.num_embeddings - first_position(model)
    return getattr(model.config, "max_position_embeddings", None) or 2**31  # relative positions have no end


def first_position(model: PreTrainedModel) -> int:
    """The position id of a text's first token: 0, or ``padding_idx + 1`` of RoBERTa's kin (514 embeddings for 512)."""
    embeddings = _position_embeddings(model)
    return 0 if embeddings is None or embeddings.padding_idx is None else embeddings.padding_idx + 1


def _position_embeddings(model: PreTrainedModel) -> nn.Embedding | None:
    named = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return next((module for module in named if isinstance(module, nn.Embedding)), None)


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of the model's encoder: its longest list of modules; empty if there is none."""
    lists = (module for module in cast(nn.Module, model.base_model).modules() if isinstance(module, nn.ModuleList))
    return max(lists, key=len, default=nn.ModuleList())


def _short(error: Exception) -> str:
    """The beginning of a message, on one line: transformers appends lists of all models."""
    return " ".join(str(error).split())[:300]
