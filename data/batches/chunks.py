"""Chunks of blocks from logical streams of text: the part of `data.batches.streaming` in DataLoader workers."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

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
