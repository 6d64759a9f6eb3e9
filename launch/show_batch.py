"""Show what the model sees: ``python -m launch.show_batch --recipe quickstart --step 1``."""

import io
import itertools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from data.batch import MaskedBatch
from launch.run.corpus import Corpus, open_corpus, print_corpus
from launch.run.loaders import train_loader
from launch.run.settings import Command, Settings, fail, parse_settings
from launch.terminal.marks import Kind, RowWriter, kind_of, mark, wrap
from launch.terminal.token_text import token_text, visible
from train_loop.plan import BatchPlan, plan_batches

COMMAND = Command(
    prog="python -m launch.show_batch",
    description="Print the batch of one update as a run sees it, without a model and without the updates before it; "
    "then what the corpus is made of.",
    options={
        "step": {"type": int, "default": 1, "metavar": "N", "help": "Which update; the first is 1, the default."},
        "rows": {"type": int, "default": 8, "metavar": "N", "help": "How many of its blocks to print. Default: 8."},
        "num_processes": {
            "type": int,
            "default": 1,
            "metavar": "N",
            "help": "Processes of the run, which matter only where gradient_accumulation_steps makes the batch. "
            "Default: 1.",
        },
    },
)
_TOP_TOKENS, _TOP_TOKENS_PER_LINE = 20, 5


def main(arguments: list[str]) -> None:
    """Print the batch and the corpus; exit 2 with one line for what the user can mend."""
    settings, options = parse_settings(arguments, COMMAND)
    try:
        for name, smallest in (("step", 1), ("rows", 0), ("num_processes", 1)):
            if (value := getattr(options, name)) < smallest:
                raise ValueError(f"{name}={value} must be {smallest} or more")
        corpus = open_corpus(settings)
        plan = plan_batches(settings.train, corpus.blocks_per_epoch, options.num_processes)
        if options.step > plan.total_steps:
            raise ValueError(f"step={options.step} is beyond this run's last update, {plan.total_steps}")
        batches = batches_of_step(settings, corpus, plan, options.step)
    except (ValueError, OSError) as error:
        fail(error)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the output is not Unicode: any text can come
    epoch = f", epoch {(options.step - 1) // plan.steps_per_epoch + 1}" if plan.steps_per_epoch else ""
    print(f"update {options.step:,} of {plan.total_steps:,}{epoch}")
    print_rows(batches, corpus, options.rows)
    print_counts(batches, corpus)
    print()
    print_corpus(corpus)
    if corpus.train:
        print_tokens(corpus)


def batches_of_step(settings: Settings, corpus: Corpus, plan: BatchPlan, step: int) -> list[MaskedBatch]:
    """The global batch of an update, counted from 1, in micro-batches, made as training makes it.

    Raises:
        ValueError: When streaming, text that cannot be read.
    """
    alone = replace(corpus, config=replace(corpus.config, dataloader_num_workers=0))
    loader = train_loader(settings, alone, plan, rank=0, num_processes=1, device=torch.device("cpu"), state={})
    first = step - 1 if corpus.train else 0  # a stream must be read up to there
    *_, batches = loader.steps(first, step)
    return batches


def print_rows(batches: list[MaskedBatch], corpus: Corpus, num_rows: int) -> None:
    """The first rows of a batch, each under its block's id, with its predicted tokens marked."""
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
    """Yield block id, tokens of the text, what the model gets in their place, and which are predicted."""
    labels = batch.input_ids.clone()
    labels.view(-1)[batch.masked_positions] = batch.labels
    predicted = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    predicted.view(-1)[batch.masked_positions] = True
    yield from zip(batch.block_ids.tolist(), labels.tolist(), batch.input_ids.tolist(), predicted.tolist(), strict=True)


def has_colours() -> bool:
    """Whether the output is a terminal that shows colours, and nobody asked for none (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def legend(*, colours: bool) -> str:
    """What the marks mean."""
    examples = {Kind.MASKED: ("the", ""), Kind.REPLACED: ("cat", "blue"), Kind.KEPT: ("sat", "")}
    marks = (f"{mark(kind, *texts, colours=colours)} {kind.name.lower()}" for kind, texts in examples.items())
    return f"to predict: {', '.join(marks)}; ⏎ is a newline, ␣ a space"


def print_counts(batches: list[MaskedBatch], corpus: Corpus) -> None:
    """How many tokens of the whole batch are predicted, and what became of them."""
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
    """What the training text is made of; shares and entropy are of the tokens that are not special."""
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


if __name__ == "__main__":
    main(sys.argv[1:])
