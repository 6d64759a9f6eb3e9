"""P2: a batch is a pure function of (seed, epoch, step), for any number of processes and workers."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from data import (
    DataConfig,
    Documents,
    MicroBatches,
)
from data.blocks.store import Blocks
from tests.batches import Row, all_batches, batch_of, loader_of, micro_batches_of, rows_of

CPU = torch.device("cpu")
GLOBAL_BATCH = 10


@pytest.fixture(scope="module")
def dataset(
    documents: tuple[Documents, Documents], tokenizer: PreTrainedTokenizerBase, data_config: DataConfig
) -> MicroBatches:
    return micro_batches_of(documents[0], tokenizer, data_config, seed=7)


def _run(dataset: MicroBatches, processes: int, workers: int, micro: int, start: int, stop: int) -> list[list[Row]]:
    """The global batches of some steps, put together from all processes."""
    loaders = [loader_of(dataset, GLOBAL_BATCH, micro, rank, processes, workers) for rank in range(processes)]
    steps: list[list[Row]] = [[] for _ in range(start, stop)]
    for loader in loaders:
        for step, batches in zip(range(start, stop), loader.steps(start, stop), strict=True):
            if len(loader.plan(step)[0][1]) > 0:  # else a batch with nothing to predict stands in
                steps[step - start] += [row for batch in batches for row in rows_of(batch)]
    return steps


@pytest.fixture(scope="module")
def reference(dataset: MicroBatches) -> list[list[Row]]:
    return _run(dataset, processes=1, workers=0, micro=GLOBAL_BATCH, start=0, stop=60)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_global_batches_do_not_depend_on_processes_and_workers(
    dataset: MicroBatches, reference: list[list[Row]], processes: int, workers: int
) -> None:
    assert _run(dataset, processes, workers, micro=2, start=10, stop=16) == reference[10:16]


@pytest.mark.parametrize("start", [0, 1, 29, 45])
def test_a_loader_starts_at_any_step(dataset: MicroBatches, reference: list[list[Row]], start: int) -> None:
    assert _run(dataset, processes=2, workers=0, micro=3, start=start, stop=start + 5) == reference[start : start + 5]


class _Damaged:
    """Blocks that cannot be read."""

    def __init__(self, blocks: Blocks) -> None:
        self.block_size, self.lengths, self._num_blocks = blocks.block_size, blocks.lengths, len(blocks)

    def __len__(self) -> int:
        return self._num_blocks

    def __getitem__(self, block_ids: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError


def test_workers_end_with_the_loop_though_its_error_is_kept(dataset: MicroBatches) -> None:
    """A traceback holds the frames that hold the workers; these would hold up the exit, because they ignore SIGTERM."""
    damaged = replace(dataset, blocks=_Damaged(dataset.blocks))
    with pytest.raises(ZeroDivisionError) as kept:
        list(loader_of(damaged, 10, 5, num_workers=2).steps(0, 50))
    assert kept.traceback
    assert not multiprocessing.active_children()


def test_masks_differ_between_epochs(dataset: MicroBatches) -> None:
    steps = -(-len(dataset.blocks) // GLOBAL_BATCH)
    epochs = [
        {row[0]: row[1:] for step in _run(dataset, 1, 0, 5, epoch * steps, (epoch + 1) * steps) for row in step}
        for epoch in range(2)
    ]
    assert set(epochs[0]) == set(epochs[1]) == set(range(len(dataset.blocks)))
    same = sum(epochs[0][block] == epochs[1][block] for block in epochs[0])
    assert same < len(epochs[0]) / 10  # blocks of 16 tokens may by chance be masked alike


def test_a_process_without_a_share_gets_a_batch_with_nothing_to_predict(dataset: MicroBatches) -> None:
    loader = loader_of(dataset, global_batch_size=2, micro_batch_size=1, rank=2, num_processes=3)
    ((batch,),) = loader.steps(0, 1)
    assert batch.num_masked == batch.num_tokens == 0
    assert batch.block_ids.tolist() == [-1]


def test_labels_are_the_tokens_at_the_masked_positions(dataset: MicroBatches) -> None:
    ids = np.array([3, 1, 4])
    batch = batch_of(dataset, ids)
    original = torch.from_numpy(dataset.blocks[ids].astype(np.int64)).flatten()
    assert torch.equal(batch.labels, original[batch.masked_positions])
    untouched = torch.ones(original.numel(), dtype=torch.bool)
    untouched[batch.masked_positions] = False
    assert torch.equal(batch.input_ids.flatten()[untouched], original[untouched])
    assert batch.attention_mask is None
    assert batch.input_ids.dtype == batch.labels.dtype == batch.masked_positions.dtype == torch.int64


def test_evaluation_covers_every_block_once_under_the_same_masks(dataset: MicroBatches) -> None:
    def rows(batch_size: int, processes: int) -> list[Row]:
        return [
            row
            for rank in range(processes)
            for batch in all_batches(dataset, batch_size, rank, processes)
            for row in rows_of(batch)
        ]

    first = rows(64, 1)
    assert [row[0] for row in first] == list(range(len(dataset.blocks)))
    assert rows(7, 3) == rows(64, 1) == first
