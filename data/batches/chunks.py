"""Chunks of blocks from logical streams of text: the part of streaming that runs in DataLoader workers.

    logical stream s of S:  documents -> blocks -> chunks of 64 blocks, each with the stream's position after it

`data.batches.streaming` is the other part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from data.batches.hashing import key64
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


class Chunk(NamedTuple):
    """64 blocks of a logical stream.

    Attributes:
        stream: The number of the stream.
        blocks: ``[64, L]`` tokens as they are stored, padded.
        sources: ``[64]``, the source of each block.
        state: The position of the stream after the blocks.
        bad_rows: Rows that were skipped since the last chunk.
    """

    stream: int
    blocks: np.ndarray
    sources: np.ndarray
    state: Arrays
    bad_rows: int


@dataclass(frozen=True)
class StreamCorpus:
    """The text of all streams, and how it becomes blocks.

    Attributes:
        documents: The sources.
        weights: One for each source.
        tokenizer: Encodes the texts.
        config: The settings.
        seed: Of the mixture and of the shuffling.
    """

    documents: Sequence[Documents]
    weights: tuple[float, ...]
    tokenizer: PreTrainedTokenizerBase
    config: DataConfig
    seed: int

    @cached_property
    def form(self) -> TokenFormat:
        """How tokens are stored; cached, because it reads the whole vocabulary."""
        return token_format(self.tokenizer, self.config)


class _Source:
    """The endless blocks of one source in one logical stream, from any block on."""

    def __init__(self, corpus: StreamCorpus, number: int, stream: int, state: Arrays) -> None:
        self._documents = corpus.documents[number]
        self._number = number
        self._config = corpus.config
        self._stream = stream
        self._encode = encoder(corpus.tokenizer, with_words=corpus.config.needs_words)
        self._cursor = START
        self._rest = np.zeros(0, dtype=np.uint32)
        self._num_given = 0  # of the blocks of the texts at the cursor
        if state:
            *cursor, self._num_given = state[f"{number}/cursor"].tolist()
            self._cursor = Cursor(*cursor)
            self._rest = state[f"{number}/rest"]
        self.bad_rows = 0

    def state(self) -> Arrays:
        """The position after the last block, as arrays."""
        cursor = np.array([*self._cursor, self._num_given], dtype=np.int64)
        return {f"{self._number}/cursor": cursor, f"{self._number}/rest": self._rest}

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield flat uint32 blocks."""
        config = self._config
        while True:
            found_tokens = self._cursor != START  # a run before this one may have found some
            for batch in self._documents.batches(config.num_streams, self._stream, self._cursor, at_once=_TEXTS):
                tokens = self._encode(batch.texts)
                blocks, rest = config.group(self._rest, tokens, config.block_size)
                for block in blocks[self._num_given :]:
                    self._num_given += 1
                    yield block
                self._cursor, self._rest, self._num_given = batch.cursor, rest, 0
                self.bad_rows += batch.num_bad
                found_tokens = found_tokens or len(tokens) > 0
            self._cursor = START
            if not found_tokens:
                raise DataError(
                    f"dataset={self._documents.name!r} has no text with a token for logical stream {self._stream} of "
                    f"{config.num_streams}: use fewer --num_streams, or --streaming false"
                )


def chunks(corpus: StreamCorpus, stream: int, state: Arrays) -> Iterator[Chunk]:
    """Yield the endless chunks of a logical stream: from the start (``{}``), or after the state of a chunk."""
    sources = [_Source(corpus, number, stream, state) for number in range(len(corpus.documents))]
    blocks = [source.blocks() for source in sources]
    form = corpus.form
    slot = int(state["slot"][0]) if state else 0
    while True:
        slots = np.arange(slot, slot + _BLOCKS_IN_CHUNK)
        owners, _ = mixture(slots, corpus.weights, key64(corpus.seed, stream))
        chunk = np.full((_BLOCKS_IN_CHUNK, corpus.config.block_size), form.padding, dtype=form.dtype)
        for row, owner in zip(chunk, owners, strict=True):
            block = next(blocks[owner])
            row[: len(block)] = form.store(block)
        slot += _BLOCKS_IN_CHUNK
        after: Arrays = {"slot": np.array([slot])}
        bad_rows = 0
        for source in sources:
            after |= source.state()
            bad_rows, source.bad_rows = bad_rows + source.bad_rows, 0
        yield Chunk(stream, chunk, owners.astype(np.uint16), after, bad_rows)


class Chunks(IterableDataset[Chunk | DataError | None]):
    """Chunks of some logical streams in turn. A user error comes as an item, as in `data.batches.loader.MicroBatches`.

    Each of W workers has every W-th stream. All send the same number of items in each round, so that no stream gets
    ahead.
    """

    def __init__(self, corpus: StreamCorpus, streams: list[int], states: dict[int, Arrays]) -> None:
        self._corpus = corpus
        self._streams = streams
        self._states = states

    def __iter__(self) -> Iterator[Chunk | DataError | None]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        mine = [chunks(self._corpus, s, self._states.get(s, {})) for s in self._streams[worker::num_workers]]
        idle = -(-len(self._streams) // num_workers) - len(mine)
        try:
            while True:
                for stream in mine:
                    yield next(stream)
                yield from [None] * idle
        except DataError as error:
            yield error
        except OSError as error:  # a deleted file, or the network
            yield DataError(f"{type(error).__name__}: {' '.join(str(error).split())}")
