"""Documents, tokenizer, blocks and loaders as the settings name them: what every command starts from."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from data import (
    MASK_RATES,
    Collator,
    DataConfig,
    Documents,
    JoinedBlocks,
    MicroBatches,
    Order,
    StreamCorpus,
    StreamLoader,
    TokenBlocks,
    TrainLoader,
    Vocabulary,
    blocks_per_epoch,
    build_blocks,
    open_documents,
    open_tokenizer,
    vocabulary,
)
from launch.cli import Settings
from train_loop.config import BatchPlan

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


def train_loader(
    settings: Settings,
    corpus: Corpus,
    plan: BatchPlan,
    *,
    rank: int,
    num_processes: int,
    device: torch.device,
    state: dict[str, Any],
) -> TrainLoader | StreamLoader:
    """The loader of a process's micro-batches; when streaming, from where a checkpoint's ``state`` was taken."""
    seed = settings.train.seed
    shared: dict[str, Any] = {
        "mlm_probability": mask_rate(corpus.config, plan.total_steps),
        "micro_batch_size": plan.micro_batch_size,
        "rank": rank,
        "num_processes": num_processes,
        "device": device,
    }
    masks = collator(corpus, corpus.config.masking, seed)
    if not corpus.train:
        sources = StreamCorpus(corpus.documents, corpus.weights, corpus.tokenizer, corpus.config, seed)
        return StreamLoader(sources, masks, global_batch_size=plan.global_batch_size, state=state, **shared)
    blocks = corpus.train[0] if len(corpus.train) == 1 else JoinedBlocks(corpus.train)
    order = Order(tuple(map(len, corpus.train)), corpus.weights, plan.global_batch_size, seed, blocks.lengths)
    if corpus.config.grouping != "line_by_line":
        order = replace(order, lengths=None)  # padded to one length all the same
    return TrainLoader(MicroBatches(blocks, masks), order, config=corpus.config, **shared)


def eval_dataset(corpus: Corpus, seed: int) -> MicroBatches:
    """The evaluation's blocks; tokens are chosen one by one whatever the training does, so that runs compare."""
    return MicroBatches(corpus.eval, collator(corpus, "token", seed))


def collator(corpus: Corpus, masking: str, seed: int) -> Collator:
    """What masks blocks, by the settings."""
    config = corpus.config
    return Collator(
        corpus.vocabulary,
        seed,
        pad_token_id=corpus.tokenizer.pad_token_id or 0,
        masking=masking,
        mask_replace_prob=config.mask_replace_prob,
        random_replace_prob=config.random_replace_prob,
        document_attention=config.document_attention,
        trims=config.grouping == "line_by_line",
    )


def mask_rate(config: DataConfig, total_steps: int) -> Callable[[int], float]:
    """Step -> the rate at which tokens are chosen."""
    rate, start = MASK_RATES[config.mlm_probability_schedule], config.mlm_probability
    end = start if config.mlm_probability_end is None else config.mlm_probability_end
    return lambda step: rate(step / max(1, total_steps - 1), start, end)


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
