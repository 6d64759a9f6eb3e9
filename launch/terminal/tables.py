"""Prints fills as tables, with bars if the output is a terminal."""

import sys
from typing import Any

_BAR_WIDTH = 16
_EIGHTHS = " ▏▎▍▌▋▊▉"


def print_fills(text: str, fills: list[Any]) -> None:
    """Print the text, and below it the fills of each mask, or those of all masks together."""
    print(text)
    masks = [fills] if isinstance(fills[0], dict) else fills
    for number, fills_of_mask in enumerate(masks, start=1):
        if len(masks) > 1:
            print(f"  mask {number}")
        _print_table(fills_of_mask)


def _print_table(fills: list[dict[str, Any]]) -> None:
    """Print one fill a line: its probability, the word, the sentence with it."""
    from launch.terminal.token_text import visible  # imports transformers

    words = [visible(_words(fill["token_str"])) for fill in fills]
    width = max(map(len, words))
    for fill, word in zip(fills, words, strict=True):
        shown = f"{bar(fill['score'])}  " if sys.stdout.isatty() else ""
        print(f"  {_percent(fill['score'])}  {shown}{word:<{width}}  {visible(fill['sequence'])}")


def _words(token_str: str | list[str]) -> str:
    return " | ".join(part.strip() for part in ([token_str] if isinstance(token_str, str) else token_str))


def _percent(score: float) -> str:
    """``58.4%``, or ``2e-05`` where that would be ``0.0%``."""
    return f"{score:6.1%}" if score >= 0.0005 else f"{score:6.0e}"


def bar(share: float) -> str:
    """A bar of that share of the full width, to an eighth of a character.

    >>> bar(0.5)
    '████████        '
    """
    whole, eighths = divmod(round(share * _BAR_WIDTH * 8), 8)
    return ("█" * whole + _EIGHTHS[eighths] * (whole < _BAR_WIDTH)).ljust(_BAR_WIDTH)
