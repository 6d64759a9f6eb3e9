"""What all readers share: a row, a range of a file's rows, and the error for text that cannot be read."""

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple


class DataError(ValueError):
    """A user error in the data, in one line: it names the file and row, or the setting, and what is wrong."""


class Row(NamedTuple):
    """One row, or why it cannot be read. A position is a byte for lines of plain files, else the row's number."""

    begin: int
    position: int  # where the next row begins
    value: dict[str, Any] | None  # the row, or the part of it that was asked for
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
        """Whether ``index % every == which``."""
        return index % self.every == self.which


def first_key(path: str, names: Iterable[str]) -> str | None:
    """The longest name that a dotted path begins with; None if there is none, or the path is empty.

    ``answers.text`` is found in a column of that very name if there is one, else in ``answers``.
    """
    return max((name for name in names if path and f"{path}.".startswith(f"{name}.")), key=len, default=None)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = 80
brief = _BRIEF.repr  # a value for messages, however long or deep it is
