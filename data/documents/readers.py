"""Rows of files, from any position: what dividing, streaming and resuming need.

If reading can start anywhere in a file, the file is divided into ranges: of bytes
for lines (.txt, .jsonl), of rows for Parquet. Any other file (compressed, .csv, .json,
.arrow) is read from its start by each stream, which skips the rows before its position.
A row that cannot be read comes with its problem, so that the caller decides whether
to stop.
"""

import codecs
import csv
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from data.documents.compression import DAMAGED, compression, damage, open_file, open_raw
from data.documents.files import file_format, file_size
from data.documents.json_values import json_values
from data.documents.ranges import Range, Row, brief, first_key
from data.documents.tables import num_parquet_rows, parquet_columns, read_arrow, read_parquet

_BYTES_AT_ONCE = 1 << 16
_LONGEST_LINE = 1 << 27  # bytes: a line is held in memory whole
_FILES_AT_ONCE = 16  # whose sizes are asked for: on the Hub each is some requests


def sizes(paths: tuple[str, ...]) -> list[int] | None:
    """The bytes or the rows of each file, by which files are divided; None if one must be read from its start.

    Raises:
        DataError: A Parquet file does not say how many rows it has.
    """
    if not all(_can_seek(path) for path in paths):
        return None
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        return list(threads.map(_size, paths))


