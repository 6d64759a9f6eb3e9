"""Masked diffusion: the loss bounds the likelihood, by its definition enumerated, and by any order of the tokens."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from data import Collator, vocabulary
from data.batches.masking import choose_diffusion
from data.batches.order import micro_batches, strata
from launch.run.loaders import mask_rates
from tests.distributed.test_invariance import DIFFUSION
from tests.models import sharpened, tiny_model
from train_loop import MaskedLMObjective


@pytest.fixture(scope="module")
def collator(tokenizer: PreTrainedTokenizerBase) -> Collator:
    return Collator(vocabulary(tokenizer), seed=3, choose=choose_diffusion, shares=(1.0, 0.0))


@pytest.fixture(scope="module")
def objective(tokenizer: PreTrainedTokenizerBase) -> MaskedLMObjective:
    model = tiny_model("bert", vocab_size=len(tokenizer))
    return MaskedLMObjective(sharpened(model, 4)).eval()


@pytest.fixture(scope="module")
def block(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Three tokens of text between two special ones."""
    row = tokenizer("the red cat")["input_ids"]
    return [row[0], *[token for token in row if token not in tokenizer.all_special_ids][:3], row[-1]]


@torch.no_grad()
def _loss(objective: MaskedLMObjective, block: list[int], masked: tuple[int, ...], mask: int, of: int) -> float:
    """-log p of the token at a position, the ``masked`` ones hidden, by the stock model."""
    row = torch.tensor([[mask if i in masked else token for i, token in enumerate(block)]])
    return -objective.model(row).logits[0, of].log_softmax(-1)[block[of]].item()


def test_the_bound_by_sampling_is_the_enumerated_one_and_that_of_all_orders(
    collator: Collator, objective: MaskedLMObjective, block: list[int], tokenizer: PreTrainedTokenizerBase
) -> None:
    """3 tokens: each number of masks with 1/3, each subset of it alike, weight 3 / number."""
    mask, n = int(tokenizer.mask_token_id), 3
    enumerated = 0.0
    for number in range(1, n + 1):
        subsets = list(itertools.combinations((1, 2, 3), number))
        sums = [sum(_loss(objective, block, subset, mask, i) for i in subset) for subset in subsets]
        enumerated += sum(sums) / len(subsets) * (n / number) / n
    orders = list(itertools.permutations((1, 2, 3)))
    chains = [sum(_loss(objective, block, order[k:], mask, order[k]) for k in range(n)) for order in orders]
    assert enumerated == pytest.approx(sum(chains) / len(orders), rel=1e-5)

    num_draws = 6000
    blocks = np.tile(np.array(block, dtype=np.uint16), (num_draws, 1))
    passes = np.arange(num_draws)  # each with masks of its own
    batch = collator(blocks, np.zeros(num_draws, np.int64), passes, strata(num_draws, 7))
    assert batch.weights is not None
    assert int(objective.count(batch)[0]) == n * num_draws
    assert float(batch.weights.sum()) == pytest.approx(n * num_draws, rel=1e-5)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(objective._logits(batch), batch.labels, reduction="none")
        total = float(objective(batch))
    of_draws = torch.zeros(num_draws).index_add(0, batch.masked_positions // 5, losses * batch.weights).double()
    assert total == pytest.approx(float(of_draws.sum()), rel=1e-5)
    standard_error = float(of_draws.std()) / math.sqrt(num_draws)
    assert abs(total / num_draws - enumerated) < 4 * standard_error  # false alarm: 6e-5, and the seed is fixed
    assert standard_error < 0.02 * enumerated
    metrics = objective.eval_metrics(objective.eval_sums(batch).tolist())
    assert metrics.eval_loss == pytest.approx(total / (n * num_draws), rel=1e-5)
    assert metrics.eval_num_masked_tokens == batch.num_masked


def test_each_number_of_masks_is_equally_likely(collator: Collator, block: list[int]) -> None:
    """Stratified over the batch, so to the block; within a number, each token alike within 4 standard errors."""
    blocks = np.tile(np.array(block, dtype=np.uint16), (3000, 1))
    batch = collator(blocks, np.arange(3000), np.zeros(3000, np.int64), strata(3000, 1))
    counts = np.bincount((batch.masked_positions // 5).numpy(), minlength=3000)
    assert np.bincount(counts).tolist() == pytest.approx([0, 1000, 1000, 1000], abs=1)
    where = np.bincount((batch.masked_positions % 5).numpy(), minlength=5)
    assert where[[0, 4]].tolist() == [0, 0]
    assert np.abs(where[1:4] - 2000).max() < 4 * math.sqrt(3000 * 2 / 9)


def test_rates_are_stratified_over_the_global_batch_and_spread_in_the_warm_up() -> None:
    rates = mask_rates(replace(DIFFUSION, mlm_probability=0.3), 100, seed=0)
    assert np.allclose(rates(0, 8), 0.3)
    half = rates(10, 8)
    assert np.all((half > 0.15) & (half <= 0.65))
    for step in (20, 21, 99):
        assert sorted(np.ceil(rates(step, 8) * 8).astype(int)) == list(range(1, 9))
    assert not np.array_equal(rates(20, 8), rates(21, 8))
    shares = [micro_batches((rates(20, 8),), rank, 3, 2) for rank in range(3)]
    assert np.array_equal(np.concatenate([part for share in shares for (part,) in share]), rates(20, 8))
