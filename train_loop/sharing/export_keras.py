"""A RoBERTa for Keras: a KerasHub preset with the masked-language-modeling head and the tokenizer."""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from train_loop.checkpoint import whole_or_nothing
from train_loop.model import load_model, max_positions
from train_loop.sharing.export_onnx import Comparison

# KerasHub's RoBERTa has no setting for these. RoBERTa's and DistilRoBERTa's own configurations agree with it.
_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "tie_word_embeddings": True}


def export_keras(name: str, output: Path) -> Comparison:
    """Write a folder that KerasHub opens; return how close its logits are to the model's.

    ``keras_hub.models.MaskedLM.from_preset(output)`` has the weights, the head and the
    preprocessor, on any backend of Keras. KerasHub's tokenizer has three habits of its
    own: it does not take the space before ``<mask>`` along (write ``is a<mask> galaxy``),
    an empty line before text is one token to it, and spaces at the end of a text are not.

    Args:
        name: A folder, or an id of the Hub.
        output: Written whole or not at all.

    Raises:
        ValueError: KerasHub is missing, there is no such model, or its RoBERTa cannot hold the model or the tokenizer.
        OSError: It could not be written.
    """
    if find_spec("keras_hub") is None:
        raise ValueError('the Keras export needs keras_hub: pip install "mlm-train-loop[keras]"')
    model = load_model(name, needs_all_weights=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    _check_model(model)
    vocabulary = _vocabulary(tokenizer)
    with whole_or_nothing(output) as folder:
        _masked_lm(model, vocabulary).save_to_preset(str(folder))
        compared = _compare(model, folder)
        if not compared.difference < 1e-4 * compared.spread:  # rounding makes 1e-6; "not <" takes NaN for a difference
            raise ValueError(f"KerasHub's logits differ by {compared.difference:.2g} from those of {name!r}")
    return compared


def _check_model(model: PreTrainedModel) -> None:
    """Raise ValueError if KerasHub's RoBERTa would compute something else."""
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
    """The arguments of KerasHub's tokenizer.

    Raises:
        ValueError: Ours is of another kind.
    """
    backend: Any = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {"type": None}}
    splitting = backend.get("pre_tokenizer") or {"type": None}
    kind = (backend["model"]["type"], splitting["type"], backend.get("normalizer"))
    special = (tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token, tokenizer.pad_token)
    if (
        kind != ("BPE", "ByteLevel", None)
        or special != ("<s>", "</s>", "<mask>", "<pad>")
        or tokenizer.pad_token_id != 1
    ):
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
    """The same model in KerasHub, with its preprocessor."""
    from keras_hub import models

    # Outside of tf.data, KerasHub 0.32 does not split a text into words before it merges: runs of spaces then get
    # other tokens than RoBERTa's. False lets it work as in tf.data; a preset holds it only if the config names it.
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
    """Of the preset, read back, over all positions."""
    import keras
    import keras_hub

    length = max_positions(model)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(2, model.config.vocab_size, (2, length), generator=generator)  # padding has no position
    input_ids[1, (length + 1) // 2 :] = model.config.pad_token_id
    is_token = input_ids != model.config.pad_token_id
    expected = model(input_ids=input_ids, attention_mask=is_token.long()).logits.numpy()
    inputs = {
        "token_ids": input_ids.numpy(),
        "padding_mask": is_token.numpy(),
        "mask_positions": np.tile(np.arange(length), (2, 1)),
    }
    logits = keras.ops.convert_to_numpy(keras_hub.models.MaskedLM.from_preset(str(folder))(inputs))
    difference = float(np.abs(logits - expected)[is_token.numpy()].max())
    return Comparison(difference, float(expected.std()), tuple(is_token.sum(1).tolist()))
