"""Blocks of tokens on disk: built once, memory-mapped, any of them by index.

A folder ``<cache_dir>/blocks/<fingerprint>/`` holds ``blocks.bin``, the tokens without padding (see
`data.blocks.tokens`); ``lengths.npy`` if blocks differ in length; ``token_counts.npy``; and ``blocks.json``, the shape
and the counts. One process builds it under a lock, in a temporary folder that is then renamed: it is complete, or does
not exist. Blocks that were damaged later are built again.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from data.blocks.tokenization import encoder, tokenizer_fingerprint
from data.blocks.tokens import ID_MASK, TokenFormat
from data.blocks.vocabulary import vocab_size
from data.config import DataConfig
from data.cores import available_cores
from data.documents.documents import Documents, TextBatch

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 3
# What `TokenBlocks` raises if the folder does not exist or is damaged.
_NOT_WHOLE = (FileNotFoundError, EOFError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class BlockCounts:
    """What became of the tokens of the documents: each is kept or dropped. ``padded`` counts the padding.

    ``bytes`` is the size of the documents' text in UTF-8.
    """

    documents: int
    bytes: int
    kept: int
    dropped: int
    padded: int
    bad_rows: int


class TokenBlocks:
    """N blocks of at most L tokens of one source, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "blocks.json").read_text())
        self.counts = BlockCounts(**facts["counts"])
        self.sha256: str = facts["sha256"]  # of all blocks, in order: the same data has the same hash in any folder
        self.block_size: int = facts["block_size"]  # L
        self._tokens = np.zeros(0, facts["dtype"])
        if self.counts.kept:  # an empty file cannot be mapped; a plain array, because indexing a memmap is slower
            path, num_tokens = folder / "blocks.bin", (self.counts.kept,)
            self._tokens = np.asarray(np.memmap(path, self._tokens.dtype, "r", shape=num_tokens))
        # [V] int64, how often each token occurs in the documents.
        self.token_counts: np.ndarray = np.load(folder / "token_counts.npy", allow_pickle=False)
        self.lengths: np.ndarray | None = None  # [N] tokens in each block, or None if all have L
        if self.counts.padded:
            self.lengths = np.load(folder / "lengths.npy", allow_pickle=False)
            self._starts = np.cumsum(self.lengths) - self.lengths

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.folder,)  # a worker maps the file again: pickling a memory map would copy it

    def __len__(self) -> int:
        return (self.counts.kept + self.counts.padded) // self.block_size

    def __getitem__(self, block_ids: np.ndarray) -> np.ndarray:
        """``[B, L]``: a copy of tokens as they are stored; the largest integer where a block is shorter than L."""
        if self.lengths is None:
            return self._tokens.reshape(-1, self.block_size)[block_ids]
        out = np.full((len(block_ids), self.block_size), np.iinfo(self._tokens.dtype).max, self._tokens.dtype)
        for row, start, length in zip(out, self._starts[block_ids], self.lengths[block_ids], strict=True):
            row[:length] = self._tokens[start : start + length]
        return out


class JoinedBlocks:
    """The blocks of several sources, one after the other; else as `TokenBlocks`."""

    def __init__(self, sources: Sequence[TokenBlocks]) -> None:
        self.sources = list(sources)
        self.block_size = sources[0].block_size
        self.first_ids = np.cumsum([0, *map(len, sources)])  # [S + 1], the id of each source's first block, and N
        self.lengths = None
        if any(source.lengths is not None for source in sources):
            lengths = [np.full(len(s), self.block_size) if s.lengths is None else s.lengths for s in sources]
            self.lengths = np.concatenate(lengths)

    def __len__(self) -> int:
        return int(self.first_ids[-1])

    def __getitem__(self, block_ids: np.ndarray) -> np.ndarray:
        """See `TokenBlocks`."""
        owner = np.searchsorted(self.first_ids, block_ids, side="right") - 1
        out = np.empty((len(block_ids), self.block_size), dtype=self.sources[0][block_ids[:0]].dtype)
        for i in np.unique(owner):
            mine = owner == i
            out[mine] = self.sources[i][block_ids[mine] - self.first_ids[i]]
        return out


Blocks = TokenBlocks | JoinedBlocks


