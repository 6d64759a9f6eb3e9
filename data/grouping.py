"""Concatenate token arrays and cut the stream into blocks, the remainder carried over.

The Hugging Face guide groups 1,000 rows at a time and throws away what is left
of each batch of rows. Here the remainder is an explicit state that goes into
the next batch, so only the very last one is ever dropped or padded.
"""

from collections.abc import Iterable, Iterator

import numpy as np


def group(
    batches: Iterable[np.ndarray], block_size: int, remainder: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ``(blocks, remainder)`` for each batch of tokens.

    With ``block_size=4`` and batches ``[1 2 3 4 5 6]``, ``[7 8 9]``::

        blocks [[1 2 3 4]], remainder [5 6]
        blocks [[5 6 7 8]], remainder [9]

    Args:
        batches: Flat integer arrays, each the concatenated tokens of some texts.
        block_size: L, tokens in a block.
        remainder: What was left when an earlier call stopped; fewer than L tokens.

    Yields:
        blocks: ``[N, L]``, N may be 0.
        remainder: ``[R]``, R < L: the state from which a later call goes on.
    """
    for batch in batches:
        tokens = batch if remainder is None else np.concatenate([remainder, batch])
        num_blocks = len(tokens) // block_size
        blocks, remainder = np.split(tokens, [num_blocks * block_size])
        yield blocks.reshape(num_blocks, block_size), remainder
