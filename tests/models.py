"""Tiny models of many families, for parity tests."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

_COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "roberta": {**_COMMON, "max_position_embeddings": 66},
    "bert": _COMMON,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "modernbert": {**_COMMON, "local_attention": 8},
    "xlm-roberta": {**_COMMON, "max_position_embeddings": 66},
    "camembert": {**_COMMON, "max_position_embeddings": 66},
    "electra": {**_COMMON, "embedding_size": 24},
    "albert": {**_COMMON, "embedding_size": 24},
    "deberta": _COMMON,
    "deberta-v2": _COMMON,
    "mpnet": {**_COMMON, "max_position_embeddings": 66},
    "eurobert": {**_COMMON, "num_key_value_heads": 4},
    "convbert": {**_COMMON, "embedding_size": 24},
    "squeezebert": {**_COMMON, "embedding_size": 32},
    "rembert": {**_COMMON, "input_embedding_size": 24, "output_embedding_size": 24},
    "megatron-bert": _COMMON,
    "fnet": {**_COMMON, "max_position_embeddings": 64},
    "mobilebert": {**_COMMON, "embedding_size": 16, "intra_bottleneck_size": 16},
}


def tiny_model(family: str, vocab_size: int = 300, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model of a few thousand parameters, with random weights, in training mode, dropout as the family has it."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, vocab_size=vocab_size, **{**FAMILIES.get(family, _COMMON), **overrides})
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if getattr(config, name, None) is not None:
            setattr(config, name, 1 if name == "pad_token_id" else 2)
    return AutoModelForMaskedLM.from_config(config).train()


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with every dropout at 0, still in training mode."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "dropout_prob", "drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def sharpened(model: PreTrainedModel, factor: float = 4.0) -> PreTrainedModel:
    """The same model with larger weights: what stands around a token then changes its probability visibly."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model
