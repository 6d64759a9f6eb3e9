"""Chunks of blocks from logical streams of text: the half of streaming that runs in DataLoader workers.

    logical stream s of S:  documents -> blocks -> chunks of 64 blocks, each with where the stream is after it

`data.batches.streaming` is the other half.
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


class Chunk(NamedTuple):
    """64 blocks of a logical stream.

    Attributes:
        stream: Its number.
        blocks: ``[64, L]``, as they are stored, padded.
        sources: ``[64]``, which source each is of.
        state: Where the stream is after them.
        bad_rows: Rows that were skipped on the way.
    """

    stream: int
    blocks: np.ndarray
    sources: np.ndarray
    state: Arrays
    bad_rows: int


@dataclass(frozen=True)
class StreamCorpus:
    """What streams are made of.

    Attributes:
        documents: The sources.
        weights: One for each source.
        seed: Of the mixture and of the shuffling.
    """

    documents: Sequence[Documents]
    weights: tuple[float, ...]
    tokenizer: PreTrainedTokenizerBase
    config: DataConfig
    seed: int

    @cached_property
    def form(self) -> TokenFormat:
        """How tokens are stored; found once for all streams, because it reads the whole vocabulary."""
        return token_format(self.tokenizer, self.config)


class _Source:
    """The endless blocks of one source in one logical stream, from any block on."""

    def __init__(self, corpus: StreamCorpus, number: int, stream: int, state: Arrays) -> None:
        self._documents = corpus.documents[number]
        self._config = corpus.config
        self._stream = stream
        self._encode = encoder(corpus.tokenizer, with_words=corpus.config.needs_words)
        self._cursor = START
        self._rest = np.zeros(0, dtype=np.uint32)
        self._num_given = 0  # of the blocks of the texts at the cursor
        if state:
            part, position, self._num_given = state[f"{number}/cursor"].tolist()
            self._cursor = Cursor(part, None if position < 0 else position)
            self._rest = state[f"{number}/rest"]
        self.bad_rows = 0

    def state(self, number: int) -> Arrays:
        """Arrays of 64-bit integers and tokens."""
        part, position = self._cursor
        cursor = np.array([part, -1 if position is None else position, self._num_given], dtype=np.int64)
        return {f"{number}/cursor": cursor, f"{number}/rest": self._rest}

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield flat uint32 blocks."""
        group, config = self._config.group, self._config
        while True:
            found_tokens = self._cursor != START  # in the part of the pass before this run, perhaps
            for batch in self._documents.batches(config.num_streams, self._stream, self._cursor, at_once=_TEXTS):
                tokens = self._encode(batch.texts)
                blocks, rest = group(self._rest, tokens, config.block_size)
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


_TEXTS = (100, 50_000)  # rows and characters that are tokenized at once: little, so that the first step comes soon


def chunks(corpus: StreamCorpus, stream: int, state: Arrays) -> Iterator[Chunk]:
    """Yield the chunks of a logical stream without end: from the start (``{}``), or from the state of a chunk on."""
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
        for number, source in enumerate(sources):
            after |= source.state(number)
        bad_rows = sum(source.bad_rows for source in sources)
        for source in sources:
            source.bad_rows = 0
        yield Chunk(stream, chunk, owners.astype(np.uint16), after, bad_rows)


class Chunks(IterableDataset[Chunk | DataError | None]):
    """Chunks of some logical streams in turn. An error comes as an item: raised in a worker, it would be a traceback.

    Each worker has every W-th stream and sends as many items a round as the others, so that no stream gets ahead.
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
        except OSError as error:  # a file that is gone, or the network
            yield DataError(f"{type(error).__name__}: {' '.join(str(error).split())}")
