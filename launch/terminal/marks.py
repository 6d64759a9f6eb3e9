"""Writes a row of a batch as text, with a mark at each token that is predicted.

Without colours a masked token is written ``⟦the⟧``, a replaced one ``⟦cat→blue⟧`` and a kept one ``⟦sat≡⟧``. In a
terminal each kind has its own colour instead of the brackets. The same characters in the text are escaped, so that only
a mark looks like one.
"""

import re
from dataclasses import dataclass
from enum import Enum
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from launch.terminal.token_text import pieces, token_text, visible

_OPEN, _BECOMES, _STAYS, _CLOSE = "⟦→≡⟧"
_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_NEIGHBOURS = re.compile(r"(?<=\x1b\[0m)(?=\x1b\[[39])")  # between two coloured marks that touch
_LONGEST_RUN = 3  # a longer run of one special token is written with its count


class Kind(Enum):
    """What the model sees in place of a token that it predicts; the value is the mark's colour."""

    MASKED = "\x1b[30;43m"  # black on yellow
    REPLACED = "\x1b[97;41m"  # white on red
    KEPT = "\x1b[30;42m"  # black on green


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


@dataclass(frozen=True)
class RowWriter:
    """Writes rows as text.

    Attributes:
        is_special: ``[V]`` bool, which ids are special tokens.
        colours: Whether to mark by colour, not by brackets.
    """

    tokenizer: PreTrainedTokenizerBase
    is_special: np.ndarray
    colours: bool

    def write(self, labels: list[int], seen: list[int], predicted: list[bool]) -> str:
        """The text of a row, on one line.

        Args:
            labels: ``[L]``, the tokens of the text.
            seen: ``[L]``, the tokens that the model sees.
            predicted: ``[L]``, which tokens are predicted.
        """
        parts: list[tuple[str, bool]] = []  # (text, whether it is a special token)
        start = 0
        for piece in pieces(self.tokenizer, labels):
            positions = range(start, start + piece.num_tokens)
            start = positions.stop
            marks = [self._mark(piece.text, positions, i, labels[i], seen[i]) for i in positions if predicted[i]]
            if marks:
                parts.append(("".join(marks), False))
            else:
                parts.append((visible(piece.text, _OPEN + _CLOSE), bool(self.is_special[labels[positions.start]])))
        runs = ((text, is_special, len(list(run))) for (text, is_special), run in groupby(parts))
        text = "".join(self._special(text, n) if is_special else text * n for text, is_special, n in runs)
        return _NEIGHBOURS.sub("│", text).strip()

    def _mark(self, text: str, positions: range, i: int, label: int, seen: int) -> str:
        """The mark of a token; if a character takes several tokens, it names the part: ``é(1/2)``."""
        part = f"({i - positions.start + 1}/{len(positions)})" if len(positions) > 1 else ""
        kind = kind_of(label, seen, self.tokenizer.mask_token_id)
        return mark(kind, text + part, token_text(self.tokenizer, seen), colours=self.colours)

    def _special(self, text: str, count: int) -> str:
        text = text * count if count <= _LONGEST_RUN else f"{text}x{count}"
        return f"{_DIM}{text}{_RESET}" if self.colours else text
