"""Which tokens are predicted, and what the model sees in their place.

The meaning is that of BERT (Devlin et al. 2019, section 3.1) as transformers'
``torch_mask_tokens`` has it: each token that is not special is chosen with
``mlm_probability``; of the chosen, 80 % become the mask token, 10 % a random
token, 10 % stay. Unlike there, a random token is never a special one.

Every draw is a hash of (seed, epoch, block id, position), so a block's masks do
not depend on the batch, process or worker in which it is met.
"""

from dataclasses import dataclass, field

import numpy as np

from data.hashing import hash64, key64


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a tokenizer.

    Attributes:
        mask_token_id: What a masked token becomes.
        is_special: ``[V]`` bool; special tokens are never chosen and never drawn.
        regular_ids: ``[V - specials]``, what random replacements are drawn from.
    """

    mask_token_id: int
    is_special: np.ndarray
    regular_ids: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "regular_ids", np.flatnonzero(~self.is_special))


def uniform(block_ids: np.ndarray, length: int, seed: int, epoch: int) -> np.ndarray:
    """``[B, L]`` float64 in [0, 1): one draw for each position of each block."""
    row_keys = hash64(block_ids.astype(np.uint64) ^ np.uint64(key64(seed, epoch)))
    draws = hash64(row_keys[:, None] + np.arange(length, dtype=np.uint64))
    return (draws >> np.uint64(11)) * 2.0**-53


def choose_tokens(
    input_ids: np.ndarray, draws: np.ndarray, vocabulary: Vocabulary, mlm_probability: float
) -> np.ndarray:
    """Choose each token that is not special, independently, with ``mlm_probability``.

    Args:
        input_ids: ``[B, L]`` integers.
        draws: ``[B, L]`` from `uniform`.

    Returns:
        ``[M]`` int64, positions in the flattened ``[B * L]``, ascending. Where a
        position is chosen, its draw divided by ``mlm_probability`` is again
        uniform in [0, 1), which is what `replacements` goes by.
    """
    return np.flatnonzero((draws < mlm_probability) & ~vocabulary.is_special[input_ids])


def replacements(
    labels: np.ndarray, draws: np.ndarray, vocabulary: Vocabulary, mask_replace_prob: float, random_replace_prob: float
) -> np.ndarray:
    """What the model sees at the chosen positions.

    Args:
        labels: ``[M]``, the tokens that are there.
        draws: ``[M]`` float64, uniform in [0, 1).

    Returns:
        ``[M]``, dtype of ``labels``: the mask token where the draw is below
        ``mask_replace_prob``, a random regular token where it is below the sum
        of the two, else the label.
    """
    out = labels.copy()
    out[draws < mask_replace_prob] = vocabulary.mask_token_id
    is_random = (draws >= mask_replace_prob) & (draws < mask_replace_prob + random_replace_prob)
    # The low bits of a hash of the draw are independent of its size, which made the choice.
    bits = hash64(draws[is_random].view(np.uint64))
    out[is_random] = vocabulary.regular_ids[bits % np.uint64(len(vocabulary.regular_ids))]
    return out
