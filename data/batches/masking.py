"""Which tokens are predicted, and what the model sees in their place.

This is the masking of BERT (Devlin et al. 2019, section 3.1) and of ``torch_mask_tokens`` in transformers: tokens that
are not special are chosen at the rate ``mlm_probability``; of the chosen, 80 % become the mask token, 10 % a random
token, 10 % stay. Unlike in transformers, a random token is never a special one.

    draws = uniform(block_ids, L, seed, epoch)
    positions, kinds = MASKINGS[name](input_ids, allowed, word_starts, draws, probability)
    seen = replacements(labels, kinds, draws at positions, vocabulary, (0.8, 0.1))

Every draw is a hash of (seed, epoch, block id, position), and more draws are hashes of these, so a block's masks do not
depend on its batch, process or worker. A masking is one function, in `MASKINGS` or in a user's own file; so is the
schedule of the masking rate (`MASK_RATES`).
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from data.batches.hashing import hash64, key64
from data.blocks.vocabulary import Vocabulary
from data.documents.ranges import DataError
from data.functions import described

# Span lengths in words (Joshi et al. 2020, section 3.1): geometric with p = 0.2, at most 10, renormalised.
_SPAN_LENGTHS = np.arange(1, 11)
_SPAN_PROBABILITIES = 0.8**_SPAN_LENGTHS / (0.8**_SPAN_LENGTHS).sum()
_SPAN_MEAN = float((_SPAN_LENGTHS * _SPAN_PROBABILITIES).sum())
# The rest of a span that covers a block's first word has r words with P(r) = P(length >= r) / mean.
_REST_PROBABILITIES = _SPAN_PROBABILITIES[::-1].cumsum()[::-1] / _SPAN_MEAN

# One salt for each use of `fresh`, so that no two uses share a number.
_FIXED_KIND, _SPAN_GAP, _SPAN_LENGTH, _SPAN_REST, _SPAN_KIND = range(1, 6)


def uniform(block_ids: np.ndarray, length: int, seed: int, passes: np.ndarray | int) -> np.ndarray:
    """One draw for each position of each block in each pass (``[B]``) over it: ``[B, L]`` float64 in [0, 1)."""
    pass_keys = hash64(np.uint64(key64(seed)) ^ np.atleast_1d(passes).astype(np.uint64))
    row_keys = hash64(block_ids.astype(np.uint64) ^ pass_keys)
    return _to_unit(hash64(row_keys[:, None] + np.arange(length, dtype=np.uint64)))


def fresh(draws: np.ndarray, salt: int) -> np.ndarray:
    """More draws from the same counters: float64 of the same shape, independent of ``draws`` and of other salts."""
    return _to_unit(hash64(draws.view(np.uint64) ^ np.uint64(key64(salt))))


def _to_unit(bits: np.ndarray) -> np.ndarray:
    """Uniform in [0, 1), with 53 random bits. Overwrites ``bits``, uint64."""
    bits >>= np.uint64(11)
    return bits * 2.0**-53


# Every masking has this form. Arguments:
#   input_ids    [B, L] integers: the tokens
#   allowed      [B, L] bool: tokens that may be chosen, neither special nor padding
#   word_starts  [B, L] bool: where a word begins; None unless the function has an attribute `needs_words = True`. A
#                special token is a word of its own, and the first column always counts as a start.
#   draws        [B, L] float64 from `uniform`
#   probability  the rate at which allowed tokens are to be chosen; [B] of them if the function has an attribute
#                `by_block = True`. Each prediction then counts n / chosen of its block's n allowed tokens in the loss.
# Returns positions [M] int64 in the flattened [B * L], ascending, and kinds [M] float64, uniform in [0, 1), which
# decide between the mask token, a random one and the token itself. Tokens that share a kind are treated alike.
Choose = Callable[[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, Any], tuple[np.ndarray, np.ndarray]]


def choose_token(
    input_ids: np.ndarray, allowed: np.ndarray, word_starts: np.ndarray | None, draws: np.ndarray, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose each token independently (Devlin et al. 2019). Arguments and result as of `Choose`."""
    positions = np.flatnonzero((draws < probability) & allowed)
    # A draw below the probability, divided by it, is again uniform in [0, 1).
    return positions, draws.reshape(-1)[positions] / probability


