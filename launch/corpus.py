"""Documents, tokenizer and blocks as the settings name them: what every command that reads text starts from."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data import TokenBlocks, Vocabulary, build_blocks, open_documents, open_tokenizer, vocabulary
from launch.cli import Settings


@dataclass(frozen=True)
class Corpus:
    """What the data half hands over."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    train: TokenBlocks
    eval: TokenBlocks


def open_corpus(settings: Settings) -> Corpus:
    """Documents, tokenizer and blocks; from the cache where they are there.

    Raises:
        ValueError: What is missing or wrong, and what would work.
    """
    config = replace(settings.data, cache_dir=str(Path(settings.data.cache_dir).expanduser()))
    train_documents, eval_documents = open_documents(config)
    tokenizer = open_tokenizer(config, train_documents, settings.model.model_name_or_path)
    return Corpus(
        tokenizer=tokenizer,
        vocabulary=vocabulary(tokenizer),
        train=build_blocks(train_documents, tokenizer, config),
        eval=build_blocks(eval_documents, tokenizer, config),
    )


def print_corpus(corpus: Corpus) -> None:
    """Where the tokens of the documents went."""
    for name, blocks in (("train", corpus.train), ("eval", corpus.eval)):
        counts = blocks.counts
        print(
            f"{name:<8} {counts.documents:,} documents -> {len(blocks):,} blocks of {blocks.block_size}: "
            f"{counts.kept:,} tokens kept, {counts.dropped:,} dropped, {counts.padded:,} padded"
        )