def token_format(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> TokenFormat:
    """How tokens are stored under these settings."""
    return TokenFormat(vocab_size(tokenizer), keeps_flags=config.document_attention or config.needs_words)


def build_blocks(
    documents: Sequence[Documents],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    max_blocks: int | None = None,
) -> TokenBlocks:
    """The blocks of some documents, from the cache or built now; at most the first ``max_blocks`` of them.

    Raises ValueError if the documents hold no text, or fewer tokens than one block.
    """
    folder = Path(config.cache_dir).expanduser() / "blocks" / _fingerprint(documents, tokenizer, config, max_blocks)
    try:
        blocks = TokenBlocks(folder)
    except _NOT_WHOLE:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # other processes wait here, then find the blocks
            try:
                blocks = TokenBlocks(folder)
            except _NOT_WHOLE as error:
                if folder.exists():
                    logger.warning("%s is damaged and made again (%s: %s)", folder, type(error).__name__, error)
                with _replacing(folder) as temporary:
                    _write(temporary, documents, tokenizer, config, max_blocks)
                blocks = TokenBlocks(folder)
    if len(blocks) == 0:
        held_out = any(source.held_out for source in documents)
        raise ValueError(
            f"dataset={', '.join(source.name for source in documents)!r}: the {blocks.counts.dropped:,} tokens of its "
            f"{blocks.counts.documents:,} documents{' held out for evaluation' if held_out else ''} do not fill one "
            f"block: use a --block_size below {config.block_size}, "
            f"{'a larger --eval_fraction, ' if held_out else ''}or --last_block pad"
        )
    return blocks


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder for the files, which replaces ``folder`` if the ``with`` block ends without an error."""
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a preparation that was killed
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    folder: Path,
    documents: Sequence[Documents],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    max_blocks: int | None,
) -> None:
    """Write the files of the folder."""
    form = token_format(tokenizer, config)
    encode = encoder(tokenizer, with_words=config.needs_words)
    most = sys.maxsize if max_blocks is None else max_blocks
    lengths: list[int] = []
    num_documents = num_bytes = num_bad = 0
    token_counts = np.zeros(form.vocab_size, dtype=np.int64)
    rest = np.zeros(0, dtype=np.uint32)
    name = ", ".join(source.name for source in documents)
    bar = tqdm(desc=f"tokenizing {name}", unit=" tokens", unit_scale=True, disable=None, leave=False)
    with bar, (folder / "blocks.bin").open("w+b") as file:
        batches = itertools.chain.from_iterable(source.batches() for source in documents)
        for batch, tokens in _encoded(batches, encode):
            num_documents += len(batch.texts)
            num_bytes += sum(len(text.encode()) for text in batch.texts)
            num_bad += batch.num_bad
            bar.update(len(tokens))
            token_counts += np.bincount(tokens & ID_MASK, minlength=len(token_counts))
            blocks, rest = config.group(rest, tokens, config.block_size)
            lengths += _append(file, form, blocks[: most - len(lengths)])
            if len(lengths) == most:
                break
        if config.last_block == "pad" or config.grouping == "pack":  # the rest of a user's grouping may be long
            blocks = [rest[i : i + config.block_size] for i in range(0, len(rest), config.block_size)]
            lengths += _append(file, form, blocks[: most - len(lengths)])
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
    kept = sum(lengths)
    dropped, padded = int(token_counts.sum()) - kept, len(lengths) * config.block_size - kept
    counts = BlockCounts(num_documents, num_bytes, kept, dropped, padded, num_bad)
    np.save(folder / "token_counts.npy", token_counts, allow_pickle=False)
    if counts.padded:
        array = np.array(lengths, dtype=np.int64)
        digest.update(array.tobytes())
        np.save(folder / "lengths.npy", array, allow_pickle=False)
    facts = {"block_size": config.block_size, "dtype": form.dtype.name, "sha256": digest.hexdigest()}
    facts["counts"] = asdict(counts)
    (folder / "blocks.json").write_text(json.dumps(facts, indent=2))


def _append(file: BinaryIO, form: TokenFormat, blocks: Sequence[np.ndarray]) -> list[int]:
    """Write blocks without padding, and return their lengths."""
    if blocks:
        file.write(form.store(np.concatenate(blocks)).tobytes())
    return list(map(len, blocks))


def _encoded(
    batches: Iterable[TextBatch], encode: Callable[[list[str]], np.ndarray]
) -> Iterator[tuple[TextBatch, np.ndarray]]:
    """Encode batches in order, in one thread per core: the tokenizer releases Python's lock."""
    num_threads = available_cores()
    pending: deque[Future[tuple[TextBatch, np.ndarray]]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        for batch in batches:
            pending.append(threads.submit(lambda batch: (batch, encode(batch.texts)), batch))
            if len(pending) > num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _fingerprint(
    documents: Sequence[Documents], tokenizer: PreTrainedTokenizerBase, config: DataConfig, max_blocks: int | None
) -> str:
    shape = (config.block_size, getattr(config.group, "sha256", config.grouping), config.last_block, max_blocks)
    flags = (config.document_attention, config.needs_words)
    sources = [source.fingerprint for source in documents]
    parts = (_FORMAT_VERSION, sources, tokenizer_fingerprint(tokenizer), shape, flags)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
