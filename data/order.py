"""Which blocks a step sees: a pure function of (seed, epoch, step).

The order of an epoch is a keyed permutation that is evaluated at the positions
asked for, never stored: step 1,000,000 costs what step 0 costs, and there is no
generator state to save. A process takes a contiguous share of the global batch,
so the global batch does not depend on how many processes there are.
"""

import numpy as np

from data.hashing import hash64, key64

_FEISTEL_ROUNDS = 6


def permute(positions: np.ndarray, num_blocks: int, key: int) -> np.ndarray:
    """Map positions of ``range(num_blocks)`` through a keyed pseudorandom permutation.

    A Feistel network over the bits that ``num_blocks`` needs, walked along its
    cycle until the value is in range again (Black and Rogaway 2002, "Ciphers
    with arbitrary finite domains").

    Args:
        positions: ``[N]`` integers in ``[0, num_blocks)``.
        num_blocks: Size of the domain.
        key: 64-bit key; another key is another permutation.

    Returns:
        ``[N]`` int64, distinct for distinct positions.
    """
    bits = max(2, (num_blocks - 1).bit_length())
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


def steps_per_epoch(num_blocks: int, global_batch_size: int) -> int:
    """Updates in an epoch; the last one sees what is left, so that each block is seen exactly once."""
    return -(-num_blocks // global_batch_size)


def global_batch(step: int, num_blocks: int, global_batch_size: int, seed: int) -> tuple[int, np.ndarray]:
    """The epoch of an update (from 0) and the ids of the blocks it sees, ``[G]`` int64."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_blocks, global_batch_size))
    start = step_in_epoch * global_batch_size
    positions = np.arange(start, min(start + global_batch_size, num_blocks))
    return epoch, permute(positions, num_blocks, key64(seed, epoch))


def share(block_ids: np.ndarray, rank: int, num_processes: int) -> np.ndarray:
    """The contiguous part of a batch that a process takes; parts differ by at most one block and may be empty."""
    return np.array_split(block_ids, num_processes)[rank]


def micro_batches(block_ids: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut a process's share into micro-batches of ``size``; an empty share is one empty micro-batch.

    A process with nothing to do still takes part in the gradient all-reduce.
    """
    return [block_ids[i : i + size] for i in range(0, len(block_ids), size)] or [block_ids]
