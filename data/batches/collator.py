"""Blocks to `MaskedBatch`."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data.batch import DocumentBorders, MaskedBatch
from data.batches.masking import Choose, choose_token, needs_words, replacements, uniform
from data.blocks.tokens import DOCUMENT_START, ID_MASK, WORD_START
from data.blocks.vocabulary import Vocabulary


@dataclass(frozen=True)
class Collator:
    """Turns blocks into masked batches. The same blocks always give the same batch."""

    vocabulary: Vocabulary
    seed: int  # of the masks
    pad_token_id: int = 0  # the id at positions where a block has no token
    choose: Choose = choose_token
    shares: tuple[float, float] = (0.8, 0.1)  # of the chosen: that become the mask token, and a random token
    document_attention: bool = False  # attention stays inside documents; else inside blocks
    trims: bool = False  # a batch is as wide as its longest block, rounded up to a multiple of 8, instead of L
    is_flat: bool = False  # a batch is one row, without padding; see `MaskedBatch.documents`

    def __call__(self, blocks: np.ndarray, block_ids: np.ndarray, passes: np.ndarray, rates: np.ndarray) -> MaskedBatch:
        """Mask ``[B, L]`` tokens as they are stored (see `data.blocks.tokens`), by their ``[B]`` ids, passes and rates.

        A pass is how often a block was seen before. If B is 0, the batch is `MaskedBatch.blank`.
        """
        if len(blocks) == 0:
            return MaskedBatch.blank(torch.device("cpu"))
        length = blocks.shape[1]
        is_padding = blocks == np.iinfo(blocks.dtype).max
        input_ids = (blocks & ID_MASK if blocks.dtype == np.uint32 else blocks).astype(np.int64)
        input_ids[is_padding] = self.pad_token_id
        allowed = ~(self.vocabulary.is_special[input_ids] | is_padding)
        # At the full width L: a block's masks must not depend on the lengths of the others.
        draws = uniform(block_ids, length, self.seed, passes)
        word_starts = (blocks & WORD_START) != 0 if needs_words(self.choose) else None
        by_block = getattr(self.choose, "by_block", False)
        positions, labels = self.mask(input_ids, allowed, word_starts, draws, rates if by_block else float(rates[0]))
        weights = None
        if by_block:
            rows = positions // length
            each = allowed.sum(axis=1) / np.maximum(1, np.bincount(rows, minlength=len(blocks)))
            weights = torch.from_numpy(each[rows]).float()
        width = length
        if self.trims:
            width = min(length, -(-int((~is_padding).sum(axis=1).max()) // 8) * 8)
            rows, columns = np.divmod(positions, length)
            positions = rows * width + columns

        def trimmed(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array[:, :width], dtype=np.int64))

        batch = MaskedBatch(
            input_ids=trimmed(input_ids),
            masked_positions=torch.from_numpy(positions),
            labels=torch.from_numpy(labels),
            attention_mask=trimmed(~is_padding) if is_padding.any() else None,
            block_ids=torch.from_numpy(block_ids),
            position_ids=trimmed(_document_positions(blocks, is_padding)) if self.document_attention else None,
            weights=weights,
        )
        return _side_by_side(batch) if self.is_flat else batch

    def mask(
        self, input_ids: np.ndarray, allowed: np.ndarray, word_starts: np.ndarray | None, draws: np.ndarray, rate: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mask ``[B, L]`` tokens in place, see `Choose`; return ``[M]`` flat positions and ``[M]`` labels."""
        positions, kinds = self.choose(input_ids, allowed, word_starts, draws, rate)
        flat = input_ids.reshape(-1)
        labels = flat[positions]
        flat[positions] = replacements(labels, kinds, draws.reshape(-1)[positions], self.vocabulary, self.shares)
        return positions, labels


def _side_by_side(batch: MaskedBatch) -> MaskedBatch:
    """The tokens of a batch in one row, without padding, the shortest documents first."""
    shape = batch.input_ids.shape
    positions = np.arange(shape[1]) if batch.position_ids is None else batch.position_ids.numpy()
    is_token = np.ones(shape, bool) if batch.attention_mask is None else batch.attention_mask.numpy() > 0
    document = (np.broadcast_to(positions, shape)[is_token] == 0).cumsum() - 1  # of each token
    lengths = np.bincount(document)
    order = np.argsort(lengths, kind="stable")
    tokens = np.argsort(np.argsort(order)[document], kind="stable")
    place = np.empty(is_token.size, np.int64)  # in the row, by position in the blocks
    place[np.flatnonzero(is_token)[tokens]] = np.arange(len(tokens))
    documents, position_ids = DocumentBorders.of(lengths[order].tolist())
    return replace(
        batch,
        input_ids=torch.from_numpy(batch.input_ids.numpy()[is_token][tokens][None]),
        masked_positions=torch.from_numpy(place[batch.masked_positions.numpy()]),
        attention_mask=None,
        position_ids=position_ids,
        documents=documents,
    )


def _document_positions(blocks: np.ndarray, is_padding: np.ndarray) -> np.ndarray:
    """``[B, L]`` int64: each token's distance from the start of its document or block; 0 at padding."""
    columns = np.arange(blocks.shape[1])
    starts = np.where((blocks & DOCUMENT_START) != 0, columns, 0)
    return np.where(is_padding, 0, columns - np.maximum.accumulate(starts, axis=1))
