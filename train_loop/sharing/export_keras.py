"""Exports a RoBERTa to Keras: a KerasHub preset with the masked-language-modeling head and the tokenizer."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from train_loop.checkpoint import whole_or_nothing
from train_loop.inference.predictor import load_with_tokenizer
from train_loop.model import max_positions
from train_loop.objectives.checks import random_texts
from train_loop.sharing.export_onnx import Comparison, check_packages

# KerasHub's RoBERTa has no setting for these. The configurations of RoBERTa and DistilRoBERTa have the same values.
_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "tie_word_embeddings": True}


def export_keras(name: str, output: Path) -> Comparison:
    """Write a folder that KerasHub opens; else as `train_loop.sharing.export_onnx.export_onnx`.

    ``keras_hub.models.MaskedLM.from_preset(output)`` has the weights, the head and the preprocessor, on any backend of
    Keras. KerasHub's tokenizer differs from RoBERTa's in three points: its ``<mask>`` does not include the space before
    it (write ``is a<mask> galaxy``), an empty line before text is one token, and spaces at the end of a text get other
    tokens. Raises ValueError also if KerasHub cannot hold the model or the tokenizer.
    """
    check_packages("Keras", "keras_hub")
    model, tokenizer = load_with_tokenizer(name)
    _check_model(model)
    vocabulary = _vocabulary(tokenizer)
    with whole_or_nothing(output) as folder:
        _masked_lm(model, vocabulary).save_to_preset(str(folder))
        compared = _compare(model, folder)
        compared.check("KerasHub", name)
    return compared


def _check_model(model: PreTrainedModel) -> None:
    """Raise ValueError if KerasHub's RoBERTa would compute other logits."""
    config = model.config
    if config.model_type != "roberta":
        raise ValueError(f"model_type={config.model_type!r} has no Keras export: it takes roberta, as DistilRoBERTa is")
    for name, value in _FIXED.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}={getattr(config, name)} has no Keras export: KerasHub's RoBERTa is fixed to {value}; "
                f"train with --model_config {name}={value}"
            )


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The arguments of KerasHub's tokenizer. Raises ValueError if the tokenizer is not of RoBERTa's kind."""
    backend: Any = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {"type": None}}
    splitting = backend.get("pre_tokenizer") or {"type": None}
    kind = (backend["model"]["type"], splitting["type"], backend.get("normalizer"))
    special = (tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token, tokenizer.pad_token)
    of_roberta = ("BPE", "ByteLevel", None), ("<s>", "</s>", "<mask>", "<pad>"), 1
    if (kind, special, tokenizer.pad_token_id) != of_roberta:
        raise ValueError(
            "the tokenizer has no Keras export: it takes RoBERTa's kind, byte-level BPE with <s>, </s>, <mask>, "
            "and <pad> as token 1"
        )
    return {
        "vocabulary": dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])),
        "merges": [" ".join(pair) for pair in backend["model"]["merges"]],
        "add_prefix_space": splitting["add_prefix_space"],
        "unsplittable_tokens": [token["content"] for token in backend["added_tokens"]],
    }


def _masked_lm(model: PreTrainedModel, vocabulary: dict[str, Any]) -> Any:
    """The model in KerasHub, with its preprocessor."""
    from keras_hub import models

    # Outside of tf.data, KerasHub 0.32 does not split a text into words before it merges, and runs of spaces get other
    # tokens than RoBERTa's. False makes it work as in tf.data; a preset stores it only if the config names it.
    as_in_tf_data = {"_allow_python_workflow": False}
    tokenizer = models.RobertaTokenizer(**vocabulary, **as_in_tf_data)
    config = {**tokenizer.get_config(), **as_in_tf_data}
    tokenizer.get_config = lambda: config
    preprocessor = models.RobertaMaskedLMPreprocessor(tokenizer, sequence_length=max_positions(model))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        masked_lm = models.RobertaMaskedLM.from_preset(folder, preprocessor=preprocessor)  # its head is still random
    weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    # KerasHub has no token types: without token_type_ids, the first is added at every position.
    positions = masked_lm.backbone.embeddings.position_embedding.position_embeddings
    positions.assign_add(weights["roberta.embeddings.token_type_embeddings.weight"][:1])
    head = {
        "intermediate_dense/kernel": weights["lm_head.dense.weight"].T,
        "intermediate_dense/bias": weights["lm_head.dense.bias"],
        "intermediate_layer_norm/gamma": weights["lm_head.layer_norm.weight"],
        "intermediate_layer_norm/beta": weights["lm_head.layer_norm.bias"],
        "output_bias": weights["lm_head.decoder.bias"],
    }
    variables = {variable.path.partition("mlm_head/")[2]: variable for variable in masked_lm.masked_lm_head.weights}
    for path, array in head.items():
        variables[path].assign(array)
    return masked_lm


@torch.no_grad()
def _compare(model: PreTrainedModel, folder: Path) -> Comparison:
    """Load the preset, and compare its logits with the model's at all positions."""
    import keras
    import keras_hub

    length = max_positions(model)
    lengths = (length, (length + 1) // 2)
    input_ids, attention_mask = random_texts(model, lengths)
    is_token = attention_mask.bool().numpy()
    expected = model(input_ids=input_ids, attention_mask=attention_mask).logits.numpy()
    positions = np.tile(np.arange(length), (2, 1))
    inputs = {"token_ids": input_ids.numpy(), "padding_mask": is_token, "mask_positions": positions}
    logits = keras.ops.convert_to_numpy(keras_hub.models.MaskedLM.from_preset(str(folder))(inputs))
    return Comparison(float(np.abs(logits - expected)[is_token].max()), float(expected.std()), lengths)
