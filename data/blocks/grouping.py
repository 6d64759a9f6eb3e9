"""Documents to blocks of at most L tokens; the rest of each batch of documents is carried into the next one.

The Hugging Face guide groups 1,000 rows at a time and drops the rest of each batch. Here the rest is an explicit state.
A grouping is a pure function ``(rest, tokens, L) -> (blocks, rest)`` of flagged tokens (see `data.blocks.tokens`), so
cached and streamed blocks come from the same code. No token is lost, added or moved within its document.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

import numpy as np

from data.blocks.tokens import DOCUMENT_START
from data.documents.ranges import DataError
from data.functions import described

Blocks = list[np.ndarray]  # each a flat uint32 array of 1 to L tokens
Grouping = Callable[[np.ndarray, np.ndarray, int], tuple[Blocks, np.ndarray]]


def concatenate(rest: np.ndarray, tokens: np.ndarray, block_size: int) -> tuple[Blocks, np.ndarray]:
    """Join all documents end to end and cut every L tokens.

    With L = 4, rest ``[1 2]`` and tokens ``[3 4 5 6 7 8 9]``: blocks ``[1 2 3 4] [5 6 7 8]``, rest ``[9]``.
    """
    tokens = np.concatenate([rest, tokens])
    end = len(tokens) // block_size * block_size
    return list(tokens[:end].reshape(-1, block_size)), tokens[end:]


def line_by_line(rest: np.ndarray, tokens: np.ndarray, block_size: int) -> tuple[Blocks, np.ndarray]:
    """One block for each document, or several if it is longer than L. There is no rest."""
    return _pieces(tokens, block_size), rest


def pack(rest: np.ndarray, tokens: np.ndarray, block_size: int) -> tuple[Blocks, np.ndarray]:
    """Pack whole documents into blocks, the longest first, each into the fullest block that has room (best fit).

    A document longer than L is cut, and its pieces are documents of their own. The emptiest block is the rest.
    """
    free: list[tuple[int, int]] = []  # (room, block), ascending
    packed: list[Blocks] = []
    for piece in sorted(_pieces(np.concatenate([rest, tokens]), block_size), key=len, reverse=True):
        best = bisect_left(free, (len(piece), 0))
        if best == len(free):
            room, block = block_size, len(packed)
            packed.append([])
        else:
            room, block = free.pop(best)
        packed[block].append(piece)
        if room > len(piece):
            insort(free, (room - len(piece), block))
    left = packed.pop(free[-1][1]) if free else [rest[:0]]
    return [np.concatenate(pieces) for pieces in packed], np.concatenate(left)


def _pieces(tokens: np.ndarray, block_size: int) -> Blocks:
    """The documents, cut where they are longer than L; each piece begins with the flag."""
    tokens = tokens.copy()
    starts = np.flatnonzero(tokens & DOCUMENT_START)
    documents = np.split(tokens, starts[1:]) if len(starts) else []
    pieces = [document[i : i + block_size] for document in documents for i in range(0, len(document), block_size)]
    for piece in pieces:
        piece[0] |= DOCUMENT_START
    return pieces


GROUPINGS: dict[str, Grouping] = {"concatenate": concatenate, "line_by_line": line_by_line, "pack": pack}


def check_grouped(where: str, result: Any, rest: np.ndarray, tokens: np.ndarray, block_size: int) -> None:
    """Raise DataError unless the result of a user's function has the form of a `Grouping`."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], list)):
        raise DataError(f"{where} returns {described(result)}: it must return a list of blocks, and the rest")
    for name, array in (*(("a block", block) for block in result[0]), ("a rest", result[1])):
        if not (isinstance(array, np.ndarray) and array.dtype == np.uint32 and array.ndim == 1):
            raise DataError(f"{where} returns {name} of {described(array)}: it must be a flat array of uint32")
    for block in result[0]:
        if not 1 <= len(block) <= block_size:
            raise DataError(f"{where} returns a block of {len(block)} tokens: it must have 1 to {block_size}")
