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

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from data.batch import MaskedBatch
from data.batches.collator import Collator
from data.batches.hashing import key64
from data.batches.loader import Place, items_of
from data.batches.order import mixture
from data.blocks.store import token_format
from data.blocks.tokenization import encoder
from data.blocks.tokens import TokenFormat
from data.config import DataConfig
from data.documents.documents import START, Cursor, Documents
from data.documents.ranges import DataError

Arrays = dict[str, np.ndarray]

_BLOCKS_IN_CHUNK = 64
_TEXTS = (100, 50_000)  # rows and characters that are tokenized at once: few, so that the first step starts soon
_OF_A_BLOCK = ("blocks", "ids", "sources")  # what a shuffle buffer holds of each


@dataclass(frozen=True)
class Chunk:
    """64 blocks of a logical stream."""

    stream: int  # its number
    blocks: np.ndarray  # [64, L] tokens as they are stored, padded
    sources: np.ndarray  # [64], the source of each block
    state: Arrays  # the position of the stream after the blocks
    bad_rows: int  # skipped since the last chunk


@dataclass(frozen=True)
class StreamCorpus:
    """The text of all streams, and how it becomes blocks."""

    documents: Sequence[Documents]
    weights: tuple[float, ...]  # one for each of the documents
    tokenizer: PreTrainedTokenizerBase
    config: DataConfig
    seed: int  # of the mixture and of the shuffling

    @cached_property
    def form(self) -> TokenFormat:
        """How tokens are stored; cached, because it reads the whole vocabulary."""
        return token_format(self.tokenizer, self.config)


@dataclass
class _Position:
    """Where a source continues in a logical stream."""

    cursor: Cursor
    rest: np.ndarray  # tokens left over by the texts before the cursor
    num_given: int  # of the blocks of the texts at the cursor
    bad_rows: int = 0  # skipped since the last chunk


def _blocks(corpus: StreamCorpus, documents: Documents, at: _Position, stream: int) -> Iterator[np.ndarray]:
    """Yield the endless flat uint32 blocks of a source in a logical stream. ``at`` moves along."""
    config = corpus.config
    encode = encoder(corpus.tokenizer, with_words=config.needs_words)
    while True:
        found_tokens = at.cursor != START  # a run before this one may have found some
        for batch in documents.batches(config.num_streams, stream, at.cursor, at_once=_TEXTS):
            tokens = encode(batch.texts)
            blocks, rest = config.group(at.rest, tokens, config.block_size)
            for block in blocks[at.num_given :]:
                at.num_given += 1
                yield block
            at.cursor, at.rest, at.num_given = batch.cursor, rest, 0
            at.bad_rows += batch.num_bad
            found_tokens = found_tokens or len(tokens) > 0
        at.cursor = START
        if not found_tokens:
            raise DataError(
                f"dataset={documents.name!r} has no text with a token for logical stream {stream} of "
                f"{config.num_streams}: use fewer --num_streams, or --streaming false"
            )


def chunks(corpus: StreamCorpus, stream: int, state: Arrays) -> Iterator[Chunk]:
    """Yield the endless chunks of a logical stream: from the start (``{}``), or after the state of a chunk."""
    positions = []
    for number in range(len(corpus.documents)):
        *cursor, num_given = state.get(f"stream/{number}/cursor", np.array([*START, 0])).tolist()
        rest = state.get(f"stream/{number}/rest", np.zeros(0, dtype=np.uint32))
        positions.append(_Position(Cursor(*cursor), rest, num_given))
    blocks = [_blocks(corpus, *source, stream) for source in zip(corpus.documents, positions, strict=True)]
    form = corpus.form
    for first in itertools.count(int(state["stream/slot"][0]) if state else 0, _BLOCKS_IN_CHUNK):
        slots = np.arange(first, first + _BLOCKS_IN_CHUNK)
        owners, _ = mixture(slots, corpus.weights, key64(corpus.seed, stream))
        chunk = np.full((_BLOCKS_IN_CHUNK, corpus.config.block_size), np.iinfo(form.dtype).max, form.dtype)
        for row, owner in zip(chunk, owners, strict=True):
            block = next(blocks[owner])
            row[: len(block)] = form.store(block)
        after: Arrays = {"stream/slot": np.array([first + _BLOCKS_IN_CHUNK])}
        bad_rows = 0
        for number, at in enumerate(positions):
            after[f"stream/{number}/cursor"] = np.array([*at.cursor, at.num_given], dtype=np.int64)
            after[f"stream/{number}/rest"] = at.rest
            bad_rows, at.bad_rows = bad_rows + at.bad_rows, 0
        yield Chunk(stream, chunk, owners.astype(np.uint16), after, bad_rows)


