"""Masks: the statistics of each way to choose and of BERT's 80/10/10, and P2's invariances."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from data.batches.masking import (
    MASK_RATES,
    MASKINGS,
    Vocabulary,
    choose_token,
    fresh,
    needs_words,
    replacements,
    uniform,
)
from data.blocks.vocabulary import vocabulary

V = 1000
SPECIAL = [0, 1, 2, 3, 4]
MASK = 4
NO_IDS = np.zeros(0, dtype=np.int64)  # none of these ways looks at what the tokens are


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    is_special = np.zeros(V, dtype=bool)
    is_special[SPECIAL] = True
    return Vocabulary(mask_token_id=MASK, is_special=is_special)


def test_draws_are_uniform_and_independent() -> None:
    """1,280,000 draws in 20 bins, chi-square within 6 standard deviations; correlation with the next
    position and the next block within 5 / sqrt(n)."""
    draws = uniform(np.arange(10_000), 128, seed=3, passes=1)
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    expected = draws.size / 20
    assert abs(((counts - expected) ** 2 / expected).sum() - 19) < 6 * np.sqrt(2 * 19)
    bound = 5 / np.sqrt(draws.size)
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < bound
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < bound


def words_of(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``[B, L]``: words of 2.5 tokens on average; a special token is a word of its own."""
    special = np.isin(ids, SPECIAL)
    starts = special | (rng.random(ids.shape) < 0.4)
    starts[:, 1:] |= special[:, :-1]
    return starts


def word_numbers(starts: np.ndarray) -> np.ndarray:
    """``[B * L]``: a number for each word of each block."""
    first = starts.copy()
    first[:, 0] = True
    return first.ravel().cumsum()


