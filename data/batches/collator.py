"""Blocks to `MaskedBatch`."""

from dataclasses import dataclass

import numpy as np
import torch

from data.batch import MaskedBatch
from data.batches.masking import Choose, choose_token, needs_words, replacements, uniform
from data.blocks.tokens import DOCUMENT_START, ID_MASK, WORD_START
from data.blocks.vocabulary import Vocabulary


@dataclass(frozen=True)
class Collator:
    """Turns blocks into masked batches: the same batch for the same blocks, whoever asks for it.

    Attributes:
        vocabulary: Of the tokenizer.
        seed: Of the masks.
        pad_token_id: The id at places where a block has no token.
        choose: The way to choose tokens, see `data.batches.masking.Choose`.
        mask_replace_prob, random_replace_prob: See `data.batches.masking.replacements`.
        document_attention: Whether the batch gets ``position_ids``.
        trims: Make a batch as wide as its longest block, rounded up to 8, instead of L.
    """

    vocabulary: Vocabulary
    seed: int
    pad_token_id: int = 0
    choose: Choose = choose_token
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    document_attention: bool = False
    trims: bool = False

    def __call__(
        self, blocks: np.ndarray, block_ids: np.ndarray, passes: np.ndarray, mlm_probability: float
    ) -> MaskedBatch:
        """Mask some blocks.

        Args:
            blocks: ``[B, L]`` tokens as they are stored (see `data.blocks.tokens`). B may
                be 0: the batch is then one block with nothing to predict, so that a
                process without a share has a forward and backward to take part with.
            block_ids: ``[B]``.
            passes: ``[B]``, how often each block was seen before.
            mlm_probability: The rate at which tokens are chosen.
        """
        if not len(blocks):
            return self._nothing_to_predict(blocks.shape[1])
        is_padding = blocks == np.iinfo(blocks.dtype).max
        has_padding = bool(is_padding.any())
        input_ids = (blocks & ID_MASK if blocks.dtype == np.uint32 else blocks).astype(np.int64)
        if has_padding:
            input_ids[is_padding] = self.pad_token_id
        allowed = ~self.vocabulary.is_special[input_ids]
        if has_padding:
            allowed &= ~is_padding
        # At the full width L: a block's masks must not depend on how long the others are.
        draws = uniform(block_ids, blocks.shape[1], self.seed, passes)
        word_starts = (blocks & WORD_START) != 0 if needs_words(self.choose) else None
        positions, kinds = self.choose(input_ids, allowed, word_starts, draws, mlm_probability)
        flat = input_ids.reshape(-1)
        labels = flat[positions]
        flat[positions] = replacements(
            labels,
            kinds,
            draws.reshape(-1)[positions],
            self.vocabulary,
            self.mask_replace_prob,
            self.random_replace_prob,
        )
        attention_mask = (~is_padding).astype(np.int64) if has_padding else None
        position_ids = _document_positions(blocks, is_padding) if self.document_attention else None
        if self.trims and attention_mask is not None:
            width = min(blocks.shape[1], -(-int(attention_mask.sum(axis=1).max()) // 8) * 8)
            rows, columns = np.divmod(positions, blocks.shape[1])
            positions = rows * width + columns
            input_ids, attention_mask = input_ids[:, :width], attention_mask[:, :width]
            position_ids = None if position_ids is None else position_ids[:, :width]
        return MaskedBatch(
            input_ids=torch.from_numpy(np.ascontiguousarray(input_ids)),
            masked_positions=torch.from_numpy(positions),
            labels=torch.from_numpy(labels),
            attention_mask=None if attention_mask is None else torch.from_numpy(np.ascontiguousarray(attention_mask)),
            block_ids=torch.from_numpy(block_ids),
            position_ids=None if position_ids is None else torch.from_numpy(np.ascontiguousarray(position_ids)),
        )

    def _nothing_to_predict(self, length: int) -> MaskedBatch:
        nothing = torch.zeros(0, dtype=torch.int64)
        return MaskedBatch(
            input_ids=torch.full((1, length), self.vocabulary.mask_token_id),
            masked_positions=nothing,
            labels=nothing,
            attention_mask=None,
            block_ids=torch.full((1,), -1),
            position_ids=torch.arange(length)[None] if self.document_attention else None,
        )


def _document_positions(blocks: np.ndarray, is_padding: np.ndarray) -> np.ndarray:
    """``[B, L]`` int64: how far each token is from the start of its document, or of its block; 0 at padding."""
    columns = np.arange(blocks.shape[1])
    starts = np.where((blocks & DOCUMENT_START) != 0, columns, 0)
    return np.where(is_padding, 0, columns - np.maximum.accumulate(starts, axis=1))