@dataclass(frozen=True)
class Chunks(IterableDataset[Chunk | DataError | None]):
    """Chunks of some logical streams in turn. A user error comes as an item, as in `data.batches.loader.MicroBatches`.

    Each of W workers has every W-th stream. All send the same number of items in each round, so that no stream gets
    ahead.
    """

    corpus: StreamCorpus
    streams: list[int]
    states: dict[int, Arrays]  # of each stream, after its last chunk that was used

    def __iter__(self) -> Iterator[Chunk | DataError | None]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        mine = [chunks(self.corpus, s, self.states.get(s, {})) for s in self.streams[worker::num_workers]]
        idle = -(-len(self.streams) // num_workers) - len(mine)
        try:
            while True:
                for stream in mine:
                    yield next(stream)
                yield from [None] * idle
        except DataError as error:
            yield error
        except OSError as error:  # a deleted file, or the network
            yield DataError(f"{type(error).__name__}: {' '.join(str(error).split())}")


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
    rates: Callable[[int, int], np.ndarray]
    blocks_before: Callable[[int], int]  # step -> blocks in the updates before it
    micro_batch_size: int
    place: Place
    state_before: InitVar[Arrays]  # the joined `state` of all processes; empty at the beginning

    def __post_init__(self, state_before: Arrays) -> None:
        self._config = self.corpus.config
        self.source_names = [source.name for source in self.corpus.documents]
        num_streams, num_processes = self._config.num_streams, self.place.num_processes
        if num_streams < num_processes:
            raise ValueError(
                f"num_streams={num_streams} is less than one logical stream for each of {num_processes} processes: "
                f"use --num_streams {num_processes} or more"
            )
        streams = list(range(self.place.rank, num_streams, num_processes))
        self._buffers: dict[int, _ShuffleBuffer] = {}
        for stream in streams:
            prefix = f"{stream}/"
            state = {key.removeprefix(prefix): a for key, a in state_before.items() if key.startswith(prefix)}
            self._buffers[stream] = _ShuffleBuffer(self.corpus, stream, state)
        self._dataset = Chunks(self.corpus, streams, {s: buffer.chunk.state for s, buffer in self._buffers.items()})
        self._received: dict[int, deque[Chunk]] = {stream: deque() for stream in streams}

    def steps(self, start: int, stop: int) -> Iterator[list[MaskedBatch]]:
        """See `Loader`. Raises DataError for text that cannot be read, or a bad result of a user's function."""
        with items_of(self._dataset, self._config) as items:
            for step in range(start, stop):
                slots = range(self.blocks_before(step), self.blocks_before(step + 1))
                drawn = [
                    (*self._buffers[s].draw(partial(self._receive, s, items)), rate)
                    for slot, rate in zip(slots, self.rates(step, len(slots)), strict=True)
                    if (s := slot % self._config.num_streams) in self._buffers
                ]
                cuts = range(0, max(len(drawn), 1), self.micro_batch_size)
                yield [self._collate(drawn[i : i + self.micro_batch_size]) for i in cuts]

    def tokens_by_source(self, step: int) -> np.ndarray:
        """``[S]``: those of the blocks that this process has drawn, without padding."""
        return np.sum([buffer.tokens_by_source for buffer in self._buffers.values()], axis=0)

    @property
    def bad_rows(self) -> int | None:
        """Rows that this process's streams have skipped so far; None if the first bad row ends the run."""
        if self._config.on_bad_row == "stop":
            return None
        return sum(buffer.bad_rows for buffer in self._buffers.values())

    def _collate(self, drawn: list[tuple[np.ndarray, int, float]]) -> MaskedBatch:
        blocks = np.stack([block for block, _, _ in drawn]) if drawn else np.empty((0, self._config.block_size))
        ids = np.array([block_id for _, block_id, _ in drawn], dtype=np.int64)
        batch = self.collator(blocks, ids, np.zeros_like(ids), np.array([rate for _, _, rate in drawn]))
        return (batch.pin_memory() if self.place.device.type == "cuda" else batch).to(self.place.device)

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
