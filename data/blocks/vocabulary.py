"""The ids of a tokenizer, and which of them are special."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # settings name maskings, which need this module: transformers would cost --help a second
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a tokenizer."""

    mask_token_id: int
    is_special: np.ndarray  # [V] bool; special tokens are never masked and never used as replacements

    @cached_property
    def regular_ids(self) -> np.ndarray:
        """The ids that are not special; random replacements are drawn from them."""
        return np.flatnonzero(~self.is_special)


def vocab_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """V, one more than the largest token id: ``len(tokenizer)`` is less if ids have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary(tokenizer: "PreTrainedTokenizerBase") -> Vocabulary:
    """The `Vocabulary` of a tokenizer."""
    is_special = np.zeros(vocab_size(tokenizer), dtype=bool)
    is_special[tokenizer.all_special_ids] = True
    return Vocabulary(mask_token_id=tokenizer.mask_token_id, is_special=is_special)
