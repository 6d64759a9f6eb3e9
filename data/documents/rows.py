"""Rows of a source, which can be divided over streams and read from any position."""

import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from data.documents import files, readers
from data.documents.files import file_format
from data.documents.ranges import Range
from data.documents.tables import parquet, schema_columns

_BYTES_AT_ONCE = 1 << 16
_FILES_AT_ONCE = 16  # whose sizes are asked for together: on the Hub, each needs some requests


@dataclass(frozen=True)
class FileRows:
    """Rows of files of one format, on this machine or, by an ``hf://`` path, on the Hub.

    Files in which reading can start anywhere are divided into ranges: of bytes for lines (.txt, .jsonl), of rows for
    Parquet. Any other file (compressed, .csv, .json, .arrow) is read from its start by each stream, which skips the
    rows before its position.
    """

    paths: tuple[str, ...]

    def ranges(self, num_streams: int, stream: int) -> list[Range]:
        """What a logical stream reads: together the streams read each row once.

        Ranges are equal parts of the files end to end. Of files without ranges, a stream takes whole ones; if there are
        fewer of them than streams, it takes every ``num_streams``-th row of each. Raises DataError if a Parquet file
        is damaged.
        """
        if self._sizes is None:
            if len(self.paths) >= num_streams:
                return [Range(path, 0, sys.maxsize) for path in self.paths[stream::num_streams]]
            return [Range(path, 0, sys.maxsize, every=num_streams, which=stream) for path in self.paths]
        begin, end = (sum(self._sizes) * (stream + i) // num_streams for i in (0, 1))
        offsets = itertools.accumulate(self._sizes, initial=0)
        placed = zip(self.paths, self._sizes, offsets, strict=False)  # the last offset is the end
        parts = [Range(path, max(0, begin - offset), min(size, end - offset)) for path, size, offset in placed]
        return [part for part in parts if part.begin < part.end]

    @cached_property  # asked for once by all streams and passes: on the Hub it is slow
    def _sizes(self) -> list[int] | None:
        """The bytes or rows of each file; None if one of them must be read from its start."""
        if not all(readers.can_seek(path) for path in self.paths):
            return None
        with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
            return list(threads.map(_size, self.paths))

    def place(self, part: Range, position: int) -> str:
        """A row by file and number, for messages: lines count from 1, rows from 0. Reads a local file up to there."""
        name = PurePosixPath(part.path).name
        if file_format(part.path) not in (".txt", ".jsonl"):
            return f"{name}, row {position}"
        if not readers.can_seek(part.path):
            return f"{name}, line {position + 1}"
        if "://" in part.path:  # not worth a download
            return f"{name}, byte {position}"
        num_lines, left = 1, position
        with files.open_raw(part.path) as file:
            while left and (content := file.read(min(left, _BYTES_AT_ONCE))):
                num_lines += content.count(b"\n")
                left -= len(content)
        return f"{name}, line {num_lines}"

    def columns(self) -> set[str]:
        """Dotted paths of all columns, also nested ones; if no file states them, those of a file's first rows.

        Raises ValueError if none of the first rows can be read.
        """
        return next(filter(None, map(self._columns_of, self.paths)), set())

    def _columns_of(self, path: str) -> set[str]:
        if file_format(path) == ".txt":
            return {"text"}
        if file_format(path) == ".parquet":
            with parquet(path) as table:
                return schema_columns(table.schema_arrow)
        part = Range(path, 0, sys.maxsize)
        first = list(itertools.islice(readers.read(part, 0, ""), 100))
        if first and all(row.problem for row in first):
            raise ValueError(f"{self.place(part, 0)}: {first[0].problem}")
        return {name for row in first if row.value for name in _names(row.value)}

    def count(self) -> int:
        """The number of rows; may read all of them."""
        if file_format(self.paths[0]) == ".parquet" and self._sizes is not None:
            return sum(self._sizes)
        return sum(1 for part in self.ranges(1, 0) for _ in readers.read(part, part.begin, ""))


def _size(path: str) -> int:
    if file_format(path) != ".parquet":
        return files.file_size(path)
    with parquet(path) as table:
        return int(table.metadata.num_rows)


def _names(row: dict[str, Any]) -> Iterator[str]:
    """Dotted paths of the columns of a row. Not recursive: a row may be nested more deeply than Python's stack."""
    left: list[tuple[str, Any]] = [("", row)]
    while left:
        prefix, value = left.pop()
        if isinstance(value, list):
            left += [(prefix, item) for item in value[:1]]
        elif isinstance(value, dict):
            for key, item in value.items():
                yield f"{prefix}{key}"
                left.append((f"{prefix}{key}.", item))
