"""Blocks to `MaskedBatch`: the one thing that the training half knows of the data half."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data.blocks import TokenBlocks
from data.config import DataConfig
from data.masking import Vocabulary, choose_tokens, replacements, uniform


@dataclass(frozen=True)
class MaskedBatch:
    """A micro-batch of B blocks of L tokens, M of which are to be predicted.

    Attributes:
        input_ids: ``[B, L]`` int64, after masking.
        masked_positions: ``[M]`` int64, positions in the flattened ``[B * L]``,
            so that no forward has to search for them.
        labels: ``[M]`` int64, the tokens that were there.
        attention_mask: ``[B, L]`` int64, or None where no block is padded: a mask
            of ones costs a wait for the GPU and the fast attention path.
        block_ids: ``[B]`` int64, on the CPU; for messages and for seeding dropout.
        position_ids: ``[B, L]`` int64, counted from 0 in each document of a block, so
            that a 0 begins a document; 0 where a block is padded. None where a whole
            block attends to itself.
    """

    input_ids: torch.Tensor
    masked_positions: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor | None
    block_ids: torch.Tensor
    position_ids: torch.Tensor | None = None

    @property
    def num_masked(self) -> int:
        """M."""
        return self.labels.numel()

    @property
    def num_tokens(self) -> int:
        """B * L."""
        return self.input_ids.numel()

    def pin_memory(self) -> "MaskedBatch":
        """Page-locked, so that `to` can copy without waiting; called by the DataLoader."""
        return self._map(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> "MaskedBatch":
        """On the device, without waiting for the copy; ``block_ids`` stay on the CPU."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "MaskedBatch":
        return MaskedBatch(
            input_ids=function(self.input_ids),
            masked_positions=function(self.masked_positions),
            labels=function(self.labels),
            attention_mask=None if self.attention_mask is None else function(self.attention_mask),
            block_ids=self.block_ids,
            position_ids=None if self.position_ids is None else function(self.position_ids),
        )


def collate(
    blocks: TokenBlocks, block_ids: np.ndarray, vocabulary: Vocabulary, config: DataConfig, *, seed: int, epoch: int
) -> MaskedBatch:
    """The masked batch of some blocks in some epoch: the same whoever asks for it.

    Args:
        block_ids: ``[B]``; may be empty. Then the batch is the first block with
            nothing to predict, so that a process without a share has a forward
            and backward to take part with.
    """
    ids = block_ids if len(block_ids) else np.zeros(1, dtype=np.int64)
    input_ids = blocks[ids].astype(np.int64)
    draws = uniform(ids, blocks.block_size, seed, epoch)
    probability = config.mlm_probability
    positions = choose_tokens(input_ids, draws, vocabulary, probability)[: None if len(block_ids) else 0]
    flat = input_ids.reshape(-1)
    labels = flat[positions]
    flat[positions] = replacements(
        labels,
        draws.reshape(-1)[positions] / probability,
        vocabulary,
        config.mask_replace_prob,
        config.random_replace_prob,
    )
    attention_mask = blocks.attention_mask(ids)
    return MaskedBatch(
        input_ids=torch.from_numpy(input_ids),
        masked_positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        attention_mask=None if attention_mask is None else torch.from_numpy(attention_mask),
        block_ids=torch.from_numpy(ids),
    )