@pytest.mark.parametrize("name", [name for name in MASKINGS if name != "diffusion"])  # which rounds up
@pytest.mark.parametrize(
    ("p", "mask", "random"), [(0.15, 0.8, 0.1), (0.3, 0.8, 0.1), (0.4, 0.5, 0.5), (0.15, 1.0, 0.0)]
)
def test_rates_are_those_asked_for(vocab: Vocabulary, name: str, p: float, mask: float, random: float) -> None:
    """The rate of chosen tokens within 5 standard errors, over independent blocks (fixed_count has its own test);
    80/10/10 within 5 binomial standard deviations of what is drawn together: tokens, words or spans."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (4000, 128))
    draws = uniform(np.arange(4000), 128, seed=0, passes=0)
    allowed = ~vocab.is_special[ids]
    positions, kinds = MASKINGS[name](NO_IDS, allowed, words_of(ids, rng), draws, p)
    assert positions.dtype == np.int64
    assert np.all(np.diff(positions) > 0)

    if name != "fixed_count":
        chosen = np.zeros(ids.size, dtype=bool)
        chosen[positions] = True
        excess = chosen.reshape(ids.shape).sum(1) - p * allowed.sum(1)
        assert abs(excess.mean()) < 5 * excess.std() / np.sqrt(len(ids))

    def close(count: int, n: int, rate: float) -> bool:
        return abs(count - n * rate) <= 5 * np.sqrt(n * rate * (1 - rate)) + 1e-9

    labels = ids.ravel()[positions]
    out = replacements(labels, kinds, draws.ravel()[positions], vocab, (mask, random))
    units, first = np.unique(kinds, return_index=True)
    assert len(units) == len(positions) or needs_words(MASKINGS[name])
    assert close(int((out == MASK)[first].sum()), len(units), mask)
    # A random token is the label itself once in V - specials draws.
    changed = int(((out != MASK) & (out != labels))[first].sum())
    assert close(changed, len(units), random * (1 - 1 / (V - len(SPECIAL))))
    counts, _ = np.histogram(units, bins=20, range=(0, 1))
    expected = len(units) / 20
    assert abs(((counts - expected) ** 2 / expected).sum() - 19) < 6 * np.sqrt(2 * 19)


@pytest.mark.parametrize("name", MASKINGS)
def test_special_tokens_are_never_chosen_and_never_drawn(vocab: Vocabulary, name: str) -> None:
    """And the random ones are uniform over the rest: chi-square within 6 standard deviations."""
    ids = np.tile(np.arange(V), (200, 1))
    draws = uniform(np.arange(200), V, seed=0, passes=0)
    starts = words_of(ids, np.random.default_rng(0))
    positions, kinds = MASKINGS[name](NO_IDS, ~vocab.is_special[ids], starts, draws, 0.5)
    labels = ids.ravel()[positions]
    assert not vocab.is_special[labels].any()
    drawn = replacements(labels, kinds, draws.ravel()[positions], vocab, (0.0, 1.0))
    assert not vocab.is_special[drawn].any()
    counts = np.bincount(drawn, minlength=V)[~vocab.is_special]
    expected = len(drawn) / len(counts)
    degrees = len(counts) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - degrees) < 6 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("name", MASKINGS)
@given(
    block_ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=6, unique=True),
    length=st.integers(1, 40),
    p=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
def test_a_blocks_masks_do_not_depend_on_its_batch(
    name: str, block_ids: list[int], length: int, p: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (len(block_ids), length)
    draws = uniform(np.array(block_ids), length, seed, 0)
    allowed, starts = rng.random(shape) < 0.9, rng.random(shape) < 0.5
    choose = MASKINGS[name]
    positions, kinds = choose(NO_IDS, allowed, starts, draws, p)
    assert allowed.ravel()[positions].all()
    for row in range(len(block_ids)):
        alone = slice(row, row + 1)
        here = positions // length == row
        row_positions, row_kinds = choose(NO_IDS, allowed[alone], starts[alone], draws[alone], p)
        assert np.array_equal(row_positions, positions[here] - row * length)
        assert np.array_equal(row_kinds, kinds[here])


@pytest.mark.parametrize("name", ["whole_word", "span"])
@given(p=st.floats(0.01, 0.99), seed=st.integers(0, 2**31))
def test_words_are_chosen_whole_or_not_at_all(vocab: Vocabulary, name: str, p: float, seed: int) -> None:
    """And all tokens of a word become the same kind of thing, each random one of its own."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, V, (4, 64))
    allowed = ~vocab.is_special[ids]
    starts = words_of(ids, rng)
    draws = uniform(np.arange(4), 64, seed, 0)
    positions, kinds = MASKINGS[name](NO_IDS, allowed, starts, draws, p)
    words = word_numbers(starts)
    in_chosen_words = np.isin(words, words[positions]) & allowed.ravel()
    assert np.array_equal(np.flatnonzero(in_chosen_words), positions)
    same_word = np.diff(words[positions]) == 0
    assert np.all((np.diff(kinds) == 0)[same_word])
    if name == "whole_word":
        assert np.all((np.diff(kinds) != 0)[~same_word])
    drawn = replacements(ids.ravel()[positions], kinds, draws.ravel()[positions], vocab, (0.0, 1.0))
    assert same_word.sum() < 20 or (np.diff(drawn) == 0)[same_word].mean() < 0.2


@pytest.mark.parametrize("p", [0.15, 0.5])
def test_spans_cover_every_position_at_the_same_rate(p: float) -> None:
    """Each of the 64 positions, the first and the last too, within 5 binomial standard deviations, whether a word
    is one token or several; neighbours are chosen together far more often than independent ones would be."""
    draws = uniform(np.arange(20_000), 64, seed=0, passes=0)
    allowed = np.ones(draws.shape, dtype=bool)
    for starts in (allowed, np.random.default_rng(0).random(draws.shape) < 0.4):
        positions, _ = MASKINGS["span"](NO_IDS, allowed, starts, draws, p)
        chosen = np.bincount(positions, minlength=draws.size).reshape(draws.shape)
        assert np.all(np.abs(chosen.mean(0) - p) < 5 * np.sqrt(p * (1 - p) / len(draws)))
        assert (chosen[:, 1:] & chosen[:, :-1]).mean() > 1.5 * p * p


def test_span_lengths_are_geometric() -> None:
    """P(k) = 0.2 * 0.8^(k - 1) / (1 - 0.8^10) words, k = 1..10: chi-square within 6 standard deviations, over the
    spans that no edge of the block can have cut."""
    length = 64
    draws = uniform(np.arange(20_000), length, seed=1, passes=0)
    allowed = np.ones(draws.shape, dtype=bool)
    positions, kinds = MASKINGS["span"](NO_IDS, allowed, allowed, draws, 0.15)
    _, first, lengths = np.unique(kinds, return_index=True, return_counts=True)
    begins = positions[first] % length
    counts = np.bincount(lengths[(begins > 0) & (begins < length - 10)], minlength=11)
    assert len(counts) == 11
    assert counts[0] == 0
    expected = counts.sum() * 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
    assert abs(((counts[1:] - expected) ** 2 / expected).sum() - 9) < 6 * np.sqrt(2 * 9)


