"""Makes the batch of an update and prints it: its rows with their marks, its counts, and the tokens of the corpus."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from data.batch import MaskedBatch
from launch.run.corpus import Corpus
from launch.run.loaders import train_loader
from launch.run.settings import Settings
from launch.terminal.marks import Kind, RowWriter, kind_of, mark
from launch.terminal.token_text import shown_token
from train_loop.plan import BatchPlan
from train_loop.watching.columns import say, terminal_columns

_EXAMPLES = {Kind.MASKED: ("the", ""), Kind.REPLACED: ("cat", "blue"), Kind.KEPT: ("sat", "")}
_TOP_TOKENS, _TOP_TOKENS_PER_LINE = 20, 4


def batches_of_step(settings: Settings, corpus: Corpus, plan: BatchPlan, step: int) -> list[MaskedBatch]:
    """The global batch of an update as training makes it, in micro-batches; the first update is 1.

    Raises:
        ValueError: When streaming, some text cannot be read.
    """
    alone = replace(corpus, config=replace(corpus.config, dataloader_num_workers=0))
    loader = train_loader(settings, alone, plan)
    first = step - 1 if corpus.train else 0  # a stream must be read from its beginning
    *_, batches = loader.steps(first, step)
    return batches


def print_rows(batches: list[MaskedBatch], corpus: Corpus, num_rows: int) -> None:
    """Print the first rows of a batch, each below its block's id, with the predicted tokens marked.

    The marks are colours in a terminal that has them, unless NO_COLOR is set (no-color.org).
    """
    columns = terminal_columns()
    colours = columns is not None and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    marks = (f"{mark(kind, *texts, colours=colours)} {kind.name.lower()}" for kind, texts in _EXAMPLES.items())
    say(f"{', '.join(marks)}; ⏎ is a newline, ␣ a space", "to predict: ")
    writer = RowWriter(corpus.tokenizer, corpus.vocabulary.is_special, colours)
    rows = itertools.chain.from_iterable(map(_rows, batches))
    for block_id, labels, seen, predicted in itertools.islice(rows, num_rows):
        text = writer.write(labels, seen, predicted)
        print(f"\nblock {block_id}")
        say(text, "  ")


def _rows(batch: MaskedBatch) -> Iterator[tuple[int, list[int], list[int], list[bool]]]:
    """Yield for each row: block id, tokens of the text, tokens that the model sees, and which are predicted."""
    labels = batch.input_ids.clone()
    labels.view(-1)[batch.masked_positions] = batch.labels
    predicted = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    predicted.view(-1)[batch.masked_positions] = True
    yield from zip(batch.block_ids.tolist(), labels.tolist(), batch.input_ids.tolist(), predicted.tolist(), strict=True)


def print_counts(batches: list[MaskedBatch], corpus: Corpus) -> None:
    """Print how many tokens of the whole batch are predicted, and what the model sees in their place."""
    kinds = Counter[Kind]()
    for batch in batches:
        seen = batch.input_ids.view(-1)[batch.masked_positions]
        for label, token in zip(batch.labels.tolist(), seen.tolist(), strict=True):
            kinds[kind_of(label, token, corpus.vocabulary.mask_token_id)] += 1
    num_blocks = sum(len(batch.block_ids) for batch in batches)
    num_tokens = sum(batch.num_tokens for batch in batches)
    num_special = sum(int(corpus.vocabulary.is_special[batch.input_ids.numpy()].sum()) for batch in batches)
    num_special -= kinds[Kind.MASKED]
    num_padded = sum(int((batch.attention_mask == 0).sum()) for batch in batches if batch.attention_mask is not None)
    num_masked = kinds.total()
    became = ", ".join(f"{kinds[kind]:,} {kind.name.lower()} ({_share(kinds[kind], num_masked)})" for kind in Kind)
    print()
    say(
        f"{num_blocks:,} blocks, {num_tokens:,} tokens: {num_tokens - num_special:,} of text, "
        f"{num_special:,} special ({num_padded:,} padding)",
        "batch    ",
    )
    share = _share(num_masked, num_tokens - num_special)
    say(f"{num_masked:,} tokens, {share} of the text's: {became}", "predicts ")


def print_tokens(corpus: Corpus) -> None:
    """Print the tokens of the training text; shares and entropy are of the tokens that are not special."""
    all_counts = corpus.token_counts()
    counts = np.where(corpus.vocabulary.is_special, 0, all_counts)
    num_tokens, num_special = int(all_counts.sum()), int(all_counts.sum() - counts.sum())
    num_documents = sum(source.counts.documents for source in corpus.train)
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * np.log2(shares)).sum()
    special = f"{num_special:,} special ({_share(num_special, num_tokens)})"
    say(f"{num_tokens:,} in train, {num_tokens / num_documents:.1f} a document; {special}", "tokens   ")
    say(f"{np.count_nonzero(all_counts):,} of {len(all_counts):,} tokens occur", "vocab    ")
    guessed = f"guessed by frequency alone, a perplexity of {2**entropy:.1f}"
    say(f"{entropy:.2f} bits a token: {guessed}", "entropy  ")
    top = np.argsort(-counts, kind="stable")[:_TOP_TOKENS]
    texts = [shown_token(corpus.tokenizer, int(token)) for token in top]
    cells = [f"{text:<10} {_share(counts[token], counts.sum()):>5}" for text, token in zip(texts, top, strict=True)]
    for start in range(0, len(cells), _TOP_TOKENS_PER_LINE):
        line = "  ".join(cells[start : start + _TOP_TOKENS_PER_LINE])
        print(f"{'' if start else 'top':<8} {line}".rstrip())


def _share(part: float, whole: float) -> str:
    return f"{part / max(whole, 1):.1%}"
