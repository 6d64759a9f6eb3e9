"""Rows of a source: one interface for files and for downloaded tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from data.documents import files, readers
from data.documents.ranges import Range, Row, first_key
from data.documents.tables import schema_columns

if TYPE_CHECKING:  # importing it takes a second, which local files need not wait for
    import datasets

_BATCH_OF_ROWS = 1000


class Rows(Protocol):
    """A source of rows that can be divided and entered anywhere."""

    def ranges(self, num_streams: int, stream: int) -> list[Range]:
        """What a logical stream reads: together the streams read each row once."""

    def read(self, part: Range, start: int, column: str) -> Iterator[Row]:
        """Yield the rows of a range from a position on."""

    def place(self, part: Range, position: int) -> str:
        """A row by name and number, for messages."""

    def columns(self) -> set[str]:
        """Dotted paths of the columns."""

    def count(self) -> int:
        """Rows in all; may read everything."""

    @property
    def identity(self) -> str:
        """Changes with the content alone, and is the same on every machine. May take a second."""

    @property
    def version(self) -> str:
        """Changes with the source or its place, on this machine. Quick to compute."""


@dataclass(frozen=True)
class FileRows:
    """Rows of files of one format, on this machine or, by an ``hf://`` path, on the Hub."""

    paths: tuple[str, ...]

    def ranges(self, num_streams: int, stream: int) -> list[Range]:
        """See `Rows`."""
        return readers.ranges(self.paths, self._sizes, num_streams, stream)

    @cached_property
    def _sizes(self) -> list[int] | None:
        return readers.sizes(self.paths)  # once for all streams and passes: on the Hub it is slow

    def read(self, part: Range, start: int, column: str) -> Iterator[Row]:
        """See `Rows`."""
        return readers.read(part, start, column)

    def place(self, part: Range, position: int) -> str:
        """See `Rows`."""
        return readers.place(part.path, position)

    def columns(self) -> set[str]:
        """See `Rows`."""
        found = (readers.columns(path) for path in self.paths)
        return next((columns for columns in found if columns), set())

    def count(self) -> int:
        """See `Rows`."""
        if files.file_format(self.paths[0]) == ".parquet" and self._sizes is not None:
            return sum(self._sizes)
        return sum(1 for part in self.ranges(1, 0) for _ in self.read(part, part.begin, ""))

    @property
    def identity(self) -> str:
        """See `data.documents.files.identity`."""
        return files.identity(self.paths)

    @property
    def version(self) -> str:
        """The paths, each with its `data.documents.files.version`."""
        return repr([(path, files.version(path)) for path in self.paths])


@dataclass(frozen=True)
class TableRows:
    """Rows of a table that `datasets` has downloaded and memory-mapped."""

    table: "datasets.Dataset"

    def ranges(self, num_streams: int, stream: int) -> list[Range]:
        """See `Rows`."""
        begin, end = (len(self.table) * (stream + i) // num_streams for i in (0, 1))
        return [Range("", begin, end)]

    def read(self, part: Range, start: int, column: str) -> Iterator[Row]:
        """See `Rows`."""
        key = first_key(column, self.table.column_names)
        assert key is not None  # it was looked for in `columns`
        rows = self.table.select_columns([key]).select(range(start, part.end))
        position = start
        for batch in rows.iter(batch_size=_BATCH_OF_ROWS):
            for value in batch[key]:
                yield Row(position, position + 1, {key: value})
                position += 1

    def place(self, part: Range, position: int) -> str:
        """See `Rows`."""
        return f"row {position}"

    def columns(self) -> set[str]:
        """See `Rows`."""
        return schema_columns(self.table.features.arrow_schema)

    def count(self) -> int:
        """See `Rows`."""
        return len(self.table)

    @property
    def identity(self) -> str:
        """Of `datasets`: changes with the source, the revision and the split."""
        return str(self.table._fingerprint)

    @property
    def version(self) -> str:
        """See `identity`."""
        return self.identity
