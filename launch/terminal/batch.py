"""Makes the batch of an update and prints it: its rows with their marks, and its counts.

Each token that is predicted has a mark. Without colours a masked token is written ``⟦the⟧``, a replaced one
``⟦cat→blue⟧`` and a kept one ``⟦sat≡⟧``. In a terminal each kind has its own colour instead of the brackets. The same
characters in the text are escaped, so that only a mark looks like one.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from data.batch import MaskedBatch
from launch.run.corpus import Corpus
from launch.run.loaders import train_loader
from launch.run.settings import Settings
from launch.terminal.token_text import pieces, token_text, visible
from train_loop.plan import BatchPlan
from train_loop.watching.columns import say, terminal_columns

_OPEN, _BECOMES, _STAYS, _CLOSE = "⟦→≡⟧"
_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_NEIGHBOURS = re.compile(r"(?<=\x1b\[0m)(?=\x1b\[[39])")  # between two coloured marks that touch
_LONGEST_RUN = 3  # a longer run of one special token is written with its count


def batches_of_step(settings: Settings, corpus: Corpus, plan: BatchPlan, step: int) -> list[MaskedBatch]:
    """The global batch of an update as training makes it, in micro-batches; the first update is 1."""
    alone = replace(corpus, config=replace(corpus.config, dataloader_num_workers=0))
    loader = train_loader(settings, alone, plan)
    first = step - 1 if corpus.train else 0  # a stream must be read from its beginning
    *_, batches = loader.steps(first, step)
    return batches


class Kind(Enum):
    """What the model sees in place of a token that it predicts; the value is the mark's colour."""

    MASKED = "\x1b[30;43m"  # black on yellow
    REPLACED = "\x1b[97;41m"  # white on red
    KEPT = "\x1b[30;42m"  # black on green


_EXAMPLES = {Kind.MASKED: ("the", ""), Kind.REPLACED: ("cat", "blue"), Kind.KEPT: ("sat", "")}


def kind_of(label: int, seen: int, mask_token_id: int) -> Kind:
    """The kind of a predicted token. A random token that equals the label counts as kept."""
    if seen == mask_token_id:
        return Kind.MASKED
    return Kind.KEPT if seen == label else Kind.REPLACED


def mark(kind: Kind, label: str, seen: str, *, colours: bool) -> str:
    """One mark. The space before a word is written before the mark, unless only one of its two texts has a space."""
    texts = [label, seen] if kind is Kind.REPLACED else [label]
    lead = " " if all(text.startswith(" ") and text.strip() for text in texts) else ""
    # Spaces are written ␣, so that `wrap` breaks no line inside a mark.
    reserved = _OPEN + _BECOMES + _STAYS + _CLOSE
    shown = _BECOMES.join(visible(text.removeprefix(lead), reserved).replace(" ", "␣") for text in texts)
    if colours:
        return f"{lead}{kind.value}{shown}{_RESET}"
    return f"{lead}{_OPEN}{shown}{_STAYS if kind is Kind.KEPT else ''}{_CLOSE}"


def row_text(
    tokenizer: PreTrainedTokenizerBase,
    is_special: np.ndarray,  # [V], which ids are special tokens
    labels: list[int],  # [L], the tokens of the text
    seen: list[int],  # [L], the tokens that the model sees
    predicted: list[bool],  # [L], which tokens are predicted
    *,
    colours: bool,  # whether to mark by colour, not by brackets
) -> str:
    """A row as text, on one line. Where a character takes several tokens, a mark names the part: ``é(1/2)``."""
    parts: list[tuple[str, bool]] = []  # (text, whether it is a special token)
    i = 0
    for piece in pieces(tokenizer, labels):
        special, marks = bool(is_special[labels[i]]), ""
        for number in range(1, piece.num_tokens + 1):
            if predicted[i]:
                text = piece.text if piece.num_tokens == 1 else f"{piece.text}({number}/{piece.num_tokens})"
                kind = kind_of(labels[i], seen[i], tokenizer.mask_token_id)
                marks += mark(kind, text, token_text(tokenizer, seen[i]), colours=colours)
            i += 1
        parts.append((marks, False) if marks else (visible(piece.text, _OPEN + _CLOSE), special))
    row = ""
    for (text, special), run in itertools.groupby(parts):
        count = len(list(run))
        shown = f"{text}x{count}" if special and count > _LONGEST_RUN else text * count
        row += f"{_DIM}{shown}{_RESET}" if special and colours else shown
    return _NEIGHBOURS.sub("│", row).strip()


def print_rows(batches: list[MaskedBatch], corpus: Corpus, num_rows: int) -> None:
    """Print the first rows of a batch, each below its block's id, with the predicted tokens marked.

    The marks are colours in a terminal that has them, unless NO_COLOR is set (no-color.org).
    """
    columns = terminal_columns()
    colours = columns is not None and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    marks = (f"{mark(kind, *texts, colours=colours)} {kind.name.lower()}" for kind, texts in _EXAMPLES.items())
    say(f"{', '.join(marks)}; ⏎ is a newline, ␣ a space", "to predict: ")
    special = corpus.vocabulary.is_special
    rows = itertools.chain.from_iterable(map(_rows, batches))
    for block_id, labels, seen, predicted in itertools.islice(rows, num_rows):
        print(f"\nblock {block_id}")
        say(row_text(corpus.tokenizer, special, labels, seen, predicted, colours=colours), "  ")


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
    num_of_text = num_tokens - num_special
    kinds_of_token = f"{num_of_text:,} of text, {num_special:,} special ({num_padded:,} padding)"
    print()
    say(f"{num_blocks:,} blocks, {num_tokens:,} tokens: {kinds_of_token}", "batch    ")
    say(f"{num_masked:,} tokens, {_share(num_masked, num_of_text)} of the text's: {became}", "predicts ")


def _share(part: float, whole: float) -> str:
    return f"{part / max(whole, 1):.1%}"
