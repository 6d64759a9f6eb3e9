"""Batches made while the text is read: no pass over the text before the first step; memory does not grow with it.

    logical stream s of S:  documents -> blocks -> chunks of 64 blocks   (in a DataLoader worker)
                            chunks -> shuffle buffer -> slots s, s + S, s + 2S, ...  (in the training process)

The text is divided over a fixed number S of logical streams, and update t of G blocks takes slots ``t G`` to
``t G + G - 1`` of their endless interleaving. A process owns the streams ``s % num_processes == rank`` and fills their
slots. So the global batches are the same for any number of processes and workers, and no document is tokenized twice.
No process waits for another's stream: each stream starts its text again at the end.

All state that a run needs to resume is in the training process: the buffers, the rest of the current chunk of each
stream, and the stream's position after that chunk. Workers may be ahead: prefetched chunks that were not used are
produced again after a resume.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, InitVar, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from data.batch import MaskedBatch
from data.batches.chunks import Arrays, Chunk, Chunks, StreamCorpus
from data.batches.collator import Collator
from data.batches.hashing import key64
from data.batches.loader import items_of

_OF_A_BLOCK = ("blocks", "ids", "sources")


class _ShuffleBuffer:
    """A buffer of blocks of one logical stream. Blocks are drawn from it at random, as the seed decides."""

    def __init__(self, corpus: StreamCorpus, stream: int, state: Arrays) -> None:
        config = corpus.config
        self._capacity = max(1, config.shuffle_buffer_size // config.num_streams)
        self._stream, self._num_streams = stream, config.num_streams
        self._key = key64(corpus.seed, stream, 1)
        length, dtype = config.block_size, corpus.form.dtype
        self._rows = np.empty(self._capacity, [("blocks", dtype, length), ("ids", np.int64), ("sources", np.uint16)])
        self._num_drawn, num_made, self.bad_rows = state.get("buffer/counts", np.zeros(3, np.int64)).tolist()
        self._size = num_made - self._num_drawn
        self.tokens_by_source = state.get("buffer/tokens_by_source", np.zeros(len(corpus.documents), np.int64)).copy()
        for name in _OF_A_BLOCK if state else ():
            self._rows[name][: self._size] = state[f"buffer/{name}"]
        blocks, sources = np.empty((0, length), dtype), np.empty(0, np.uint16)
        position = {key: array for key, array in state.items() if key.startswith("stream/")}
        self.chunk = Chunk(stream, state.get("chunk/blocks", blocks), state.get("chunk/sources", sources), position, 0)
        self._num_taken = 0  # of the chunk's blocks

    def state(self) -> Arrays:
        """Copies of everything that the next draws depend on."""
        arrays = {f"buffer/{name}": self._rows[name][: self._size].copy() for name in _OF_A_BLOCK}
        arrays["buffer/tokens_by_source"] = self.tokens_by_source.copy()
        arrays["buffer/counts"] = np.array([self._num_drawn, self._num_drawn + self._size, self.bad_rows])
        arrays["chunk/blocks"] = self.chunk.blocks[self._num_taken :].copy()
        arrays["chunk/sources"] = self.chunk.sources[self._num_taken :].copy()
        return arrays | self.chunk.state

    def draw(self, receive: Callable[[], Chunk]) -> tuple[np.ndarray, int]:
        """Draw a block and its id. Until the buffer is full, two blocks are added for each that is drawn."""
        while self._size < min(self._capacity, self._num_drawn + 2):
            if self._num_taken == len(self.chunk.blocks):
                self.chunk, self._num_taken = receive(), 0
                self.bad_rows += self.chunk.bad_rows
            block, source = self.chunk.blocks[self._num_taken], self.chunk.sources[self._num_taken]
            number = self._num_drawn + self._size  # of the stream's blocks
            self._rows[self._size] = (block, number * self._num_streams + self._stream, source)
            self._num_taken += 1
            self._size += 1
        drawn = key64(self._num_drawn ^ self._key) % self._size
        block, block_id, source = self._rows[drawn].copy()
        self.tokens_by_source[source] += (block != np.iinfo(block.dtype).max).sum()
        self._size -= 1
        self._num_drawn += 1
        self._rows[drawn] = self._rows[self._size]
        return block, int(block_id)


@dataclass
class StreamLoader:
    """The micro-batches of one process, made while the text is read. Else as `data.batches.loader.TrainLoader`.

    Raises ValueError if there are fewer logical streams than processes.
    """

    corpus: StreamCorpus
    collator: Collator
    _: KW_ONLY
    mlm_probability: Callable[[int], float]
    global_batch_size: int
    micro_batch_size: int
    rank: int
    num_processes: int
    device: torch.device
    state_before: InitVar[Arrays]  # the joined `state` of all processes; empty at the beginning

    def __post_init__(self, state_before: Arrays) -> None:
        self._config = self.corpus.config
        self.source_names = [source.name for source in self.corpus.documents]
        if self._config.num_streams < self.num_processes:
            raise ValueError(
                f"num_streams={self._config.num_streams} is less than one logical stream for each of "
                f"{self.num_processes} processes: use --num_streams {self.num_processes} or more"
            )
        streams = list(range(self.rank, self._config.num_streams, self.num_processes))
        self._buffers: dict[int, _ShuffleBuffer] = {}
        for stream in streams:
            prefix = f"{stream}/"
            state = {key.removeprefix(prefix): a for key, a in state_before.items() if key.startswith(prefix)}
            self._buffers[stream] = _ShuffleBuffer(self.corpus, stream, state)
        self._dataset = Chunks(self.corpus, streams, {s: buffer.chunk.state for s, buffer in self._buffers.items()})
        self._received: dict[int, deque[Chunk]] = {stream: deque() for stream in streams}

    def steps(self, start: int, stop: int) -> Iterator[list[MaskedBatch]]:
        """Yield the micro-batches of the updates ``start`` to ``stop - 1``, one list an update.

        Raises DataError if the text cannot be read, or a user's function returns another form than it must.
        """
        with items_of(self._dataset, self._config) as items:
            for step in range(start, stop):
                first = step * self.global_batch_size
                streams = [slot % self._config.num_streams for slot in range(first, first + self.global_batch_size)]
                drawn = [self._buffers[s].draw(partial(self._receive, s, items)) for s in streams if s in self._buffers]
                cuts = range(0, max(len(drawn), 1), self.micro_batch_size)
                yield [self._collate(drawn[i : i + self.micro_batch_size], step) for i in cuts]

    def tokens_by_source(self, step: int) -> np.ndarray:
        """``[S]``: tokens of each source in the blocks that this process has drawn."""
        return np.sum([buffer.tokens_by_source for buffer in self._buffers.values()], axis=0)

    @property
    def bad_rows(self) -> int | None:
        """Rows that this process's streams have skipped so far; None if the first bad row ends the run."""
        if self._config.on_bad_row == "stop":
            return None
        return sum(buffer.bad_rows for buffer in self._buffers.values())

    def _collate(self, drawn: list[tuple[np.ndarray, int]], step: int) -> MaskedBatch:
        blocks = np.stack([block for block, _ in drawn]) if drawn else np.empty((0, self._config.block_size))
        ids = np.array([block_id for _, block_id in drawn], dtype=np.int64)
        batch = self.collator(blocks, ids, np.zeros_like(ids), self.mlm_probability(step))
        return (batch.pin_memory() if self.device.type == "cuda" else batch).to(self.device)

    def _receive(self, stream: int, items: Iterator[Any]) -> Chunk:
        """The next chunk of a stream. Chunks of other streams that come before it are kept for later."""
        while not self._received[stream]:
            item = next(items)
            if item is not None:
                self._received[item.stream].append(item)
        return self._received[stream].popleft()

    def state(self) -> Arrays:
        """The positions of this process's streams after the last update that was taken: ``{"stream/name": array}``."""
        return {f"{s}/{name}": array for s, buffer in self._buffers.items() for name, array in buffer.state().items()}
