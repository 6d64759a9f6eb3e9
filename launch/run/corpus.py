"""Documents, tokenizer and blocks as the settings name them: what every command starts from."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from data.batches.order import blocks_per_epoch
from data.blocks.store import TokenBlocks, build_blocks
from data.blocks.tokenization import open_tokenizer
from data.blocks.vocabulary import Vocabulary, vocabulary
from data.config import DataConfig
from data.documents.documents import Documents, open_documents
from launch.run.settings import Settings

_STREAMING_EVAL_BLOCKS = 1000


@dataclass(frozen=True)
class Corpus:
    """What the data half hands over.

    Attributes:
        documents: Of training, source by source.
        train: Blocks of each source; none when streaming.
        eval: Blocks to evaluate on.
    """

    config: DataConfig
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    documents: list[Documents]
    train: list[TokenBlocks]
    eval: TokenBlocks

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the sources."""
        return tuple(self.config.mixture.values()) or (1.0,)

    @property
    def blocks_per_epoch(self) -> int | None:
        """Blocks that are seen in an epoch; None when streaming, where nobody has counted them."""
        if not self.train:
            return None
        ends_with_first = self.config.mixture_stopping_strategy == "first_exhausted"
        return blocks_per_epoch(tuple(map(len, self.train)), self.weights, ends_with_first)

    def token_counts(self) -> np.ndarray:
        """``[V]``: how often each token occurs in the training text; not when streaming."""
        return np.sum([source.token_counts() for source in self.train], axis=0)


def open_corpus(settings: Settings) -> Corpus:
    """Documents, tokenizer and blocks; from the cache where they are there.

    Raises:
        ValueError: What is missing or wrong, and what would work.
    """
    # Threads of our own tokenize; the tokenizer's would warn in every loader worker, which is a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    config = replace(settings.data, cache_dir=str(Path(settings.data.cache_dir).expanduser()))
    train_documents, eval_documents = open_documents(config)
    tokenizer = open_tokenizer(config, train_documents, settings.model.model_name_or_path)
    most = config.max_eval_blocks or (_STREAMING_EVAL_BLOCKS if config.streaming else None)
    return Corpus(
        config=config,
        tokenizer=tokenizer,
        vocabulary=vocabulary(tokenizer),
        documents=train_documents,
        train=[] if config.streaming else [build_blocks([source], tokenizer, config) for source in train_documents],
        eval=build_blocks(eval_documents, tokenizer, config, max_blocks=most),
    )


def print_corpus(corpus: Corpus) -> None:
    """Where the tokens of the documents went."""
    named = [*zip((source.name for source in corpus.documents), corpus.train, strict=False), ("eval", corpus.eval)]
    for name, blocks in named:
        counts = blocks.counts
        bad = f", {counts.bad_rows:,} bad rows passed over" if counts.bad_rows else ""
        label = "train" if len(corpus.train) == 1 and blocks is not corpus.eval else name
        print(
            f"{label:<8} {counts.documents:,} documents -> {len(blocks):,} blocks of {blocks.block_size}: "
            f"{counts.kept:,} tokens kept, {counts.dropped:,} dropped, {counts.padded:,} padded{bad}"
        )
    if not corpus.train:
        names = ", ".join(source.name for source in corpus.documents)
        print(f"train    streaming {names} in {corpus.config.num_streams} logical streams")
