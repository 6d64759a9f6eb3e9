"""What reading is made of: a row, a range of a file's rows, and the error of a text that cannot be read."""

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple


class DataError(ValueError):
    """A text that cannot be read; the message names the file, the row and what is wrong."""


class Row(NamedTuple):
    """One row.

    Attributes:
        begin: Where it begins: bytes for lines, else a number of rows.
        position: Where the next row begins.
        value: The row as a dict, or as much of it as was asked for.
        problem: Why there is no value, or None.
    """

    begin: int
    position: int
    value: dict[str, Any] | None
    problem: str | None = None


@dataclass(frozen=True)
class Range:
    """The rows of a file that begin in ``[begin, end)``, and of these those with ``index % every == which``."""

    path: str
    begin: int
    end: int
    every: int = 1
    which: int = 0

    def has(self, index: int) -> bool:
        """Whether a row is among each ``every``-th."""
        return index % self.every == self.which


def first_key(path: str, names: Iterable[str]) -> str | None:
    """The longest name with which a dotted path begins; None if there is none, or the path is empty.

    ``answers.text`` is a column of that very name where there is one, else in ``answers``.
    """
    return max((name for name in names if path and f"{path}.".startswith(f"{name}.")), key=len, default=None)


def brief(value: Any) -> str:
    """A value for messages, however long or deep it is."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = 80
