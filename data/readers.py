"""Rows of files, from any position: what dividing, streaming and resuming need.

A file that can be entered anywhere is divided into ranges: of bytes for lines
(.txt, .jsonl), of rows for Parquet. Any other (compressed, .csv, .json, .arrow)
is read from its start; rows before the position are passed over unparsed.
A row that cannot be read comes with its problem, so that the reader of the rows
decides whether to stop. `fsspec` opens the files, on disk or on the Hub.
"""

import csv
import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

COMPRESSIONS = (".gz", ".zst")
_DAMAGED = (EOFError, OSError, zlib.error, zstandard.ZstdError, pa.ArrowInvalid)
_ROWS_AT_ONCE = 1000


class Row(NamedTuple):
    """One row.

    Attributes:
        position: Where the next row begins: bytes for lines, else a number of rows.
        value: The row as a dict, or as much of it as was asked for.
        problem: Why there is no value, or None.
    """

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


def ranges(paths: tuple[str, ...], num_streams: int, stream: int) -> list[Range]:
    """What a logical stream reads: together the streams read each row once.

    Files that can be entered anywhere are laid end to end and cut into
    ``num_streams`` equal parts. Of other files a stream takes whole ones, or,
    where there are fewer files than streams, every ``num_streams``-th row.
    """
    if all(_can_seek(path) for path in paths):
        sizes = [_num_rows(path) if file_format(path) == ".parquet" else file_size(path) for path in paths]
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
    """A row by file and number, for messages: lines count from 1, rows from 0."""
    name = PurePosixPath(path).name
    if file_format(path) not in (".txt", ".jsonl"):
        return f"{name}, row {position}"
    if not _can_seek(path):
        return f"{name}, line {position + 1}"
    with fsspec.open(path, "rb") as file:
        return f"{name}, line {file.read(position).count(10) + 1}"


def columns(path: str) -> set[str]:
    """Dotted paths of the columns, the nested ones too; of files that state none, those of the first rows.

    Raises:
        ValueError: None of the first rows can be read.
    """
    if file_format(path) == ".txt":
        return {"text"}
    if file_format(path) == ".parquet":
        with fsspec.open(path, "rb") as file:
            return schema_columns(pq.read_schema(file))
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


