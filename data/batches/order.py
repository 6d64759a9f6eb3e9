"""Which blocks an update sees: a pure function of (seed, epoch, step).

The order of an epoch is a keyed permutation, evaluated only at the wanted positions and never stored: step 1,000,000
costs as much as step 0, and there is no generator state to save. Several sources are mixed by weight in the same way.
A process takes a contiguous share of the global batch, so the global batch does not depend on the number of processes.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.batches.hashing import hash64, key64

Batch = tuple[np.ndarray, ...]  # [B] passes, [B] block ids; for a loader [B] masking rates too
MIXTURE_PERIOD = 1000
_FEISTEL_ROUNDS = 6
_STEPS_SORTED_TOGETHER = 16
_PERMUTED_TOGETHER = 1024
_SMALL = 256  # blocks; below about 64, the network's orders are measurably uneven


def permute(positions: np.ndarray, num_blocks: int, key: int) -> np.ndarray:
    """Map ``[N]`` positions of ``range(num_blocks)`` through the pseudorandom permutation of a 64-bit key; int64.

    It is a Feistel network over the bits that ``num_blocks`` needs, walked along its cycle until the value is in range
    again (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Up to 256 blocks have too few bits to mix
    well; they are sorted by a hash, which makes all orders equally likely.
    """
    if num_blocks <= _SMALL:
        hashes = hash64(np.arange(num_blocks, dtype=np.uint64) ^ np.uint64(key64(key)))  # of different numbers: no ties
        return np.argsort(hashes)[positions]
    bits = (num_blocks - 1).bit_length()
    sizes = [np.uint64(bits // 2), np.uint64(bits - bits // 2)]  # of the right half and the left, in turn
    masks = [(np.uint64(1) << size) - np.uint64(1) for size in sizes]
    round_keys = hash64(np.arange(_FEISTEL_ROUNDS, dtype=np.uint64) ^ np.uint64(key))

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> sizes[0], x & masks[0]
        for i, round_key in enumerate(round_keys):
            left, right = right, left ^ (hash64(right ^ round_key) & masks[1 - i % 2])
        return (left << sizes[0]) | right  # an even number of rounds: the halves are back in place

    out = encrypt(np.asarray(positions, dtype=np.uint64))
    while (outside := out >= num_blocks).any():
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)


def strata(number: int, key: int) -> np.ndarray:
    """``[N]`` float64 in (0, 1]: uniform draws, one in each of N equal parts, in an order of their own."""
    return (permute(np.arange(number), number, key) + 1 - key64(key) / 2**64) / number


def permuted_range(first: int, end: int, num_blocks: int, key: int) -> np.ndarray:
    """`permute` of the positions ``first`` to ``end - 1``, of which there is at least one."""
    rows = range(first // _PERMUTED_TOGETHER, (end - 1) // _PERMUTED_TOGETHER + 1)
    together = np.concatenate([_permuted_row(row, num_blocks, key) for row in rows])
    return together[first - rows[0] * _PERMUTED_TOGETHER :][: end - first]


@functools.lru_cache(maxsize=4)
def _permuted_row(row: int, num_blocks: int, key: int) -> np.ndarray:
    """1,024 positions, cached: they cost as much as 100, and the steps of a run ask for neighbouring positions."""
    first = row * _PERMUTED_TOGETHER
    out = permute(np.arange(first, min(first + _PERMUTED_TOGETHER, num_blocks)), num_blocks, key)
    out.flags.writeable = False
    return out


def mixture(slots: np.ndarray, weights: Sequence[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide an endless row of slots, of which ``[N]`` are asked for, among S sources in proportion to their weights.

    Each 1,000 slots hold every source the same number of times, in an order of their own. So any slot is found without
    those before it, and the proportions are exact.

    Returns the source of each slot, ``[N]``, and the number of that draw among the source's draws, ``[N]``. Within a
    thousand, draws are numbered in an order other than that of the slots.
    """
    counts = mixture_counts(weights)
    ends = np.cumsum(counts)
    thousands, within = np.divmod(slots, MIXTURE_PERIOD)
    shuffled = np.empty_like(slots)
    for thousand in np.unique(thousands):
        here = thousands == thousand
        shuffled[here] = permute(within[here], MIXTURE_PERIOD, key64(seed, int(thousand)))
    sources = np.searchsorted(ends, shuffled, side="right")
    return sources, thousands * counts[sources] + shuffled - (ends - counts)[sources]


def mixture_counts(weights: Sequence[float]) -> np.ndarray:
    """``[S]``: slots of each source among 1,000, rounded by the largest remainder."""
    exact = np.asarray(weights) / np.sum(weights) * MIXTURE_PERIOD
    counts = exact.astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: MIXTURE_PERIOD - counts.sum()]] += 1
    return counts


