"""How probable given words are in place of a mask, of one token or of several.

A word of several tokens takes as many masks, and its pieces are scored from left to
right, each given those before it and masks for those after: the chain rule inside
the word, which Kauf and Ivanova (2023, section 3) call ``PLL-word-l2r``. A word of one
token is thereby scored as the pipeline scores it.
"""

import math
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from train_loop.inference.predictor import Ask, MaskPredictor, tokenize

Pieces = tuple[int, ...]


def target_pieces(tokenizer: PreTrainedTokenizerBase, targets: str | Sequence[str]) -> list[Pieces]:
    """The tokens of each target: an entry of the vocabulary as it stands, else the text tokenized.

    Raises:
        ValueError: There are none, or some that the tokenizer does not know, which are all named.
    """
    targets = [targets] if isinstance(targets, str) else list(targets)
    if not targets:
        raise ValueError("targets=[] names no word: leave it out to fill with any")
    found = [_pieces(tokenizer, target) for target in targets]
    unknown = [repr(target) for target, pieces in zip(targets, found, strict=True) if not pieces]
    if unknown:
        raise ValueError(f"targets that the tokenizer does not know: {', '.join(unknown)}")
    return found


def _pieces(tokenizer: PreTrainedTokenizerBase, target: str) -> Pieces:
    """Empty if any of it is unknown."""
    unknown = tokenizer.unk_token_id
    token = tokenizer.convert_tokens_to_ids(target)
    if token is not None and (token != unknown or target == tokenizer.unk_token):
        return (token,)
    pieces = tuple(tokenize(tokenizer, target, add_special_tokens=False)["input_ids"])
    return () if unknown in pieces else pieces


def score_targets(
    predictor: MaskPredictor, rows: Sequence[Sequence[int]], targets: Sequence[Pieces], batch_size: int
) -> list[list[list[float]]]:
    """The probability of each target in place of each mask, the text's other masks staying as they are.

    Returns:
        For each row, for each of its masks, one probability for each target.

    Raises:
        ValueError: A row is longer than the model once a mask has become as many as a target has pieces.
    """
    most = max(map(len, targets))
    asks, slots = [], []
    for number, row in enumerate(rows):
        if len(row) + most - 1 > predictor.longest:
            raise ValueError(
                f"a text of {len(row):,} tokens has no room for a target of {most} tokens within the model's "
                f"{predictor.longest:,} positions: shorten the text"
            )
        for which, mask in enumerate(predictor.masks(row)):
            for index, pieces in enumerate(targets):
                new = piecewise(row, mask, pieces, predictor.tokenizer.mask_token_id)
                asks += new
                slots += [(number, which, index)] * len(new)
    sums: dict[tuple[int, int, int], float] = dict.fromkeys(slots, 0.0)
    for slot, log_prob in zip(slots, predictor.log_probs(asks, batch_size), strict=True):
        sums[slot] += log_prob
    return [
        [
            [math.exp(sums[number, which, index]) for index in range(len(targets))]
            for which in range(len(predictor.masks(row)))
        ]
        for number, row in enumerate(rows)
    ]


def piecewise(row: Sequence[int], mask: int, pieces: Pieces, mask_token_id: int) -> list[Ask]:
    """The questions whose answers multiply to p(pieces in place of the mask).

    row [a M b], pieces (p, q):   a M M b  -> p ?      a p M b  -> q ?
    """
    before, after = tuple(row[:mask]), tuple(row[mask + 1 :])
    return [
        Ask(before + pieces[:i] + (mask_token_id,) * (len(pieces) - i) + after, mask + i, piece)
        for i, piece in enumerate(pieces)
    ]
