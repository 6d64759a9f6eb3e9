"""`MaskedLMLoss`: what `Trainer` is given, beside the stock head."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase, Trainer, TrainingArguments

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


def test_other_inputs_of_the_model_still_count(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = _batch(tokenizer)
    labels, positions = batch.pop("labels"), batch.pop("masked_positions")
    batch["token_type_ids"] = (torch.arange(batch["input_ids"].shape[1]) > 4).long().expand_as(batch["input_ids"])
    model = without_dropout(tiny_model("bert"))
    expected = model(**batch).logits.flatten(0, 1)[positions]
    MaskedLMLoss(model)
    assert torch.allclose(model(**batch, masked_positions=positions).logits, expected, atol=1e-5)
    assert not torch.allclose(
        model(**{**batch, "token_type_ids": None}).logits.flatten(0, 1)[positions], expected, atol=1e-3
    )
    at = torch.arange(batch["input_ids"].shape[1]).flip(0)[None]  # a caller's own: the whole forward is computed
    assert model(**batch, position_ids=at, masked_positions=positions).logits.shape == (*labels.shape, 300)


def test_without_a_number_it_is_the_mean_of_the_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = _batch(tokenizer)
    labels, positions = batch.pop("labels"), batch.pop("masked_positions")
    model = tiny_model("bert").eval()
    loss = MaskedLMLoss(model)
    mean = F.cross_entropy(model(**batch).logits.flatten(0, 1), labels.flatten())
    found = loss(model(**batch, masked_positions=positions), labels)
    assert found.item() == pytest.approx(mean.item(), rel=1e-5)


def test_trainer_takes_it_as_it_is(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """With its defaults, which drop the columns that the model's forward does not name."""
    rows = [{**tokenizer(text, return_token_type_ids=False), "title": text} for text in sentences(12, 9)]
    model = tiny_model("roberta")
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), **options)
    collator = MaskedLMCollator(tokenizer, seed=0, gives_positions=True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    seen: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    data = Dataset.from_list(rows)
    loop = Trainer(model, arguments, collator, data, compute_loss_func=MaskedLMLoss(model))
    loop.train()
    assert 0 < max(seen[-2:]) < 4 * 9  # of the 4 texts, the masked tokens alone
    assert any(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    loop.save_model(str(tmp_path / "saved"))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