def blocks_per_epoch(sizes: tuple[int, ...], weights: Sequence[float], ends_with_first: bool) -> int:
    """Blocks in an epoch: of one source, all of them; of a mixture, until the first or the last source has run out.

    A new epoch of a mixture does not restart its sources: each continues in passes of its own.
    """
    if len(sizes) == 1:
        return sizes[0]
    slots = [-(-size * MIXTURE_PERIOD // int(n)) for size, n in zip(sizes, mixture_counts(weights), strict=True)]
    return min(slots) if ends_with_first else max(slots)


@dataclass(frozen=True)
class Order:
    """Which blocks each update sees."""

    sizes: tuple[int, ...]  # blocks of each source; the ids of a source follow those of the one before
    weights: tuple[float, ...]  # of the sources in a mixture
    global_batch_size: int  # G, blocks per update
    seed: int  # of the permutations
    # [N], tokens in each block, to make batches of blocks of similar length, which need less padding: the blocks of
    # 16 updates are sorted together. None: do not sort.
    lengths: np.ndarray | None = None
    # Step -> blocks in the updates before it, where G grows. Epochs then meet within a batch, and nothing is sorted.
    blocks_before: Callable[[int], int] | None = None

    def global_batch(self, step: int) -> Batch:
        """The blocks of an update: ``[G]``, the number of earlier passes over each block's source, and ``[G]`` ids.

        The last update of an epoch of one source has the remaining blocks, so that each block is seen exactly once.
        """
        if self.blocks_before is not None:
            first, stop = self.blocks_before(step), self.blocks_before(step + 1)
            size = self.sizes[0] if len(self.sizes) == 1 else sys.maxsize
            edges = [first, *range((first // size + 1) * size, stop, size), stop]
            parts = [self._blocks(a // size, np.arange(a, b) - a // size * size) for a, b in itertools.pairwise(edges)]
            return np.concatenate([passes for passes, _ in parts]), np.concatenate([ids for _, ids in parts])
        epoch, step_in_epoch, end = 0, step, sys.maxsize
        if len(self.sizes) == 1:
            epoch, step_in_epoch = divmod(step, -(-self.sizes[0] // self.global_batch_size))
            end = self.sizes[0]
        num_steps = 1 if self.lengths is None else _STEPS_SORTED_TOGETHER
        first = step_in_epoch // num_steps * num_steps
        size = self.global_batch_size
        slots = np.arange(first * size, min((first + num_steps) * size, end))
        passes, ids = self._blocks(epoch, slots)
        if self.lengths is not None:
            num_batches = -(-len(slots) // size)
            batch = permute(np.array([step_in_epoch - first]), num_batches, key64(self.seed, epoch, first))[0]
            chosen = np.argsort(self.lengths[ids], kind="stable")[batch * size : (batch + 1) * size]
            passes, ids = passes[chosen], ids[chosen]
        return passes, ids

    def draws_by_source(self, step: int) -> np.ndarray:
        """``[S]``: blocks of each source in the updates before ``step``."""
        blocks = step * self.global_batch_size if self.blocks_before is None else self.blocks_before(step)
        thousands, rest = divmod(blocks, MIXTURE_PERIOD)
        sources, _ = mixture(np.arange(rest) + thousands * MIXTURE_PERIOD, self.weights, self.seed)
        return thousands * mixture_counts(self.weights) + np.bincount(sources, minlength=len(self.sizes))

    def _blocks(self, epoch: int, slots: np.ndarray) -> Batch:
        """Passes and ids of the blocks in consecutive slots of an epoch, or of the endless row of a mixture."""
        if len(self.sizes) == 1:
            key = key64(self.seed, epoch)
            ids = permuted_range(int(slots[0]), int(slots[-1]) + 1, self.sizes[0], key)
            return np.full_like(ids, epoch), ids
        sources, indices = mixture(slots, self.weights, self.seed)
        passes, places = np.divmod(indices, np.asarray(self.sizes)[sources])
        first_ids = np.cumsum(self.sizes) - self.sizes
        ids = np.empty_like(slots)
        for source, number in {*zip(sources.tolist(), passes.tolist(), strict=True)}:
            here = (sources == source) & (passes == number)
            key = key64(self.seed, source, number)
            ids[here] = first_ids[source] + permute(places[here], self.sizes[source], key)
        return passes, ids


def micro_batches(batch: Batch, rank: int, num_processes: int, size: int) -> list[Batch]:
    """The contiguous share of one process in a batch, in micro-batches of ``size``.

    Shares differ by at most one block. An empty one is one empty micro-batch.
    """
    mine = [np.array_split(part, num_processes)[rank] for part in batch]
    return [tuple(part[i : i + size] for part in mine) for i in range(0, max(1, len(mine[0])), size)]
