"""Prints a masked batch: its rows with their marks, its counts, and the tokens of the corpus."""

import itertools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch

from data.batch import MaskedBatch
from launch.run.corpus import Corpus
from launch.terminal.marks import Kind, RowWriter, kind_of, mark, wrap
from launch.terminal.token_text import token_text, visible

_TOP_TOKENS, _TOP_TOKENS_PER_LINE = 20, 5


def print_rows(batches: list[MaskedBatch], corpus: Corpus, num_rows: int) -> None:
    """Print the first rows of a batch, each below its block's id, with the predicted tokens marked."""
    colours = has_colours()
    writer = RowWriter(corpus.tokenizer, corpus.vocabulary.is_special, colours)
    print(legend(colours=colours))
    for block_id, labels, seen, predicted in itertools.islice(
        itertools.chain.from_iterable(map(rows, batches)), num_rows
    ):
        text = writer.write(labels, seen, predicted)
        print(f"\nblock {block_id}")
        print(wrap(text, shutil.get_terminal_size().columns, "  ") if sys.stdout.isatty() else f"  {text}")


def rows(batch: MaskedBatch) -> Iterator[tuple[int, list[int], list[int], list[bool]]]:
    """Yield for each row: block id, tokens of the text, tokens that the model sees, and which are predicted."""
    labels = batch.input_ids.clone()
    labels.view(-1)[batch.masked_positions] = batch.labels
    predicted = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    predicted.view(-1)[batch.masked_positions] = True
    yield from zip(batch.block_ids.tolist(), labels.tolist(), batch.input_ids.tolist(), predicted.tolist(), strict=True)


def has_colours() -> bool:
    """Whether the output is a terminal with colours, and NO_COLOR is not set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def legend(*, colours: bool) -> str:
    """A line that says what the marks mean."""
    examples = {Kind.MASKED: ("the", ""), Kind.REPLACED: ("cat", "blue"), Kind.KEPT: ("sat", "")}
    marks = (f"{mark(kind, *texts, colours=colours)} {kind.name.lower()}" for kind, texts in examples.items())
    return f"to predict: {', '.join(marks)}; ⏎ is a newline, ␣ a space"


def print_counts(batches: list[MaskedBatch], corpus: Corpus) -> None:
    """Print how many tokens of the whole batch are predicted, and what the model sees in their place."""
    num_blocks = num_tokens = num_special = num_padded = 0
    kinds = Counter[Kind]()
    for batch in batches:
        seen = batch.input_ids.view(-1)[batch.masked_positions]
        for label, token in zip(batch.labels.tolist(), seen.tolist(), strict=True):
            kinds[kind_of(label, token, corpus.vocabulary.mask_token_id)] += 1
        num_blocks += len(batch.block_ids)
        num_tokens += batch.num_tokens
        num_special += int(corpus.vocabulary.is_special[batch.input_ids.numpy()].sum())
        num_padded += 0 if batch.attention_mask is None else int((batch.attention_mask == 0).sum())
    num_special -= kinds[Kind.MASKED]
    num_masked = kinds.total()
    became = ", ".join(f"{kinds[kind]:,} {kind.name.lower()} ({_share(kinds[kind], num_masked)})" for kind in Kind)
    print(
        f"\nbatch    {num_blocks:,} blocks, {num_tokens:,} tokens: {num_tokens - num_special:,} of text, "
        f"{num_special:,} special ({num_padded:,} padding)\n"
        f"predicts {num_masked:,} tokens, {_share(num_masked, num_tokens - num_special)} of the text's: {became}"
    )


def print_tokens(corpus: Corpus) -> None:
    """Print the tokens of the training text; shares and entropy leave special tokens out."""
    all_counts = corpus.token_counts()
    counts = np.where(corpus.vocabulary.is_special, 0, all_counts)
    num_tokens, num_special = int(all_counts.sum()), int(all_counts.sum() - counts.sum())
    num_documents = sum(source.counts.documents for source in corpus.train)
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * np.log2(shares)).sum()
    print(
        f"tokens   {num_tokens:,} in train, {num_tokens / num_documents:.1f} a document; "
        f"{num_special:,} special ({_share(num_special, num_tokens)})\n"
        f"vocab    {np.count_nonzero(all_counts):,} of {len(all_counts):,} tokens occur\n"
        f"entropy  {entropy:.2f} bits a token: guessed by frequency alone, a perplexity of {2**entropy:.1f}"
    )
    top = np.argsort(-counts, kind="stable")[:_TOP_TOKENS].tolist()
    for start in range(0, len(top), _TOP_TOKENS_PER_LINE):
        line = (_frequency(corpus, token, counts) for token in top[start : start + _TOP_TOKENS_PER_LINE])
        print(f"{'' if start else 'top':<8} {'  '.join(line)}".rstrip())


def _frequency(corpus: Corpus, token: int, counts: np.ndarray) -> str:
    text = visible(token_text(corpus.tokenizer, token)).replace(" ", "␣")
    return f"{text:<10} {_share(counts[token], counts.sum()):>5}"


def _share(part: float, whole: float) -> str:
    return f"{part / max(whole, 1):.1%}"
