"""Masks: the statistics of BERT's 80/10/10, and P2's invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from data.masking import Vocabulary, choose_tokens, replacements, uniform
from data.tokenization import vocabulary

V = 1000
SPECIAL = [0, 1, 2, 3, 4]
MASK = 4


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    is_special = np.zeros(V, dtype=bool)
    is_special[SPECIAL] = True
    return Vocabulary(mask_token_id=MASK, is_special=is_special)


def test_draws_are_uniform_and_independent() -> None:
    """1,280,000 draws in 20 bins, chi-square within 6 standard deviations; correlation with the next
    position and the next block within 5 / sqrt(n)."""
    draws = uniform(np.arange(10_000), 128, seed=3, epoch=1)
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    expected = draws.size / 20
    assert abs(((counts - expected) ** 2 / expected).sum() - 19) < 6 * np.sqrt(2 * 19)
    bound = 5 / np.sqrt(draws.size)
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < bound
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < bound


@pytest.mark.parametrize(
    ("p", "mask", "random"), [(0.15, 0.8, 0.1), (0.3, 0.8, 0.1), (0.4, 0.5, 0.5), (0.15, 1.0, 0.0)]
)
def test_rates_are_those_asked_for(vocab: Vocabulary, p: float, mask: float, random: float) -> None:
    """Each observed rate within 5 binomial standard deviations."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (5000, 128))
    draws = uniform(np.arange(5000), 128, seed=0, epoch=0)
    positions = choose_tokens(ids, draws, vocab, p)
    labels = ids.ravel()[positions]
    out = replacements(labels, draws.ravel()[positions] / p, vocab, mask, random)

    def close(count: int, n: int, rate: float) -> bool:
        return abs(count - n * rate) <= 5 * np.sqrt(n * rate * (1 - rate)) + 1e-9

    num_regular = int((~vocab.is_special[ids]).sum())
    num_chosen = len(positions)
    assert close(num_chosen, num_regular, p)
    assert close(int((out == MASK).sum()), num_chosen, mask)
    # A random token is the label itself once in V - specials draws.
    changed = int(((out != MASK) & (out != labels)).sum())
    assert close(changed, num_chosen, random * (1 - 1 / (V - len(SPECIAL))))


def test_special_tokens_are_never_chosen_and_never_drawn(vocab: Vocabulary) -> None:
    ids = np.tile(np.arange(V), (200, 1))
    draws = uniform(np.arange(200), V, seed=0, epoch=0)
    positions = choose_tokens(ids, draws, vocab, 0.5)
    labels = ids.ravel()[positions]
    assert not vocab.is_special[labels].any()
    drawn = replacements(labels, draws.ravel()[positions] / 0.5, vocab, 0.0, 1.0)
    assert not vocab.is_special[drawn].any()
    counts = np.bincount(drawn, minlength=V)[~vocab.is_special]
    expected = len(drawn) / len(counts)
    degrees = len(counts) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - degrees) < 6 * np.sqrt(2 * degrees)


def test_the_meaning_is_that_of_the_reference_collator(tokenizer: PreTrainedTokenizerBase) -> None:
    """Rates of chosen, mask, changed and kept against DataCollatorForLanguageModeling on the same blocks, within
    5 standard deviations of their difference."""
    rng = np.random.default_rng(0)
    vocab = vocabulary(tokenizer)
    ids = rng.choice(vocab.regular_ids, (2000, 64))
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id

    def rates(inputs: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
        masked = inputs == tokenizer.mask_token_id
        return {
            "chosen": chosen.mean(),
            "mask": (masked & chosen).mean(),
            "changed": (~masked & chosen & (inputs != ids)).mean(),
            "kept": (chosen & (inputs == ids)).mean(),
        }

    torch.manual_seed(0)
    reference = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)([{"input_ids": row} for row in ids])
    theirs = rates(reference["input_ids"].numpy(), reference["labels"].numpy() != -100)

    draws = uniform(np.arange(len(ids)), 64, seed=0, epoch=0)
    positions = choose_tokens(ids, draws, vocab, 0.15)
    inputs, chosen = ids.copy(), np.zeros(ids.size, dtype=bool)
    inputs.ravel()[positions] = replacements(ids.ravel()[positions], draws.ravel()[positions] / 0.15, vocab, 0.8, 0.1)
    chosen[positions] = True
    ours = rates(inputs, chosen.reshape(ids.shape))
    for name, rate in theirs.items():
        assert abs(ours[name] - rate) < 5 * np.sqrt(2 * rate * (1 - rate) / ids.size), name


@given(
    block_ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 1000),
)
def test_a_blocks_draws_do_not_depend_on_its_batch(block_ids: list[int], seed: int, epoch: int) -> None:
    together = uniform(np.array(block_ids), 32, seed, epoch)
    for row, block_id in zip(together, block_ids, strict=True):
        assert np.array_equal(row, uniform(np.array([block_id]), 32, seed, epoch)[0])
        assert np.array_equal(row[:7], uniform(np.array([block_id]), 7, seed, epoch)[0])


def test_seed_epoch_and_block_each_change_the_draws() -> None:
    base = uniform(np.array([5]), 32, seed=0, epoch=0)
    others = [uniform(np.array([b]), 32, s, e) for b, s, e in [(6, 0, 0), (5, 1, 0), (5, 0, 1)]]
    assert all(not np.any(base == other) for other in others)
