"""What the training half knows of the data half: a batch, and who hands out batches."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch


@dataclass(eq=False)  # no tuple, and not frozen: the compiler would look into it, and make a graph for each number
class DocumentBorders:
    """Where the documents of one row are: their lengths on the host, and ``[N + 1]`` int32 borders on the device."""

    lengths: tuple[int, ...]
    borders: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> tuple["DocumentBorders", torch.Tensor]:
        """The borders, and the ``[1, T]`` int64 distance of each token from the start of its document."""
        borders = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        return cls(tuple(lengths), borders.to(device)), positions.to(device)


@dataclass(frozen=True)
class MaskedBatch:
    """A micro-batch of B blocks of L tokens, M of which are to be predicted. Its tensors are int64, weights fp32."""

    input_ids: torch.Tensor  # [B, L], after masking
    masked_positions: torch.Tensor  # [M], in the flattened [B * L], so that no forward has to search for them
    labels: torch.Tensor  # [M], the tokens that were there
    # [B, L], or None where no block is padded: a mask of ones costs a wait for the GPU and the fast attention path.
    attention_mask: torch.Tensor | None
    # [B], on the CPU; for messages and for seeding dropout. -1: see `blank`.
    block_ids: torch.Tensor
    position_ids: torch.Tensor | None = None  # [B, L], from 0 in each document; where attention stays inside documents
    # Of a batch that is one row, [1, T], in which documents stand side by side, in order of length.
    documents: DocumentBorders | None = None
    weights: torch.Tensor | None = None  # [M], what each prediction counts in the loss; None: one each

    @classmethod
    def of_zeros(
        cls, num_blocks: int, length: int, *, num_masked: int, device: torch.device, has_attention_mask: bool = False
    ) -> "MaskedBatch":
        """A batch to try a model with: tokens 0, the first M of which are masked."""
        input_ids = torch.zeros(num_blocks, length, dtype=torch.long, device=device)
        positions = torch.arange(num_masked, device=device)
        mask = torch.ones_like(input_ids) if has_attention_mask else None
        return cls(input_ids, positions, torch.zeros_like(positions), mask, torch.zeros(num_blocks, dtype=torch.long))

    @classmethod
    def blank(cls, device: torch.device) -> "MaskedBatch":
        """A batch of no block and no prediction: a process without a share must join forward and backward of others."""
        return replace(cls.of_zeros(1, 2, num_masked=0, device=device), block_ids=torch.tensor([-1]))

    @property
    def num_masked(self) -> int:
        """M."""
        return self.labels.numel()

    @property
    def num_tokens(self) -> int:
        """B * L, or T; 0 where there is no block."""
        return self.input_ids.numel() if int(self.block_ids[0]) >= 0 else 0

    def pin_memory(self) -> "MaskedBatch":
        """Page-locked, so that `to` can copy without waiting; called by the DataLoader."""
        return self._map(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> "MaskedBatch":
        """On the device, without waiting for the copy; ``block_ids`` stay on the CPU."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "MaskedBatch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        changed: dict[str, Any] = {name: function(value) for name, value in tensors.items() if name != "block_ids"}
        if self.documents is not None:
            changed["documents"] = DocumentBorders(self.documents.lengths, function(self.documents.borders))
        return replace(self, **changed)


class Loader(Protocol):
    """Hands a process its micro-batches, from any update on."""

    @property
    def source_names(self) -> Sequence[str]:
        """The names of the sources of the text."""

    def steps(self, start: int, stop: int) -> Iterator[list[MaskedBatch]]:
        """Yield the micro-batches of the updates ``start`` to ``stop - 1``, one list an update."""

    def state(self) -> dict[str, np.ndarray]:
        """What a loader needs to go on after the last update that was taken; empty where the step says it all."""

    def tokens_by_source(self, step: int) -> np.ndarray:
        """``[S]``: tokens of each source in the updates before ``step`` that this process counts."""

    @property
    def bad_rows(self) -> int | None:
        """Rows that this process skipped so far; None where they are not counted on the way."""
