"""Prints rows of names and numbers as a table."""

from collections.abc import Mapping, Sequence
from typing import Any


def print_rows(rows: Sequence[Mapping[str, Any]], forms: Mapping[str, str]) -> None:
    """Print names to the left, and numbers in their forms to the right; a number without a form is not shown."""
    names = [name for name, value in rows[0].items() if isinstance(value, str) or name in forms]
    cells = [[name.replace("_", " ") for name in names]]
    cells += [[format(row[name], forms.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [">" if name in forms else "<" for name in names]
    for line in cells:
        print("  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)))