def ranges(paths: tuple[str, ...], sizes: list[int] | None, num_streams: int, stream: int) -> list[Range]:
    """What a logical stream reads: together the streams read each row once.

    Files in which reading can start anywhere are laid end to end and cut into
    ``num_streams`` equal parts. Of other files, a stream takes whole ones; if there
    are fewer files than streams, it takes every ``num_streams``-th row of each.

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
        column: Dotted path of what is wanted, where the format can read its column alone; '' for all.
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
    with open_raw(path) as file:
        while left and (content := file.read(min(left, _BYTES_AT_ONCE))):
            num_lines += content.count(b"\n")
            left -= len(content)
    return f"{name}, line {num_lines}"


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON may hold halves of surrogate pairs, which are no characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def columns(path: str) -> set[str]:
    """Dotted paths of all columns, also nested ones; if the file does not state them, those of its first rows.

    Raises:
        ValueError: None of the first rows can be read.
    """
    if file_format(path) == ".txt":
        return {"text"}
    if file_format(path) == ".parquet":
        return parquet_columns(path)
    first = list(itertools.islice(read(Range(path, 0, sys.maxsize), 0, ""), 100))
    if first and all(row.problem for row in first):
        raise ValueError(f"{place(path, 0)}: {first[0].problem}")
    return {name for row in first if row.value for name in _names(row.value)}


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
    return not compression(path) and file_format(path) in (".txt", ".jsonl", ".parquet")


def _size(path: str) -> int:
    return num_parquet_rows(path) if file_format(path) == ".parquet" else file_size(path)


def _lines(part: Range, start: int, parse: Callable[[str], Any]) -> Iterator[Row]:
    """Lines that are not blank, by byte where the file is not compressed, else by number."""
    by_byte = _can_seek(part.path)
    position = 0
    with open_file(part.path) as file:
        if by_byte:
            position = start
            if start == part.begin > 0:  # a line belongs to the range in which it begins
                file.seek(start - 1)
                position += _next_line(file)[1] - 1
            else:
                file.seek(start)
        while position < part.end:
            begin = position
            try:
                line, size = _next_line(file)
            except DAMAGED as error:
                yield Row(begin, part.end, None, f"the file is damaged from here on ({damage(error)})")
                return
            if not line:
                return
            position += size if by_byte else 1
            if begin == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip() and (by_byte or (begin >= start and part.has(begin))):
                yield _parsed(begin, position, line, parse)


def _next_line(file: Any) -> tuple[bytes, int]:
    """A line and its size. A line that is too long is cut one byte after the longest that is allowed."""
    line = file.readline(_LONGEST_LINE + 1)
    size, is_cut = len(line), len(line) > _LONGEST_LINE and not line.endswith(b"\n")
    while is_cut and (piece := file.readline(_BYTES_AT_ONCE)):
        size += len(piece)
        is_cut = not piece.endswith(b"\n")
    return line, size


def _parsed(begin: int, position: int, line: bytes, parse: Callable[[str], Any]) -> Row:
    if len(line) > _LONGEST_LINE:
        return Row(begin, position, None, f"a line of more than {_LONGEST_LINE:,} bytes")
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
    """An array of objects, or objects over many lines; or one object a line, where a bad line does not end the file."""
    position = 0
    try:
        with open_file(part.path) as file:
            has_lines = _begins_with_a_row(file)
        if has_lines:
            yield from _read_jsonl(part, start, column)
            return
        with open_file(part.path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            for index, value in enumerate(json_values(text)):
                position = index + 1
                if index >= start and part.has(index):
                    yield _object(index, position, value)
    except (ValueError, RecursionError, *DAMAGED) as error:
        problem = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"not JSON: {damage(error)}"
        yield Row(max(start, position), part.end, None, problem)


def _begins_with_a_row(file: Any) -> bool:
    """Whether the first line of a .json file is a row of its own, even a bad one.

    It is none if it begins an array, or if it is only the start of an object: its error is then at its very end.
    """
    lines = (line.removeprefix(codecs.BOM_UTF8).lstrip() for line in iter(lambda: file.readline(_BYTES_AT_ONCE), b""))
    first = next(filter(None, lines), b"[")
    if first.startswith(b"["):
        return False
    if not first.endswith(b"\n"):
        first += file.readline(_LONGEST_LINE)
    text = first.rstrip().decode("utf-8", errors="replace")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos < len(text)
    return True


def _csv_reader(delimiter: str) -> Callable[[Range, int, str], Iterator[Row]]:
    def read_csv(part: Range, start: int, column: str) -> Iterator[Row]:
        csv.field_size_limit(_LONGEST_LINE)
        with open_file(part.path) as file:
            # What is no UTF-8 becomes surrogates, so that one bad row does not end the file.
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.reader(text, delimiter=delimiter, strict=True)
            index = 0
            try:
                names, problem = _fields(rows)
                key = first_key(column, names)
                if key is not None and names.count(key) > 1:
                    problem = f"the header names {key!r} twice"
                if problem:
                    yield Row(start, part.end, None, problem)
                    return
                while True:
                    fields, problem = _fields(rows)
                    if not fields and not problem:
                        return
                    if index >= start and part.has(index):
                        yield _csv_row(index, names, fields, problem, key, rows.line_num)
                    index += 1
            except DAMAGED as error:
                yield Row(max(start, index), part.end, None, f"the file is damaged from here on ({damage(error)})")

    return read_csv


def _fields(rows: Any) -> tuple[list[str], str | None]:
    """The fields of the next row that is not blank, and what is wrong with it; nothing of either at the end."""
    first = rows.line_num + 1
    try:
        return next(filter(None, rows), []), None
    except csv.Error as error:
        why = "a quote is not closed" if "unexpected end" in str(error) else error
        lines = f"line {first}" if rows.line_num == first else f"lines {first} to {rows.line_num}"
        return [], f"not CSV ({lines}): {why}"


def _csv_row(index: int, names: list[str], fields: list[str], problem: str | None, key: str | None, line: int) -> Row:
    row = dict(zip(names, fields, strict=False))
    if problem is None and len(fields) != len(names):
        problem = f"{len(fields)} field{'s'[: len(fields) > 1]} where the header names {len(names)} (line {line})"
    elif problem is None and not is_unicode(row[key] if key else ""):
        problem = f"not UTF-8 (line {line})"
    return Row(index, index + 1, row, problem)


_READERS: dict[str, Callable[[Range, int, str], Iterator[Row]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _csv_reader(","),
    ".tsv": _csv_reader("\t"),
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
