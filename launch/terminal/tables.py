"""Prints fills as tables, with bars in a terminal."""

import sys
from typing import Any

from launch.terminal.token_text import visible

_BAR_WIDTH = 16
_EIGHTHS = " ▏▎▍▌▋▊▉"


def print_fills(text: str, fills: list[Any]) -> None:
    """Print the text, and below it the fills of each mask, or the joint fills of all masks."""
    print(text)
    masks = [fills] if isinstance(fills[0], dict) else fills
    for number, fills_of_mask in enumerate(masks, start=1):
        if len(masks) > 1:
            print(f"  mask {number}")
        _print_table(fills_of_mask)


def _print_table(fills: list[dict[str, Any]]) -> None:
    """Print one fill a line: its probability, its words, the sentence with them."""
    token_strs = [[fill["token_str"]] if isinstance(fill["token_str"], str) else fill["token_str"] for fill in fills]
    words = [visible(" | ".join(map(str.strip, parts))) for parts in token_strs]
    width = max(map(len, words))
    for fill, word in zip(fills, words, strict=True):
        score = fill["score"]
        percent = f"{score:6.1%}" if score >= 0.0005 else f"{score:6.0e}"  # 2e-05 would be 0.0%
        shown = f"{bar(score)}  " if sys.stdout.isatty() else ""
        print(f"  {percent}  {shown}{word:<{width}}  {visible(fill['sequence'])}")


def bar(share: float) -> str:
    """A bar of that share of the full width, to an eighth of a character.

    >>> bar(0.5)
    '████████        '
    """
    whole, eighths = divmod(round(share * _BAR_WIDTH * 8), 8)
    return ("█" * whole + _EIGHTHS[eighths] * (whole < _BAR_WIDTH)).ljust(_BAR_WIDTH)
