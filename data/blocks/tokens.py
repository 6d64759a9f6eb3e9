"""Flagged tokens: one array of ids, and of whether a word or a document begins at each token.

The id takes the low 30 bits of a uint32 and the two flags the others, so that grouping, shuffling and storing move
one array. If the flags are not needed and the vocabulary is small, tokens are stored as uint16. The largest integer
stands where a block has no token.
"""

from dataclasses import dataclass

import numpy as np

WORD_START = np.uint32(1 << 31)
DOCUMENT_START = np.uint32(1 << 30)
ID_MASK = np.uint32((1 << 30) - 1)


@dataclass(frozen=True)
class TokenFormat:
    """How tokens are stored."""

    vocab_size: int
    keeps_flags: bool  # of the starts of words and documents

    @property
    def dtype(self) -> np.dtype:
        """The smallest integer that holds the ids, the flags, and a largest value that is no token's id."""
        return np.dtype(np.uint32 if self.keeps_flags or self.vocab_size >= 2**16 else np.uint16)

    def store(self, tokens: np.ndarray) -> np.ndarray:
        """Convert flagged uint32 tokens to the stored form."""
        return tokens if self.keeps_flags else (tokens & ID_MASK).astype(self.dtype)


def flagged(ids: np.ndarray, lengths: np.ndarray, word_starts: np.ndarray | None) -> np.ndarray:
    """Flagged tokens, ``[T]`` uint32, from the ``[T]`` ids of some documents end to end and their ``[N]`` lengths.

    ``word_starts`` is ``[T]`` bool, or None if they are not needed.
    """
    tokens = ids.astype(np.uint32)
    starts = np.cumsum(lengths) - lengths
    tokens[starts[lengths > 0]] |= DOCUMENT_START
    if word_starts is not None:
        tokens[word_starts] |= WORD_START
    return tokens
