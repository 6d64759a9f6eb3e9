"""`MaskedLMLoss`: what `Trainer` is given, beside the stock head."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from data import MaskedLMCollator
from tests.conftest import sentences
from tests.models import FAMILIES, tiny_model, without_dropout
from train_loop import MaskedLMLoss


def _batch(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    collator = MaskedLMCollator(tokenizer, seed=0, gives_positions=True)
    return dict(collator([tokenizer(text, return_token_type_ids=False) for text in sentences(4, 9)]))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_loss_and_gradients_are_those_of_the_whole_head(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    batch = _batch(tokenizer)
    labels, positions = batch.pop("labels"), batch.pop("masked_positions")
    assert positions.tolist() == torch.nonzero(labels.flatten() != -100).flatten().tolist()
    stock, mended = (without_dropout(tiny_model(family)) for _ in range(2))
    expected = F.cross_entropy(stock(**batch).logits.flatten(0, 1), labels.flatten(), reduction="sum") / 50
    loss = MaskedLMLoss(mended)
    outputs = mended(**batch, masked_positions=positions)
    assert outputs.logits.shape == (len(positions), 300)
    for found in (loss(outputs, labels, 50), loss(mended(**batch), labels, torch.tensor(50))):
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    loss(outputs, labels, 50).backward()
    for (name, a), b in zip(stock.named_parameters(), mended.parameters(), strict=True):
        if a.grad is not None:
            assert b.grad is not None, name
            assert (a.grad - b.grad).norm() <= 1e-5 * a.grad.norm() + 1e-9, name


def test_without_a_number_it_is_the_mean_of_the_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = _batch(tokenizer)
    labels, positions = batch.pop("labels"), batch.pop("masked_positions")
    model = tiny_model("bert").eval()
    loss = MaskedLMLoss(model)
    mean = F.cross_entropy(model(**batch).logits.flatten(0, 1), labels.flatten())
    found = loss(model(**batch, masked_positions=positions), labels)
    assert found.item() == pytest.approx(mean.item(), rel=1e-5)
