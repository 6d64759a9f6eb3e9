"""Tokens and batches by short names, for tests of what is made of them."""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from data import (
    Collator,
    DataConfig,
    Documents,
    MaskedBatch,
    MicroBatches,
    Order,
    TrainLoader,
    build_blocks,
    vocabulary,
)
from data.batches.loader import Place, eval_batches
from data.blocks.tokenization import encoder
from data.blocks.tokens import ID_MASK, WORD_START

CPU = torch.device("cpu")
PROBABILITY = 0.15
Row = tuple[int, bytes, bytes, bytes]  # block id, input ids, positions within the block, labels


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> np.ndarray:
    """All tokens of some texts, ``[T]`` int64."""
    return (encoder(tokenizer, with_words=False)(texts) & ID_MASK).astype(np.int64)


def encode_with_words(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The same, and which of them begin a word."""
    tokens = encoder(tokenizer, with_words=True)(texts)
    return (tokens & ID_MASK).astype(np.int64), (tokens & WORD_START) != 0


def micro_batches_of(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, config: DataConfig, seed: int
) -> MicroBatches:
    """Blocks of some documents, with token masking."""
    collator = Collator(vocabulary(tokenizer), seed, pad_token_id=tokenizer.pad_token_id)
    return MicroBatches(build_blocks([documents], tokenizer, config), collator)


def batch_of(dataset: MicroBatches, block_ids: np.ndarray, epoch: int = 0) -> MaskedBatch:
    """The masked batch of some blocks."""
    return dataset[np.full_like(block_ids, epoch), block_ids, constant(0, len(block_ids))]


def loader_of(
    dataset: MicroBatches,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> TrainLoader:
    """The training loader of one process."""
    order = Order((len(dataset.blocks),), (1.0,), global_batch_size, dataset.collator.seed)
    config = DataConfig(dataloader_num_workers=num_workers)
    return TrainLoader(dataset, order, constant, micro_batch_size, Place(rank, num_processes), config)


def constant(step: int, number: int) -> np.ndarray:
    """The usual masking rate, for each of some blocks."""
    return np.full(number, PROBABILITY)


def as_batch(
    input_ids: torch.Tensor,
    masked_positions: torch.Tensor,
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> MaskedBatch:
    """A batch of these tensors."""
    return MaskedBatch(input_ids, masked_positions, labels, attention_mask, torch.arange(len(input_ids)))


def all_batches(dataset: MicroBatches, batch_size: int, rank: int = 0, num_processes: int = 1) -> list[MaskedBatch]:
    """The evaluation batches of one process."""
    rates = constant(0, len(dataset.blocks))
    return list(eval_batches(dataset, batch_size, rates, Place(rank, num_processes), DataConfig()))


def rows_of(batch: MaskedBatch) -> list[Row]:
    """A batch cut into its blocks, so that batches of other sizes can be compared."""
    length = batch.input_ids.shape[1]
    owner = batch.masked_positions // length
    return [
        (
            int(block_id),
            batch.input_ids[i].numpy().tobytes(),
            (batch.masked_positions[owner == i] - i * length).numpy().tobytes(),
            batch.labels[owner == i].numpy().tobytes(),
        )
        for i, block_id in enumerate(batch.block_ids)
    ]
