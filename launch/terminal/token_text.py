"""Writes tokens as readable text, with the right spaces, and joins characters that are cut over several tokens.

The text of a token depends on the token before it: only when both are decoded together does it show whether
WordPiece's ``##`` or SentencePiece's ``▁`` becomes a space. So each token is decoded after its neighbour, whose text
is then removed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerBase

CUT = "\N{REPLACEMENT CHARACTER}"  # decoded from a part of a character
_MOST_BYTES = 4  # of a character in UTF-8


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of the tokens that share one character, with the space before it."""

    text: str
    num_tokens: int


def pieces(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> Iterator[Piece]:
    """Yield the text of the tokens in pieces; joined, they are the whole text.

    A token that is a part of an incomplete character, as at the edge of a block, is a piece of its own.
    """
    before = [tokenizer.mask_token_id]
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        while waiting:
            text = _text_behind(tokenizer, before, waiting)
            if text.endswith(CUT) and len(waiting) < _MOST_BYTES:
                break  # the next token may complete it
            num_tokens = 1 if text.startswith(CUT) else len(waiting)
            yield Piece(CUT if text.startswith(CUT) else text, num_tokens)
            before, waiting = waiting[:num_tokens], waiting[num_tokens:]
    for _ in waiting:
        yield Piece(CUT, 1)


def token_text(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """The text of one token alone, with a space before it if it begins a word."""
    return _text_behind(tokenizer, [tokenizer.mask_token_id], [token])


def shown_token(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """The text of one token alone, visible: ``␣`` is a space, ``⏎`` a newline."""
    return visible(token_text(tokenizer, token)).replace(" ", "␣")


def _text_behind(tokenizer: "PreTrainedTokenizerBase", before: list[int], ids: list[int]) -> str:
    def decode(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    return decode(before + ids)[len(decode(before)) :]


def visible(text: str, reserved: str = "") -> str:
    """The text on one line, with ⏎ for a newline, and escapes for unprintable and reserved characters."""

    def shown(character: str) -> str:
        if character.isprintable() and character not in reserved:
            return character
        return "⏎" if character == "\n" else character.encode("unicode_escape").decode()

    return "".join(map(shown, text))
