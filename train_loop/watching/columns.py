"""Fits text into the columns of a terminal; a file or a pipe has no limit, which is None."""

import re
import shutil
import sys
from unicodedata import east_asian_width

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def terminal_columns() -> int | None:
    """The columns of standard output; None if it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def width(text: str) -> int:
    """Columns in a terminal: two for an East Asian character or an emoji, none for colours."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in _ESCAPES.sub("", text))


def say(text: str, label: str = "") -> None:
    """Print a text behind a label, wrapped where standard output is a terminal."""
    print(wrap(text, terminal_columns(), label), flush=True)


def wrap(text: str, columns: int | None, label: str = "") -> str:
    """The text behind a label, broken at its spaces; further lines are indented by the label's width."""
    if columns is None:
        return label + text
    first, *words = text.split(" ")  # its own indentation stays
    lines = [first]
    for word in words:
        line = f"{lines[-1]} {word}" if lines[-1] or len(lines) == 1 else word
        if lines[-1].strip() and width(label) + width(line) > columns:
            lines.append(word)
        else:
            lines[-1] = line
    return label + f"\n{' ' * width(label)}".join(lines)


def excerpt(text: str, columns: int | None, start: int = 0) -> str:
    """The part of a text around the character ``start`` that fits, with an ellipsis where it is cut."""
    if columns is None or width(text) <= columns:
        return text
    lead = start - columns // 3
    text = f"…{text[lead:]}" if lead > 0 else text
    if width(text) <= columns:
        return text
    text = text[: 4 * columns]  # or the next lines take minutes
    while width(text) >= columns:
        text = text[:-1]
    return f"{text}…"
