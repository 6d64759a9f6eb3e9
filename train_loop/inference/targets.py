"""How probable given words are in place of a mask; a word may have several tokens.

A word of several tokens replaces the mask by as many masks. Its tokens are scored from left to right, each given those
before it and masks for those after it. This is the chain rule inside the word, which Kauf and Ivanova (2023, section 3)
call ``PLL-word-l2r``. A word of one token gets the pipeline's score.
"""

import itertools
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from train_loop.inference.predictor import Ask, Choice, MaskPredictor, Pieces, tokenize


def target_pieces(tokenizer: PreTrainedTokenizerBase, targets: str | Sequence[str]) -> list[Pieces]:
    """The tokens of each target: the vocabulary's entry of that name, or else the target's text tokenized.

    Raises ValueError if there is no target, or the tokenizer does not know some of them; the message names these.
    """
    targets = [targets] if isinstance(targets, str) else list(targets)
    if not targets:
        raise ValueError("targets=[] names no word: omit it to fill with any word")
    found = [_pieces(tokenizer, target) for target in targets]
    if unknown := [repr(target) for target, pieces in zip(targets, found, strict=True) if not pieces]:
        raise ValueError(f"targets that the tokenizer does not know: {', '.join(unknown)}")
    return found


def _pieces(tokenizer: PreTrainedTokenizerBase, target: str) -> Pieces:
    """Empty if any part of the target is unknown."""
    unknown = tokenizer.unk_token_id
    token = tokenizer.convert_tokens_to_ids(target)
    if token is not None and (token != unknown or target == tokenizer.unk_token):
        return (token,)
    pieces = tuple(tokenize(tokenizer, target, add_special_tokens=False)["input_ids"])
    return () if unknown in pieces else pieces


def score_targets(
    predictor: MaskPredictor, rows: Sequence[Sequence[int]], targets: Sequence[Pieces], batch_size: int
) -> list[list[list[Choice]]]:
    """For each row and each of its masks, the targets in their order; the row's other masks stay.

    Raises ValueError if a row with as many masks as a target has tokens is longer than the model.
    """
    most = max(map(len, targets))
    asks: list[Ask] = []
    for row in rows:
        if len(row) + most - 1 > predictor.longest:
            raise ValueError(
                f"a text of {len(row):,} tokens has no room for a target of {most} tokens within the model's "
                f"{predictor.longest:,} positions: shorten the text"
            )
        for mask, pieces in itertools.product(predictor.masks(row), targets):
            # row [a M b], pieces (p, q):   a M M b  -> p ?      a p M b  -> q ?
            filled, end = (*row[:mask], *pieces, *row[mask + 1 :]), mask + len(pieces)
            asks += [predictor.ask(filled, position, end) for position in range(mask, end)]
    log_probs = iter(predictor.log_probs(asks, batch_size))
    return [
        [[(sum(itertools.islice(log_probs, len(pieces))), pieces) for pieces in targets] for _ in predictor.masks(row)]
        for row in rows
    ]
