"""This process's micro-batches, update by update.

The plan of every update follows from (seed, step) alone, so a loader starts at
any step at once. torch's DataLoader is used for its workers, prefetching and
pinning; each of its items is a whole micro-batch.
"""

import signal
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.blocks import TokenBlocks
from data.collator import MaskedBatch, collate
from data.config import DataConfig
from data.masking import Vocabulary
from data.order import global_batch, micro_batches, share

_Plan = tuple[int, np.ndarray]  # (epoch, block ids) of a micro-batch


@dataclass(frozen=True)
class MicroBatches(Dataset[MaskedBatch]):
    """Masked batches by plan, for a DataLoader whose sampler yields the plans."""

    blocks: TokenBlocks
    vocabulary: Vocabulary
    config: DataConfig
    seed: int

    def __getitem__(self, plan: _Plan) -> MaskedBatch:
        epoch, block_ids = plan
        return collate(self.blocks, block_ids, self.vocabulary, self.config, seed=self.seed, epoch=epoch)


@dataclass(frozen=True)
class TrainLoader:
    """The micro-batches of one process, on its device.

    Attributes:
        dataset: Blocks, masks and seed.
        global_batch_size: Blocks per update, over all processes.
        micro_batch_size: At most this many blocks in one micro-batch.
        rank, num_processes: Which contiguous share of each global batch is this process's.
    """

    dataset: MicroBatches
    global_batch_size: int
    micro_batch_size: int
    rank: int
    num_processes: int
    device: torch.device

    def plan(self, step: int) -> list[_Plan]:
        """Epoch and block ids of each of this process's micro-batches of an update."""
        epoch, block_ids = global_batch(step, len(self.dataset.blocks), self.global_batch_size, self.dataset.seed)
        mine = share(block_ids, self.rank, self.num_processes)
        return [(epoch, ids) for ids in micro_batches(mine, self.micro_batch_size)]

    def steps(self, start: int, stop: int) -> Iterator[list[MaskedBatch]]:
        """Yield the micro-batches of the updates ``start`` to ``stop - 1``, one list an update."""
        counts: deque[int] = deque()

        def plans() -> Iterator[_Plan]:
            for step in range(start, stop):
                plan = self.plan(step)
                counts.append(len(plan))
                yield from plan

        # Workers ask for plans ahead of time, so a step's count is always there before its last batch.
        batches = load(self.dataset, plans(), self.device)
        for first in batches:
            yield [first, *(next(batches) for _ in range(counts.popleft() - 1))]


def eval_batches(
    dataset: MicroBatches, batch_size: int, rank: int, num_processes: int, device: torch.device
) -> Iterator[MaskedBatch]:
    """Yield this process's share of all blocks, in order, always under the masks of epoch 0."""
    mine = share(np.arange(len(dataset.blocks)), rank, num_processes)
    return load(dataset, ((0, ids) for ids in micro_batches(mine, batch_size)), device)


def _leave_signals_to_the_trainer(worker_id: int) -> None:
    """Ctrl-C and cluster schedulers signal every process: workers go on, so that the trainer can save first.

    They end when the trainer does.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load(dataset: MicroBatches, plans: Iterator[_Plan], device: torch.device) -> Iterator[MaskedBatch]:
    """Yield the batches of some plans on the device, prepared by workers where the settings ask for them."""
    num_workers = dataset.config.dataloader_num_workers
    loader = DataLoader(
        dataset,
        batch_size=None,  # an item is a micro-batch already
        sampler=plans,
        num_workers=num_workers,
        timeout=dataset.config.dataloader_timeout if num_workers else 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    for batch in loader:
        yield batch.to(device)
