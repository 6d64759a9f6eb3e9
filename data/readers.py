"""Rows of files, from any position: what dividing, streaming and resuming need.

A file that can be entered anywhere is divided into ranges: of bytes for lines
(.txt, .jsonl), of rows for Parquet. Any other (compressed, .csv, .json, .arrow)
is read from its start; rows before the position are passed over unparsed.
A row that cannot be read comes with its problem, so that the reader of the rows
decides whether to stop. `fsspec` opens the files, on disk or on the Hub.
"""

import codecs
import csv
import io
import itertools
import json
import reprlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data.compression import COMPRESSIONS, DAMAGED, open_file

_DAMAGED = (*DAMAGED, pa.ArrowException)
_ROWS_AT_ONCE = 1000
_BYTES_AT_ONCE = 1 << 16
_FILES_AT_ONCE = 16  # whose sizes are asked for: on the Hub each is some requests


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
    """The rows of a file that begin in ``[begin, end)``, and of them each whose index modulo ``every`` is ``which``."""

    path: str
    begin: int
    end: int
    every: int = 1
    which: int = 0

    def has(self, index: int) -> bool:
        """Whether a row is among each ``every``-th."""
        return index % self.every == self.which


def file_format(path: str) -> str | None:
    """The ending that says how a file is read, without that of its compression; None if it is not known."""
    name = PurePosixPath(path)
    suffix = PurePosixPath(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix
    return suffix if suffix in _READERS else None


def known_formats() -> str:
    """For messages."""
    return " ".join(_READERS)


def file_size(path: str) -> int:
    """Bytes."""
    filesystem, name = fsspec.core.url_to_fs(path)
    return int(filesystem.size(name))


def modified(path: str) -> str:
    """When a file was last changed, or which commit of the Hub it is of; '' where nobody knows."""
    filesystem, name = fsspec.core.url_to_fs(path)
    facts = filesystem.info(name)
    return str(facts.get("mtime", facts.get("blob_id", "")))


def sizes(paths: tuple[str, ...]) -> list[int] | None:
    """By what files are divided: the bytes or the rows of each; None where one cannot be entered anywhere.

    Raises:
        DataError: A Parquet file does not say how many rows it has.
    """
    if not all(_can_seek(path) for path in paths):
        return None
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        return list(threads.map(_size, paths))


def ranges(paths: tuple[str, ...], sizes: list[int] | None, num_streams: int, stream: int) -> list[Range]:
    """What a logical stream reads: together the streams read each row once.

    Files that can be entered anywhere are laid end to end and cut into
    ``num_streams`` equal parts. Of other files a stream takes whole ones, or,
    where there are fewer files than streams, every ``num_streams``-th row.

    Args:
        sizes: See `sizes`.
    """
    if sizes is not None:
        begin, end = (sum(sizes) * (stream + i) // num_streams for i in (0, 1))
        found, offset = [], 0
        for path, size in zip(paths, sizes, strict=True):
            part = Range(path, max(0, begin - offset), min(size, end - offset))
            if part.begin < part.end:
                found.append(part)
            offset += size
        return found
    if len(paths) >= num_streams:
        return [Range(path, 0, sys.maxsize) for path in paths[stream::num_streams]]
    return [Range(path, 0, sys.maxsize, every=num_streams, which=stream) for path in paths]


def read(part: Range, start: int, column: str) -> Iterator[Row]:
    """Yield the rows of a range from a position on.

    Args:
        start: ``part.begin``, or the position of an earlier row.
        column: The only top-level column that is wanted, where the format can read it alone; '' for all.
    """
    return _READERS[str(file_format(part.path))](part, start, column)


def place(path: str, position: int) -> str:
    """A row by file and number, for messages: lines count from 1, rows from 0. Reads the file up to there."""
    name = PurePosixPath(path).name
    if file_format(path) not in (".txt", ".jsonl"):
        return f"{name}, row {position}"
    if not _can_seek(path):
        return f"{name}, line {position + 1}"
    if "://" in path:  # not a download for a message
        return f"{name}, byte {position}"
    num_lines, left = 1, position
    with fsspec.open(path, "rb") as file:
        while left and (content := file.read(min(left, _BYTES_AT_ONCE))):
            num_lines += content.count(b"\n")
            left -= len(content)
    return f"{name}, line {num_lines}"


def brief(value: Any) -> str:
    """A value for messages, however long or deep it is."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = 80


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON may hold halves of surrogate pairs, which are no characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def columns(path: str) -> set[str]:
    """Dotted paths of the columns, the nested ones too; of files that state none, those of the first rows.

    Raises:
        ValueError: None of the first rows can be read.
    """
    if file_format(path) == ".txt":
        return {"text"}
    if file_format(path) == ".parquet":
        with _parquet(path) as table:
            return schema_columns(table.schema_arrow)
    first = list(itertools.islice(read(Range(path, 0, sys.maxsize), 0, ""), 100))
    if first and all(row.problem for row in first):
        raise ValueError(f"{place(path, 0)}: {first[0].problem}")
    return {name for row in first if row.value for name in _names(row.value)}


def schema_columns(schema: pa.Schema) -> set[str]:
    """Dotted paths of a schema's columns."""

    def names(field: pa.Field, prefix: str) -> Iterator[str]:
        kind = field.type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        yield prefix + field.name
        if pa.types.is_struct(kind):
            for child in kind.fields:
                yield from names(child, f"{prefix}{field.name}.")

    return {name for field in schema for name in names(field, "")}


def _names(row: dict[str, Any]) -> Iterator[str]:
    left: list[tuple[str, Any]] = [("", row)]
    while left:
        prefix, value = left.pop()
        if isinstance(value, list):
            left += [(prefix, item) for item in value[:1]]
        elif isinstance(value, dict):
            for key, item in value.items():
                yield f"{prefix}{key}"
                left.append((f"{prefix}{key}.", item))


def _can_seek(path: str) -> bool:
    return PurePosixPath(path).suffix in (".txt", ".jsonl", ".parquet")


@contextmanager
def _parquet(path: str) -> Iterator[pq.ParquetFile]:
    """An open file.

    Raises:
        DataError: It is damaged.
    """
    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as table:
            yield table
    except (OSError, *_DAMAGED) as error:
        raise DataError(f"{PurePosixPath(path).name} cannot be read as Parquet: {_damage(error)}") from error


def _damage(error: Exception) -> str:
    """What is wrong with the file; an error of the disk or the network is raised again.

    Arrow says by a bare OSError that content is damaged, the others have a number or are of a kind of their own.
    """
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
        raise error
    return " ".join(str(error).split())


def _lines(part: Range, start: int, parse: Callable[[str], Any]) -> Iterator[Row]:
    """Lines that are not blank, by byte where the file is not compressed, else by number."""
    by_byte = _can_seek(part.path)
    position = 0
    with open_file(part.path) as file:
        if by_byte:
            position = start
            if start == part.begin > 0:  # a line belongs to the range in which it begins
                file.seek(start - 1)
                position += len(file.readline()) - 1
            else:
                file.seek(start)
        while position < part.end:
            begin = position
            try:
                line = file.readline()
            except _DAMAGED as error:
                yield Row(begin, part.end, None, f"the file is damaged from here on ({error})")
                return
            if not line:
                return
            position += len(line) if by_byte else 1
            if begin == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip() and (by_byte or (begin >= start and part.has(begin))):
                yield _parsed(begin, position, line, parse)


def _parsed(begin: int, position: int, line: bytes, parse: Callable[[str], Any]) -> Row:
    try:
        value = parse(line.decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        return Row(begin, position, None, f"not UTF-8 (byte {error.start} of the line)")
    except ValueError as error:
        return Row(begin, position, None, f"not JSON: {error}")
    except RecursionError:
        return Row(begin, position, None, "not JSON that can be read: nested too deeply")
    return _object(begin, position, value)


def _object(begin: int, position: int, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(begin, position, None, f"not a JSON object: {brief(value)}")
    return Row(begin, position, value)


def _read_txt(part: Range, start: int, column: str) -> Iterator[Row]:
    return _lines(part, start, lambda line: {"text": line})


def _read_jsonl(part: Range, start: int, column: str) -> Iterator[Row]:
    return _lines(part, start, json.loads)


def _read_json(part: Range, start: int, column: str) -> Iterator[Row]:
    """An array of objects, which is read whole; or lines."""
    try:
        with open_file(part.path) as file:
            is_array = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
        if is_array:
            with open_file(part.path) as file:
                values = json.load(file)
    except (ValueError, RecursionError, *_DAMAGED) as error:
        yield Row(start, part.end, None, f"not JSON: {error}")
        return
    if not is_array:
        yield from _read_jsonl(part, start, column)
        return
    for index, value in enumerate(values):
        if index >= start and part.has(index):
            yield _object(index, index + 1, value)


def _csv_reader(delimiter: str) -> Callable[[Range, int, str], Iterator[Row]]:
    def read_csv(part: Range, start: int, column: str) -> Iterator[Row]:
        csv.field_size_limit(sys.maxsize)
        with open_file(part.path) as file:
            # What is no UTF-8 becomes surrogates, so that one bad row does not end the file.
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.DictReader(text, delimiter=delimiter)
            begin = 0
            try:
                for index, row in enumerate(rows):
                    begin = index + 1
                    if index >= start and part.has(index):
                        bad = not is_unicode(row.get(column) or "")
                        yield Row(index, begin, row, f"not UTF-8 (line {rows.line_num})" if bad else None)
            except (csv.Error, *_DAMAGED) as error:
                yield Row(begin, part.end, None, f"the file is damaged from here on ({error})")

    return read_csv


def _read_parquet(part: Range, start: int, column: str) -> Iterator[Row]:
    position = start
    try:
        with _parquet(part.path) as table:
            names = table.schema_arrow.names
            if column not in names:
                yield Row(start, part.end, None, f"the file has no column {column!r}; it has: {', '.join(names)}")
                return
            first = 0
            for group in range(table.num_row_groups):
                size = table.metadata.row_group(group).num_rows
                if first >= part.end:
                    return
                if first + size > start:
                    batches = table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column])
                    for row in _rows_of(batches, column, first, part, start):
                        yield row
                        position = row.position
                first += size
    except DataError as error:
        yield Row(position, part.end, None, str(error))


def _read_arrow(part: Range, start: int, column: str) -> Iterator[Row]:
    """The streaming format, which `datasets` writes, or the file format."""
    position = start
    try:
        with open_file(part.path) as file:
            for row in _rows_of(_arrow_batches(file), column, 0, part, start):
                yield row
                position = row.position
    except (OSError, *_DAMAGED) as error:
        yield Row(position, part.end, None, f"cannot be read as Arrow: {_damage(error)}")


def _arrow_batches(file: Any) -> Iterator[pa.RecordBatch]:
    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
    else:
        file.seek(0)
        yield from pa.ipc.open_stream(file)


def _rows_of(batches: Iterator[pa.RecordBatch], column: str, first: int, part: Range, start: int) -> Iterator[Row]:
    """The rows of batches, the first of which has index ``first``, from ``start`` on, as far as they are in the range.

    Args:
        column: '' for all.
    """
    for batch in batches:
        names = batch.schema.names
        if column and column not in names:
            yield Row(first, part.end, None, f"the file has no column {column!r}; it has: {', '.join(names)}")
            return
        wanted = [column] if column else names
        for index in range(max(start, first), min(part.end, first + len(batch))):
            if part.has(index):
                try:
                    value = {name: batch.column(name)[index - first].as_py() for name in wanted}
                    yield Row(index, index + 1, value)
                except UnicodeDecodeError as error:
                    yield Row(index, index + 1, None, f"not UTF-8: {error}")
        first += len(batch)
        if first >= part.end:
            return


def _size(path: str) -> int:
    if file_format(path) != ".parquet":
        return file_size(path)
    with _parquet(path) as table:
        return int(table.metadata.num_rows)


_READERS: dict[str, Callable[[Range, int, str], Iterator[Row]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _csv_reader(","),
    ".tsv": _csv_reader("\t"),
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
