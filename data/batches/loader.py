"""This process's micro-batches, update by update.

The plan of an update follows from (seed, step) alone, so a loader starts at any step at once. torch's DataLoader gives
the workers, prefetching and pinning; each of its items is a whole micro-batch.
"""

import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.batch import MaskedBatch
from data.batches.collator import Collator
from data.batches.order import Batch, Order, micro_batches
from data.blocks.store import Blocks
from data.config import DataConfig
from data.documents.ranges import DataError


@dataclass(frozen=True)
class MicroBatches(Dataset[MaskedBatch | DataError]):
    """Masked batches by plan: passes, ids and masking rates. The sampler of the DataLoader yields the plans."""

    blocks: Blocks
    collator: Collator

    def __getitem__(self, plan: Batch) -> MaskedBatch | DataError:
        """A user error comes as an item, which `items_of` raises: raised in a worker, it would become a traceback."""
        passes, block_ids, rates = plan
        try:
            return self.collator(self.blocks[block_ids], block_ids, passes, rates)
        except DataError as error:
            return error


class Place(NamedTuple):
    """The process that gets a loader's batches, and its device."""

    rank: int = 0  # of num_processes: they decide this process's contiguous share of each global batch
    num_processes: int = 1
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class TrainLoader:
    """The micro-batches of one process, on its device."""

    dataset: MicroBatches
    order: Order
    rates: Callable[[int, int], np.ndarray]  # (step, number of blocks) -> [N], at which their tokens are chosen
    micro_batch_size: int  # the most blocks in one micro-batch
    place: Place
    config: DataConfig  # gives the number of workers
    source_names: Sequence[str] = ()  # where they are to be counted
    bad_rows: ClassVar[None] = None  # they were counted when the blocks were made

    def plan(self, step: int) -> list[Batch]:
        """This process's micro-batches of an update."""
        passes, ids = self.order.global_batch(step)
        batch = (passes, ids, self.rates(step, len(ids)))
        return micro_batches(batch, self.place.rank, self.place.num_processes, self.micro_batch_size)

    def steps(self, start: int, stop: int) -> Iterator[list[MaskedBatch]]:
        """Yield the micro-batches of the updates ``start`` to ``stop - 1``, one list an update."""
        plans, ahead = itertools.tee(map(self.plan, range(start, stop)))  # workers ask for plans ahead of time
        batches = load(self.dataset, itertools.chain.from_iterable(ahead), self.place.device, self.config)
        for plan in plans:
            yield list(itertools.islice(batches, len(plan)))

    def tokens_by_source(self, step: int) -> np.ndarray:
        """``[S]``: tokens of each source in the updates before ``step``. Rank 0 counts for all; the others return 0."""
        return self.order.draws_by_source(step) * self.dataset.blocks.block_size * (self.place.rank == 0)

    def state(self) -> dict[str, np.ndarray]:
        """Empty: the next step follows from its number."""
        return {}


def eval_batches(
    dataset: MicroBatches, batch_size: int, rates: np.ndarray, place: Place, config: DataConfig
) -> Iterator[MaskedBatch]:
    """Yield this process's share of all blocks, in order, always with the masks of the first pass, at ``[N]`` rates."""
    ids = np.arange(len(dataset.blocks))
    mine = micro_batches((np.zeros_like(ids), ids, rates), place.rank, place.num_processes, batch_size)
    return load(dataset, iter(mine), place.device, config)


def leave_signals_to_the_trainer(worker_id: int) -> None:
    """Ignore the signals that Ctrl-C and schedulers send to every process: the trainer saves, then its workers end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def load(
    dataset: MicroBatches, plans: Iterator[Batch], device: torch.device, config: DataConfig
) -> Iterator[MaskedBatch]:
    """Yield the batches of some plans on the device, prepared by workers if the settings ask for them."""
    with items_of(dataset, config, sampler=plans, pin_memory=device.type == "cuda") as batches:
        for batch in batches:
            yield batch.to(device)


@contextmanager
def items_of(dataset: Dataset[Any], config: DataConfig, **options: Any) -> Iterator[Iterator[Any]]:
    """The items of a dataset from a DataLoader, for a ``with`` block that ends its workers. A DataError is raised.

    The garbage collector would end the workers too late: an error's traceback keeps them alive, and they ignore the
    SIGTERM that Python sends at its exit.
    """
    num_workers = config.dataloader_num_workers
    items = iter(
        DataLoader(
            dataset,
            batch_size=None,  # an item is a whole micro-batch or chunk, a class that is passed on as it is
            num_workers=num_workers,
            timeout=config.dataloader_timeout if num_workers else 0,
            worker_init_fn=leave_signals_to_the_trainer,
            **options,
        )
    )
    try:
        yield map(_raised, items)
    finally:
        if num_workers > 0:
            items._shutdown_workers()  # type: ignore[attr-defined]


def _raised(item: Any) -> Any:
    if isinstance(item, DataError):
        raise item
    return item