def _names(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for item in value[:1]:
            yield from _names(item, prefix)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"{prefix}{key}"
            yield from _names(item, f"{prefix}{key}.")


def _can_seek(path: str) -> bool:
    return PurePosixPath(path).suffix in (".txt", ".jsonl", ".parquet")


@contextmanager
def _open(path: str) -> Iterator[Any]:
    """The content, decompressed."""
    with fsspec.open(path, "rb") as raw:
        if path.endswith(".gz"):
            yield gzip.GzipFile(fileobj=raw)
        elif path.endswith(".zst"):
            yield io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
        else:
            yield raw


def _lines(part: Range, start: int, parse: Callable[[str], Any]) -> Iterator[Row]:
    """Lines that are not blank, by byte where the file is not compressed, else by number."""
    by_byte = _can_seek(part.path)
    position = 0
    with _open(part.path) as file:
        if by_byte:
            position = start
            if start == part.begin > 0:  # a line belongs to the range in which it begins
                file.seek(start - 1)
                position += len(file.readline()) - 1
            else:
                file.seek(start)
        while position < part.end:
            try:
                line = file.readline()
            except _DAMAGED as error:
                yield Row(part.end, None, f"the file is damaged from here on ({error})")
                return
            if not line:
                return
            index, position = position, position + (len(line) if by_byte else 1)
            if line.strip() and (by_byte or (index >= start and part.has(index))):
                yield _parsed(position, line, parse)


def _parsed(position: int, line: bytes, parse: Callable[[str], Any]) -> Row:
    try:
        value = parse(line.decode("utf-8").rstrip("\r\n").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        return Row(position, None, f"not UTF-8 (byte {error.start} of the line)")
    except ValueError as error:
        return Row(position, None, f"not JSON: {error}")
    except RecursionError:
        return Row(position, None, "not JSON that can be read: nested too deeply")
    if not isinstance(value, dict):
        return Row(position, None, f"not a JSON object: {value!r:.80}")
    return Row(position, value)


def _read_txt(part: Range, start: int, column: str) -> Iterator[Row]:
    return _lines(part, start, lambda line: {"text": line})


def _read_jsonl(part: Range, start: int, column: str) -> Iterator[Row]:
    return _lines(part, start, json.loads)


def _read_json(part: Range, start: int, column: str) -> Iterator[Row]:
    """An array of objects, which is read whole; or lines."""
    try:
        with _open(part.path) as file:
            is_array = file.read(4096).lstrip()[:1] == b"["
        if is_array:
            with _open(part.path) as file:
                values = json.load(file)
    except (ValueError, *_DAMAGED) as error:
        yield Row(part.end, None, f"not JSON: {error}")
        return
    if not is_array:
        yield from _read_jsonl(part, start, column)
        return
    for index, value in enumerate(values):
        if index >= start and part.has(index):
            known = isinstance(value, dict)
            yield Row(index + 1, value if known else None, None if known else f"not a JSON object: {value!r:.80}")


def _csv_reader(delimiter: str) -> Callable[[Range, int, str], Iterator[Row]]:
    def read_csv(part: Range, start: int, column: str) -> Iterator[Row]:
        csv.field_size_limit(sys.maxsize)
        with _open(part.path) as file:
            # What is no UTF-8 becomes surrogates, so that one bad row does not end the file.
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.DictReader(text, delimiter=delimiter)
            try:
                for index, row in enumerate(rows):
                    if index >= start and part.has(index):
                        bad = any("\ud800" <= character <= "\udfff" for character in row.get(column) or "")
                        yield Row(index + 1, row, f"not UTF-8 (line {rows.line_num})" if bad else None)
            except (csv.Error, *_DAMAGED) as error:
                yield Row(part.end, None, f"the file is damaged from here on ({error})")

    return read_csv


def _read_parquet(part: Range, start: int, column: str) -> Iterator[Row]:
    try:
        with fsspec.open(part.path, "rb") as file, pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if column not in names:
                yield Row(part.end, None, f"the file has no column {column!r}; it has: {', '.join(names)}")
                return
            position = 0
            for group in range(table.num_row_groups):
                size = table.metadata.row_group(group).num_rows
                if position >= part.end or position + size <= start:
                    position += size
                    continue
                for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                    yield from _array_rows(batch, column, position, part, start)
                    position += len(batch)
    except _DAMAGED as error:
        yield Row(part.end, None, f"cannot be read as Parquet: {' '.join(str(error).split())}")


def _read_arrow(part: Range, start: int, column: str) -> Iterator[Row]:
    """The streaming format, which `datasets` writes, or the file format."""
    try:
        with _open(part.path) as file:
            position = 0
            for batch in _arrow_batches(file):
                names = batch.schema.names
                if column and column not in names:
                    yield Row(part.end, None, f"the file has no column {column!r}; it has: {', '.join(names)}")
                    return
                yield from _array_rows(batch, column, position, part, start)
                position += len(batch)
    except _DAMAGED as error:
        yield Row(part.end, None, f"cannot be read as Arrow: {' '.join(str(error).split())}")


def _arrow_batches(file: Any) -> Iterator[pa.RecordBatch]:
    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
    else:
        file.seek(0)
        yield from pa.ipc.open_stream(file)


def _array_rows(batch: pa.RecordBatch, column: str, first: int, part: Range, start: int) -> Iterator[Row]:
    """The rows of a batch, whose first has index ``first``, from ``start`` on, as far as they are in the range."""
    wanted = [column] if column else batch.schema.names
    for i in range(max(0, start - first), min(len(batch), part.end - first)):
        if not part.has(first + i):
            continue
        try:
            yield Row(first + i + 1, {name: batch.column(name)[i].as_py() for name in wanted})
        except UnicodeDecodeError as error:
            yield Row(first + i + 1, None, f"not UTF-8: {error}")


def _num_rows(path: str) -> int:
    with fsspec.open(path, "rb") as file:
        return int(pq.read_metadata(file).num_rows)


_READERS: dict[str, Callable[[Range, int, str], Iterator[Row]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _csv_reader(","),
    ".tsv": _csv_reader("\t"),
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
