"""Random numbers by counter: a number is a hash of what it is for, not the state of a generator.

Order and masks need the same draws in any process, in any worker and after a restart. A hash of (seed, epoch, block id,
position) gives them, in a few vectorised operations.
"""

import numpy as np

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def hash64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): uint64 in, uint64 out, elementwise."""
    x = x + np.uint64(_GOLDEN)  # a copy; what follows is in place, so that more of a batch's draws fit the CPU's cache
    x ^= x >> np.uint64(30)
    x *= np.uint64(_FACTORS[0])
    x ^= x >> np.uint64(27)
    x *= np.uint64(_FACTORS[1])
    x ^= x >> np.uint64(31)
    return x


def key64(*parts: int) -> int:
    """Fold integers into one 64-bit key, which depends on each of them and on their order."""
    key = 0
    for part in parts:  # `hash64` of one number: plain integers are ten times as fast here as arrays
        key = ((key ^ part) + _GOLDEN) & _MASK64
        key = ((key ^ (key >> 30)) * _FACTORS[0]) & _MASK64
        key = ((key ^ (key >> 27)) * _FACTORS[1]) & _MASK64
        key ^= key >> 31
    return key
