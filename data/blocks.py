"""Blocks of tokens on disk: made once, memory-mapped, any of them by index.

A folder ``<cache_dir>/blocks/<fingerprint>/`` holds ``blocks.bin``, the tokens in
the smallest unsigned integer that holds the vocabulary; ``token_counts.npy``; and
``blocks.json``, the shape and the counts. It is written beside and renamed:
complete, or not there.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from data.config import DataConfig
from data.documents import Documents
from data.grouping import group
from data.tokenization import encode, tokenizer_fingerprint, vocab_size

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class BlockCounts:
    """Where the tokens of the documents went: ``kept + dropped`` is all of them, ``padded`` came on top."""

    documents: int
    kept: int
    dropped: int
    padded: int


class TokenBlocks:
    """N blocks of L tokens, memory-mapped.

    Attributes:
        counts: See `BlockCounts`.
        sha256: Of all tokens, in order: the same data, wherever it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "blocks.json").read_text())
        self.counts = BlockCounts(**facts["counts"])
        self.sha256: str = facts["sha256"]
        shape = (facts["num_blocks"], facts["block_size"])
        self._tokens: np.ndarray = (
            np.memmap(folder / "blocks.bin", dtype=facts["dtype"], mode="r", shape=shape)
            if facts["num_blocks"]
            else np.zeros(shape, dtype=facts["dtype"])
        )

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.folder,)  # a worker maps the file again: pickling a memory map copies it

    def __len__(self) -> int:
        return self._tokens.shape[0]

    @property
    def block_size(self) -> int:
        """L."""
        return self._tokens.shape[1]

    def __getitem__(self, block_ids: np.ndarray) -> np.ndarray:
        """``[B, L]``, a copy, in the stored integer type."""
        return self._tokens[block_ids]

    def attention_mask(self, block_ids: np.ndarray) -> np.ndarray | None:
        """``[B, L]`` int64 with 0 at padding, or None if none of these blocks is padded: only the last one can be."""
        is_last = block_ids == len(self) - 1
        if not self.counts.padded or not is_last.any():
            return None
        mask = np.ones((len(block_ids), self.block_size), dtype=np.int64)
        mask[is_last, self.block_size - self.counts.padded :] = 0
        return mask

    def token_counts(self) -> np.ndarray:
        """``[V]`` int64, how often each token occurs in the documents, counted when the blocks were made."""
        return np.load(self.folder / "token_counts.npy", allow_pickle=False)


def build_blocks(documents: Documents, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> TokenBlocks:
    """The blocks of some documents, from the cache or made now.

    Raises:
        ValueError: The documents hold no text, or fewer tokens than one block.
    """
    folder = Path(config.cache_dir) / "blocks" / _fingerprint(documents, tokenizer, config)
    if not (folder / "blocks.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
        try:
            _write(temporary, documents, tokenizer, config)
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / "blocks.json").exists():  # else another process was first, with the same blocks
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    blocks = TokenBlocks(folder)
    if len(blocks) == 0:
        held_out = " held out for evaluation" if documents.held_out else ""
        raise ValueError(
            f"dataset={documents.name!r}: the {blocks.counts.dropped:,} tokens of its {blocks.counts.documents:,} "
            f"documents{held_out} do not fill one block: use a --block_size below {config.block_size}, "
            f"{'a larger --eval_fraction, ' if documents.held_out else ''}or --last_block pad"
        )
    return blocks


def _write(folder: Path, documents: Documents, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
    dtype = np.dtype(np.uint16 if vocab_size(tokenizer) <= 2**16 else np.uint32)
    num_documents = num_blocks = padded = 0
    token_counts = np.zeros(vocab_size(tokenizer), dtype=np.int64)

    def token_batches() -> Iterator[np.ndarray]:
        nonlocal num_documents
        for texts in documents.texts():
            num_documents += len(texts)
            tokens = encode(tokenizer, texts)
            np.add(token_counts, np.bincount(tokens, minlength=len(token_counts)), out=token_counts)
            yield tokens.astype(dtype)

    remainder = np.zeros(0, dtype=dtype)
    digest = hashlib.sha256()
    with (folder / "blocks.bin").open("wb") as file:

        def append(blocks: np.ndarray) -> None:
            nonlocal num_blocks
            content = blocks.tobytes()
            file.write(content)
            digest.update(content)
            num_blocks += len(blocks)

        for blocks, rest in group(token_batches(), config.block_size):
            append(blocks)
            remainder = rest
        if config.last_block == "pad" and len(remainder):
            padded = config.block_size - len(remainder)
            append(np.pad(remainder, (0, padded), constant_values=tokenizer.pad_token_id)[None])
            remainder = remainder[:0]
        file.flush()
        os.fsync(file.fileno())
    kept = num_blocks * config.block_size - padded
    counts = BlockCounts(documents=num_documents, kept=kept, dropped=len(remainder), padded=padded)
    facts = {
        "num_blocks": num_blocks,
        "block_size": config.block_size,
        "dtype": dtype.name,
        "sha256": digest.hexdigest(),
        "counts": asdict(counts),
    }
    np.save(folder / "token_counts.npy", token_counts, allow_pickle=False)
    (folder / "blocks.json").write_text(json.dumps(facts, indent=2))


def _fingerprint(documents: Documents, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> str:
    parts = (
        _FORMAT_VERSION,
        documents.fingerprint,
        tokenizer_fingerprint(tokenizer),
        config.block_size,
        config.last_block,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
