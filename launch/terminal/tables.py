"""Prints fills as tables, with bars in a terminal."""

from typing import Any

from launch.terminal.token_text import visible
from train_loop.watching.columns import excerpt, say, terminal_columns, width

_BAR_WIDTH = 16
_EIGHTHS = " ▏▎▍▌▋▊▉"


def print_fills(text: str, fills: list[Any]) -> None:
    """Print the text, and below it the fills of each mask, or the joint fills of all masks."""
    say(text)
    masks = [fills] if isinstance(fills[0], dict) else fills
    for number, fills_of_mask in enumerate(masks, start=1):
        if len(masks) > 1:
            print(f"  mask {number}")
        _print_table(text, fills_of_mask)


def _print_table(text: str, fills: list[dict[str, Any]]) -> None:
    """Print one fill a line: its probability, its words, the part of the sentence around them that fits."""
    token_strs = [[fill["token_str"]] if isinstance(fill["token_str"], str) else fill["token_str"] for fill in fills]
    words = [visible(" | ".join(map(str.strip, parts))) for parts in token_strs]
    longest = max(map(width, words))
    columns = terminal_columns()
    room = None if columns is None else max(columns - len("   12.3%") - _BAR_WIDTH - longest - 6, 20)
    for fill, word in zip(fills, words, strict=True):
        score = fill["score"]
        percent = f"{score:6.1%}" if score >= 0.0005 else f"{score:6.0e}"  # 2e-05 would be 0.0%
        shown = "" if columns is None else f"{bar(score)}  "
        pad = " " * (longest - width(word))
        sequence = visible(fill["sequence"])
        start = next((i for i, (a, b) in enumerate(zip(text, sequence, strict=False)) if a != b), 0)  # of the fill
        print(f"  {percent}  {shown}{word}{pad}  {excerpt(sequence, room, start)}")


def bar(share: float) -> str:
    """A bar of that share of the full width, to an eighth of a character.

    >>> bar(0.5)
    '████████        '
    """
    whole, eighths = divmod(round(share * _BAR_WIDTH * 8), 8)
    return ("█" * whole + _EIGHTHS[eighths] * (whole < _BAR_WIDTH)).ljust(_BAR_WIDTH)
