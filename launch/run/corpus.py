"""Opens the documents, the tokenizer and the blocks that the settings name: what every command starts from."""

import os
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from data.batches.order import blocks_per_epoch
from data.blocks.store import TokenBlocks, build_blocks
from data.blocks.tokenization import open_tokenizer
from data.blocks.vocabulary import Vocabulary, vocabulary
from data.config import PYTHON_DOCS, DataConfig
from data.documents.documents import Documents, open_documents
from launch.run.settings import Settings
from train_loop.config import AUTO_PROBES
from train_loop.inference.probes import choose_probes
from train_loop.sharing.locate import require_hub
from train_loop.watching.columns import say

_STREAMING_EVAL_BLOCKS = 1000


@dataclass(frozen=True)
class Corpus:
    """The text of a run, ready to be made into batches."""

    config: DataConfig
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    documents: list[Documents]  # of each source
    held_out: list[Documents]  # to evaluate on
    train: list[TokenBlocks]  # of each source; empty when streaming or not training
    eval: TokenBlocks

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each source."""
        return tuple(self.config.mixture.values()) or (1.0,)

    @property
    def blocks_per_epoch(self) -> int | None:
        """Blocks in an epoch; None when streaming, where they are not counted."""
        if not self.train:
            return None
        ends_with_first = self.config.mixture_stopping_strategy == "first_exhausted"
        return blocks_per_epoch(tuple(map(len, self.train)), self.weights, ends_with_first)

    @property
    def eval_tokens_per_byte(self) -> float:
        """Tokens in a byte of the evaluation text, without special tokens, which nobody has to predict."""
        return self.eval.token_counts[~self.vocabulary.is_special].sum() / self.eval.counts.bytes

    def token_counts(self) -> np.ndarray:
        """``[V]``: how often each token occurs in the training text; not when streaming."""
        return np.sum([source.token_counts for source in self.train], axis=0)


def open_corpus(settings: Settings, *, trains: bool = True, tokenizer: PreTrainedTokenizerBase | None = None) -> Corpus:
    """Open the corpus, from the cache where it is there, perhaps without blocks to train on, or with a tokenizer given.

    Raises ValueError for what is missing or wrong.
    """
    # Our own threads tokenize. The tokenizer's threads would warn in every loader worker, which is a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    config = settings.data
    for name in {*(config.mixture or (config.dataset,))} - {PYTHON_DOCS}:
        require_hub(name, "dataset")
    for name in filter(None, (config.tokenizer_name_or_path, settings.model.model_name_or_path)):
        require_hub(name)
    train, evaluation = open_documents(config)
    tokenizer = tokenizer or open_tokenizer(config, train, settings.model.model_name_or_path)
    most = config.max_eval_blocks or (_STREAMING_EVAL_BLOCKS if config.streaming else None)
    return Corpus(
        config=config,
        tokenizer=tokenizer,
        vocabulary=vocabulary(tokenizer),
        documents=train,
        held_out=evaluation,
        train=[] if config.streaming or not trains else [build_blocks([source], tokenizer, config) for source in train],
        eval=build_blocks(evaluation, tokenizer, config, max_blocks=most),
    )


def with_probes(settings: Settings, corpus: Corpus) -> Settings:
    """The settings with sentences of the held-out text where ``probe`` is auto."""
    if settings.train.probe != AUTO_PROBES:
        return settings
    texts = (text for source in corpus.held_out for batch in source.texts() for text in batch)
    return replace(settings, train=replace(settings.train, probe=choose_probes(texts, corpus.tokenizer)))


def print_corpus(corpus: Corpus) -> None:
    """Print where the tokens of the documents went."""
    names = ["train"] if len(corpus.train) == 1 else [source.name for source in corpus.documents]
    for name, blocks in [*zip(names, corpus.train, strict=False), ("eval", corpus.eval)]:  # no train when streaming
        counts = blocks.counts
        bad = f", {counts.bad_rows:,} bad rows skipped" if counts.bad_rows else ""
        made = f"{counts.documents:,} documents -> {len(blocks):,} blocks of {blocks.block_size}"
        tokens = f"{counts.kept:,} tokens kept, {counts.dropped:,} dropped, {counts.padded:,} padded"
        say(f"{made}: {tokens}{bad}", f"{name:<8} ")
    if not corpus.train:
        say(f"streaming {', '.join(names)} in {corpus.config.num_streams} logical streams", "train    ")
