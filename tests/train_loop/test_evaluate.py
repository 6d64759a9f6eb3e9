"""P4: perplexity is token-weighted, on fixed masks."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from data import DataConfig, Documents, MicroBatches
from tests.batches import all_batches, micro_batches_of
from tests.models import tiny_model
from train_loop import MaskedLMObjective, unigram_perplexity
from train_loop.evaluate import evaluate
from train_loop.objectives.masked_lm import perplexity

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(
    documents: tuple[Documents, Documents], tokenizer: PreTrainedTokenizerBase, data_config: DataConfig
) -> MicroBatches:
    config = dataclasses.replace(data_config, last_block="pad", block_size=24)
    return micro_batches_of(documents[1], tokenizer, config, seed=0)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_it_is_the_mean_over_all_masked_tokens_whatever_the_batch_size(dataset: MicroBatches, batch_size: int) -> None:
    """Against full logits of one block at a time, summed in double precision."""
    model = tiny_model("roberta")
    losses, correct = [], []
    model.eval()
    with torch.no_grad():
        for batch in all_batches(dataset, 1):
            logits = model(batch.input_ids, batch.attention_mask).logits.flatten(0, 1)[batch.masked_positions]
            losses.append(F.cross_entropy(logits, batch.labels, reduction="none").double())
            correct.append(logits.argmax(-1) == batch.labels)
    model.train()
    metrics = evaluate(Accelerator(), MaskedLMObjective(model), all_batches(dataset, batch_size))
    expected = float(torch.cat(losses).mean())
    assert metrics.eval_loss == pytest.approx(expected, rel=1e-6)
    assert metrics.eval_perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    assert metrics.eval_accuracy == pytest.approx(float(torch.cat(correct).double().mean()), abs=1e-9)
    assert metrics.eval_num_masked_tokens == sum(map(len, losses))
    assert model.training


def test_two_evaluations_of_one_model_are_equal(dataset: MicroBatches) -> None:
    objective = MaskedLMObjective(tiny_model("bert"))
    one, two = (evaluate(Accelerator(), objective, all_batches(dataset, 16)) for _ in range(2))
    assert one == two


def test_the_unigram_perplexity_worked_by_hand(dataset: MicroBatches) -> None:
    """Weights 3, 1, 0 over 4: labels 0, 0, 1 have losses -ln 3/4, -ln 3/4, -ln 1/4; exp of their mean."""
    batch = next(iter(all_batches(dataset, 1)))
    batch = dataclasses.replace(batch, labels=torch.tensor([0, 0, 1]))
    value = unigram_perplexity(Accelerator(), torch.tensor([3, 1, 0]), [batch])
    assert value == pytest.approx((4 / 3 * 4 / 3 * 4) ** (1 / 3), rel=1e-6)


def test_a_hopeless_loss_has_infinite_perplexity() -> None:
    assert perplexity(1000.0) == math.inf
