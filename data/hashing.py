"""Random numbers by counter: a hash of what the number is for, not the state of a generator.

Order and masks need the same draws on any process, worker or restart. A hash of
(seed, epoch, block id, position) gives them, in a few vectorised operations.
"""

import numpy as np

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def hash64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): uint64 in, uint64 out, elementwise."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key64(*parts: int) -> int:
    """Fold integers into one 64-bit key; every part, and their order, matters."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = hash64(key ^ np.uint64(part & _MASK64))
    return int(key[0])
