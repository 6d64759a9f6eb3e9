"""Tokens as text to read: the spaces between words right, characters whole that are cut over several tokens.

What a token says depends on the one before it: WordPiece's ``##`` and
SentencePiece's ``▁`` become a space, or none, only when they are decoded
together. So everything is decoded behind its neighbour, whose text is then
taken off again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

CUT = "\N{REPLACEMENT CHARACTER}"  # what a part of a character decodes to
_MOST_BYTES = 4  # of a character in UTF-8


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of the several that one character is cut over; with the space before it."""

    text: str
    num_tokens: int


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[Piece]:
    """Cut the text of some tokens into pieces, which together are all of it.

    A token that belongs to no whole character, as at the edge of a block, is a piece of its own.
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


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What one token says by itself, with a space before it if it begins a word."""
    return _text_behind(tokenizer, [tokenizer.mask_token_id], [token])


def _text_behind(tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int]) -> str:
    def decode(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    return decode(before + ids)[len(decode(before)) :]


def visible(text: str, reserved: str = "") -> str:
    """The text on one line: ⏎ for a newline, escapes for what does not print and for reserved characters."""
    return "".join(_visible(character, reserved) for character in text)


def _visible(character: str, reserved: str) -> str:
    if character == "\n":
        return "⏎"
    if character.isprintable() and character not in reserved:
        return character
    return character.encode("unicode_escape").decode()