def choose_whole_word(
    input_ids: np.ndarray, allowed: np.ndarray, word_starts: np.ndarray | None, draws: np.ndarray, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose each word independently, by its first token's draw, with all its allowed tokens.

    This is the whole-word masking of BERT's 2019 release, with 80/10/10 by word. A word cut by the edge of a block
    counts as a word on either side. Arguments and result as of `Choose`.
    """
    assert word_starts is not None, "whole_word needs word starts"
    columns = np.arange(draws.shape[1])
    first = np.maximum.accumulate(np.where(word_starts, columns, 0), axis=1)
    return choose_token(input_ids, allowed, None, np.take_along_axis(draws, first, axis=1), probability)


def choose_span(
    input_ids: np.ndarray, allowed: np.ndarray, word_starts: np.ndarray | None, draws: np.ndarray, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose spans of whole words (SpanBERT, Joshi et al. 2020, section 3.1), with 80/10/10 by span.

    SpanBERT draws spans until a block's budget is spent. Here they are a renewal process along the words: outside a
    span, a word begins one with probability ``q = p / (m (1 - p) + p)``, where m is the mean length. Gaps of mean
    ``(1 - q) / q`` and spans of mean m then cover the share p. At the first word the process is in its stationary
    state, as if endless words came before the block, so each word, the first and the last too, is covered with
    probability p exactly.

    Special tokens count as words but are never chosen. Arguments and result as of `Choose`.
    """
    assert word_starts is not None, "span needs word starts"
    num_blocks, length = draws.shape
    words = np.cumsum(word_starts[:, 1:], axis=1)
    words = np.concatenate([np.zeros((num_blocks, 1), dtype=words.dtype), words], axis=1)
    begins, ends = _spans(draws, probability)
    # One search over all blocks finds every token's span, the first that ends after it. Blocks lie `stride` words
    # apart: ends grow within a block and are cut at L, which no word reaches, so none falls into the next block.
    stride = length + 1
    offsets = np.arange(num_blocks)[:, None] * stride
    spans = np.searchsorted((np.minimum(ends, length) + offsets).reshape(-1), (words + offsets).reshape(-1), "right")
    positions = np.flatnonzero((begins.reshape(-1)[spans] <= words.reshape(-1)) & allowed.reshape(-1))
    return positions, fresh(draws.reshape(-1)[spans[positions]], _SPAN_KIND)


def _spans(draws: np.ndarray, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """The first word of each of L spans, and the first word after it: two ``[B, L]`` int64, in words of the block.

    L spans reach past the last word, since each covers at least one word. The i-th span depends on the i-th draw.
    """
    begin_rate = probability / (_SPAN_MEAN * (1 - probability) + probability)
    with np.errstate(divide="ignore", over="ignore"):  # the gap is infinite at a rate of 0, or a draw of 0
        gaps = np.log(fresh(draws, _SPAN_GAP)) / np.log1p(-begin_rate)
    gaps = np.fmin(gaps, draws.shape[1]).astype(np.int64)
    lengths = 1 + np.searchsorted(_SPAN_PROBABILITIES.cumsum()[:-1], fresh(draws, _SPAN_LENGTH), "right")
    # The first word is not covered (0), or in a span of which this many words are left, itself included.
    state = np.concatenate([[1 - probability], probability * _REST_PROBABILITIES]).cumsum()
    rest = np.searchsorted(state[:-1], fresh(draws[:, 0], _SPAN_REST), "right")
    gaps[:, 0] = np.where(rest > 0, 0, 1 + gaps[:, 0])
    lengths[:, 0] = np.where(rest > 0, rest, lengths[:, 0])
    ends = np.cumsum(gaps + lengths, axis=1)
    return ends - lengths, ends


def choose_fixed_count(
    input_ids: np.ndarray, allowed: np.ndarray, word_starts: np.ndarray | None, draws: np.ndarray, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose ``round(probability * n)`` of the n allowed tokens of each block, at least one.

    They have the smallest draws. No block then weighs more than its text. Arguments and result as of `Choose`.
    """
    return _choose_smallest(allowed, draws, np.rint(probability * allowed.sum(axis=1)))


def choose_diffusion(
    input_ids: np.ndarray, allowed: np.ndarray, word_starts: np.ndarray | None, draws: np.ndarray, probability: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Choose any number of the n allowed tokens of each block: 1 to n are equally likely, by a uniform rate in (0, 1].

    Weighted by n / chosen, the cross-entropies add up on average to masked diffusion's bound on the block's negative
    log-likelihood (LLaDA, Nie et al. 2025, eq. 6; MDLM, Sahoo et al. 2024). Arguments and result as of `Choose`.
    """
    return _choose_smallest(allowed, draws, np.ceil(probability * allowed.sum(axis=1)))


def _choose_smallest(allowed: np.ndarray, draws: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose the ``[B]`` counts of allowed tokens with the smallest draws, at least one."""
    counts = np.maximum(1, counts.astype(np.int64))
    ranked = np.where(allowed, draws, np.inf)
    largest = np.take_along_axis(np.sort(ranked, axis=1), counts[:, None] - 1, axis=1)
    positions = np.flatnonzero((draws <= largest) & allowed)
    return positions, fresh(draws.reshape(-1)[positions], _FIXED_KIND)


choose_whole_word.needs_words = True  # type: ignore[attr-defined]
choose_span.needs_words = True  # type: ignore[attr-defined]
choose_diffusion.by_block = True  # type: ignore[attr-defined]

MASKINGS: dict[str, Choose] = {
    "token": choose_token,
    "whole_word": choose_whole_word,
    "span": choose_span,
    "fixed_count": choose_fixed_count,
    "diffusion": choose_diffusion,
}


def needs_words(choose: Choose) -> bool:
    """Whether a function of the form `Choose` needs word starts."""
    return getattr(choose, "needs_words", False)


def check_choice(where: str, result: Any, input_ids: np.ndarray, *_: Any) -> None:
    """Raise DataError unless the result of a user's function has the form that `Choose` states."""
    if not re.fullmatch(r"\(int64\[(\d+)\], float64\[\1\]\)", form := described(result)):
        raise DataError(f"{where} returns {form}: it must return positions, int64[M], and kinds, float64[M]")
    positions, _ = result
    if (np.diff(positions, prepend=-1, append=input_ids.size) < 1).any():
        raise DataError(f"{where}: the positions must ascend within 0 to {input_ids.size - 1}, the flattened batch")


# (progress from 0 to 1, start, end) -> probability: the schedule of the masking rate (Ankner et al. 2024).
MaskRate = Callable[[float, float, float], float]


def _constant(progress: float, start: float, end: float) -> float:
    return start


def _linear(progress: float, start: float, end: float) -> float:
    return start + (end - start) * progress


def _cosine(progress: float, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


MASK_RATES: dict[str, MaskRate] = {"constant": _constant, "linear": _linear, "cosine": _cosine}


def check_replacement(mask_replace_prob: float, random_replace_prob: float) -> None:
    """Raise ValueError unless both are fractions that add up to at most 1."""
    if not (min(mask_replace_prob, random_replace_prob) >= 0 and mask_replace_prob + random_replace_prob <= 1 + 1e-9):
        raise ValueError(
            f"mask_replace_prob={mask_replace_prob} and random_replace_prob={random_replace_prob}: neither may be "
            "negative, nor may they add up to more than 1"
        )


def replacements(
    labels: np.ndarray, kinds: np.ndarray, draws: np.ndarray, vocabulary: Vocabulary, shares: tuple[float, float]
) -> np.ndarray:
    """What the model sees at the chosen positions, ``[M]``, in place of the ``[M]`` labels.

    Kinds, see `Choose`, below the first of the ``shares`` become the mask token; those from there to the sum of both a
    random regular token; others keep the label. ``draws``, ``[M]``, are each position's own, so that each token of a
    word gets its own random token.
    """
    out = labels.copy()
    out[kinds < shares[0]] = vocabulary.mask_token_id
    is_random = (kinds >= shares[0]) & (kinds < sum(shares))
    # The low bits of the draw's hash are independent of its size, which may have decided the choice.
    bits = hash64(draws[is_random].view(np.uint64))
    out[is_random] = vocabulary.regular_ids[bits % np.uint64(len(vocabulary.regular_ids))]
    return out
