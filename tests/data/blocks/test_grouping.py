"""No token is lost, invented or reordered by grouping, whatever the texts and the block size."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.blocks.grouping import GROUPINGS, concatenate, line_by_line, pack
from data.blocks.tokens import DOCUMENT_START, ID_MASK, flagged

NAMES = sorted(GROUPINGS)
NOTHING = np.zeros(0, dtype=np.uint32)
DOCUMENTS = st.lists(st.lists(st.integers(0, 65535), max_size=50), max_size=12)
BATCHES = st.lists(DOCUMENTS, max_size=5)


def tokens_of(documents: list[list[int]]) -> np.ndarray:
    ids = np.array(list(chain(*documents)), dtype=np.uint32)
    return flagged(ids, np.array([len(d) for d in documents], dtype=np.int64), None)


def group(name: str, batches: list[list[list[int]]], block_size: int) -> list[np.ndarray]:
    """All blocks, and what is left over as the last one."""
    blocks, rest = [], NOTHING
    for documents in batches:
        new, rest = GROUPINGS[name](rest, tokens_of(documents), block_size)
        blocks += new
    return [*blocks, rest]


def pieces(block: np.ndarray) -> list[list[int]]:
    """The documents in a block."""
    starts = np.flatnonzero(block & DOCUMENT_START)
    return [part.tolist() for part in np.split(block & ID_MASK, starts) if len(part)]


@pytest.mark.parametrize("name", NAMES)
@given(batches=BATCHES, block_size=st.integers(1, 20))
def test_every_token_is_in_a_block_or_left_over(name: str, batches: list[list[list[int]]], block_size: int) -> None:
    blocks = group(name, batches, block_size)
    assert all(0 < len(block) <= block_size for block in blocks[:-1])
    assert len(blocks[-1]) <= block_size
    found = sorted(chain(*((block & ID_MASK).tolist() for block in blocks)))
    assert found == sorted(chain(*chain(*batches)))


@given(batches=BATCHES, block_size=st.integers(1, 20))
def test_concatenate_keeps_the_order_and_fills_every_block(batches: list[list[list[int]]], block_size: int) -> None:
    *blocks, rest = group("concatenate", batches, block_size)
    assert all(len(block) == block_size for block in blocks)
    assert len(rest) < block_size
    flat = np.concatenate([*blocks, rest])
    assert (flat & ID_MASK).tolist() == list(chain(*chain(*batches)))
    starts = np.cumsum([0, *(len(document) for document in chain(*batches) if document)])[:-1]
    assert np.flatnonzero(flat & DOCUMENT_START).tolist() == starts.tolist()


@given(batches=BATCHES, block_size=st.integers(1, 20))
def test_line_by_line_gives_each_text_blocks_of_its_own(batches: list[list[list[int]]], block_size: int) -> None:
    *blocks, rest = group("line_by_line", batches, block_size)
    texts = [d for d in chain(*batches) if d]
    expected = [d[i : i + block_size] for d in texts for i in range(0, len(d), block_size)]
    assert [(block & ID_MASK).tolist() for block in blocks] == expected
    assert all(block[0] & DOCUMENT_START for block in blocks)
    assert len(rest) == 0


@given(batches=BATCHES, block_size=st.integers(1, 20))
def test_pack_keeps_documents_whole(batches: list[list[list[int]]], block_size: int) -> None:
    blocks = group("pack", batches, block_size)
    texts = [d for d in chain(*batches) if d]
    expected = [d[i : i + block_size] for d in texts for i in range(0, len(d), block_size)]
    assert sorted(chain(*map(pieces, blocks))) == sorted(expected)


def test_pack_pads_little() -> None:
    """1,000 documents of 5 to 100 tokens in blocks of 128: best fit leaves less than 2 % empty."""
    rng = np.random.default_rng(0)
    documents = [[1] * n for n in rng.integers(5, 100, 1000).tolist()]
    *blocks, _ = group("pack", [documents], 128)
    assert sum(map(len, blocks)) / (128 * len(blocks)) > 0.98


@pytest.mark.parametrize("function", [concatenate, line_by_line, pack])
def test_groupings_leave_their_arguments_alone(function: object) -> None:
    tokens = tokens_of([list(range(50)), [1, 2, 3]])
    before = tokens.copy()
    function(NOTHING, tokens, 8)  # type: ignore[operator]
    assert np.array_equal(tokens, before)


def test_within_a_batch_the_blocks_are_those_of_the_guides_group_texts() -> None:
    def group_texts(examples: list[list[int]], block_size: int) -> list[list[int]]:  # as in the Hugging Face guide
        concatenated = list(chain(*examples))
        total = (len(concatenated) // block_size) * block_size
        return [concatenated[i : i + block_size] for i in range(0, total, block_size)]

    examples = [list(range(i, i + 17)) for i in range(0, 170, 17)]
    *blocks, rest = group("concatenate", [examples], 16)
    assert [(block & ID_MASK).tolist() for block in blocks] == group_texts(examples, 16)
    assert len(rest) == 170 % 16