@given(p=st.floats(0.001, 1.0), length=st.integers(1, 80), seed=st.integers(0, 1000))
def test_fixed_count_is_exact(p: float, length: int, seed: int) -> None:
    allowed = np.random.default_rng(seed).random((8, length)) < 0.7
    draws = uniform(np.arange(8), length, seed, 0)
    positions, _ = MASKINGS["fixed_count"](NO_IDS, allowed, None, draws, p)
    counts = np.bincount(positions // length, minlength=8)
    num_allowed = allowed.sum(1)
    assert counts.tolist() == [min(max(1, round(p * n)), n) for n in num_allowed.tolist()]
    for row in range(8):  # those of the smallest draws
        chosen = np.isin(np.arange(length), positions[positions // length == row] - row * length)
        rest = draws[row][allowed[row] & ~chosen]
        assert not chosen.any() or not rest.size or draws[row][chosen].max() < rest.min()


def test_token_masks_stay_as_they_were(vocab: Vocabulary) -> None:
    """A run that began before there were other ways to choose goes on with the same masks."""
    ids = np.arange(64 * 128).reshape(64, 128) * 7919 % V
    draws = uniform(np.arange(64), 128, seed=7, passes=3)
    positions, kinds = choose_token(NO_IDS, ~vocab.is_special[ids], None, draws, 0.15)
    out = replacements(ids.ravel()[positions], kinds, draws.ravel()[positions] / 0.15, vocab, (0.8, 0.1))
    digest = hashlib.sha256(positions.astype("<i8").tobytes() + out.astype("<i8").tobytes()).hexdigest()
    assert (len(positions), digest[:16]) == (1223, "90ddd3ca7824dca6")


def test_fresh_draws_are_uniform_and_independent() -> None:
    """1,280,000 draws in 20 bins, chi-square within 6 standard deviations; correlation with the draws they come
    from and between salts within 5 / sqrt(n)."""
    draws = uniform(np.arange(10_000), 128, seed=3, passes=1)
    one, two = fresh(draws, 1), fresh(draws, 2)
    counts, _ = np.histogram(one, bins=20, range=(0, 1))
    expected = draws.size / 20
    assert abs(((counts - expected) ** 2 / expected).sum() - 19) < 6 * np.sqrt(2 * 19)
    for a, b in ((draws, one), (one, two)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(draws.size)


@pytest.mark.parametrize(
    ("name", "middle", "quarter", "end"),
    [("constant", 0.3, 0.3, 0.3), ("linear", 0.225, 0.2625, 0.15), ("cosine", 0.225, 0.278033, 0.15)],
)
def test_mask_rates(name: str, middle: float, quarter: float, end: float) -> None:
    """From 0.3 to 0.15; cosine at a quarter: 0.15 + 0.15 * (1 + cos(pi / 4)) / 2 = 0.278033."""
    rate = MASK_RATES[name]
    assert rate(0.0, 0.3, 0.15) == pytest.approx(0.3)
    assert rate(0.25, 0.3, 0.15) == pytest.approx(quarter, abs=1e-6)
    assert rate(0.5, 0.3, 0.15) == pytest.approx(middle)
    assert rate(1.0, 0.3, 0.15) == pytest.approx(end)


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

    draws = uniform(np.arange(len(ids)), 64, seed=0, passes=0)
    positions, kinds = choose_token(NO_IDS, ~vocab.is_special[ids], None, draws, 0.15)
    inputs, chosen = ids.copy(), np.zeros(ids.size, dtype=bool)
    inputs.ravel()[positions] = replacements(ids.ravel()[positions], kinds, draws.ravel()[positions], vocab, (0.8, 0.1))
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
    base = uniform(np.array([5]), 32, seed=0, passes=0)
    others = [uniform(np.array([b]), 32, s, e) for b, s, e in [(6, 0, 0), (5, 1, 0), (5, 0, 1)]]
    assert all(not np.any(base == other) for other in others)
