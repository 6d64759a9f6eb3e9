"""`MaskedLMCollator` with ``return_tensors="np"`` feeds Keras; run by launch/test_keras.sh."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

keras_hub = pytest.importorskip("keras_hub")
import keras
import tensorflow as tf

from data import MaskedLMCollator
from tests.keras.conftest import MARKS, TEXTS, saved_roberta
from train_loop.sharing.export_keras import export_keras

pytestmark = MARKS


_ROWS = 16


def _keras_batch(batch: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """What KerasHub's masked language models take: inputs, labels, and a weight that is 0 where there is no label."""
    labels = batch["labels"]
    inputs = {
        "token_ids": batch["input_ids"],
        "padding_mask": batch["attention_mask"],
        "mask_positions": np.tile(np.arange(labels.shape[1]), (len(labels), 1)),
    }
    return inputs, np.maximum(labels, 0), (labels >= 0).astype("float32")


def test_the_collators_batches_feed_fit_and_the_loss_falls(
    tmp_path: Path, roberta_tokenizer: PreTrainedTokenizerBase
) -> None:
    model = saved_roberta(
        tmp_path / "model", roberta_tokenizer,
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=66,
    )  # fmt: skip
    export_keras(str(tmp_path / "model"), tmp_path / "preset")
    masked_lm = keras_hub.models.MaskedLM.from_preset(str(tmp_path / "preset"), preprocessor=None)
    collator = MaskedLMCollator(roberta_tokenizer, return_tensors="np", seed=0)
    encoded = roberta_tokenizer(TEXTS, truncation=True, max_length=64)
    features = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    held_out = collator(features[:_ROWS])
    inputs, labels, weights = _keras_batch(held_out)

    def batches() -> Iterator[Any]:
        while True:
            for start in range(_ROWS, len(features) - _ROWS, _ROWS):
                yield _keras_batch(collator(features[start : start + _ROWS]))

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None, None), array.dtype), (inputs, labels, weights)
    )
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)

    masked_lm.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        # The mean over the masked tokens: Keras' default divides by all positions.
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
        weighted_metrics=[],
    )
    before = masked_lm.test_on_batch(inputs, labels, weights)
    with torch.no_grad():
        ours = model(**{name: torch.tensor(array) for name, array in held_out.items()}).loss.item()
    assert float(before) == pytest.approx(ours, abs=1e-5)

    masked_lm.fit(dataset, steps_per_epoch=30, shuffle=False, verbose=0)
    after = masked_lm.test_on_batch(inputs, labels, weights)
    assert after < before - 1
