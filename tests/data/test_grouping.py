"""No token is lost, invented or reordered by grouping."""

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.grouping import group

BATCHES = st.lists(st.lists(st.integers(0, 65535), max_size=50), max_size=12)


@given(batches=BATCHES, block_size=st.integers(1, 20))
def test_blocks_and_remainder_are_the_tokens_in_order(batches: list[list[int]], block_size: int) -> None:
    remainder = np.zeros(0, dtype=np.uint16)
    out = []
    for blocks, rest in group((np.array(b, dtype=np.uint16) for b in batches), block_size):
        assert blocks.shape[1:] == (block_size,)
        assert blocks.dtype == rest.dtype == np.uint16
        assert len(rest) < block_size
        out.append(blocks.ravel())
        remainder = rest
    tokens = [token for batch in batches for token in batch]
    assert np.array_equal(np.concatenate([*out, remainder]), tokens)


@given(batches=BATCHES, block_size=st.integers(1, 20), cut=st.integers(0, 12))
def test_going_on_from_a_remainder_is_never_having_stopped(batches: list[list[int]], block_size: int, cut: int) -> None:
    arrays = [np.array(b, dtype=np.uint16) for b in batches]
    whole = list(group(arrays, block_size))
    first = list(group(arrays[:cut], block_size))
    rest = list(group(arrays[cut:], block_size, first[-1][1] if first else None))
    assert len(whole) == len(first + rest)
    for (blocks, remainder), (expected_blocks, expected_remainder) in zip(first + rest, whole, strict=True):
        assert np.array_equal(blocks, expected_blocks)
        assert np.array_equal(remainder, expected_remainder)


def test_within_a_batch_the_blocks_are_those_of_the_guides_group_texts() -> None:
    def group_texts(examples: list[list[int]], block_size: int) -> list[list[int]]:  # as in the Hugging Face guide
        concatenated = list(chain(*examples))
        total = (len(concatenated) // block_size) * block_size
        return [concatenated[i : i + block_size] for i in range(0, total, block_size)]

    examples = [list(range(i, i + 17)) for i in range(0, 170, 17)]
    ((blocks, remainder),) = group([np.array(list(chain(*examples)))], 16)
    assert blocks.tolist() == group_texts(examples, 16)
    assert len(remainder) == 170 % 16
