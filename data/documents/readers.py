"""Rows of one file, from any position: what dividing, streaming and resuming need.

Each format has a reader. A row that cannot be read comes with its problem, and the caller decides whether to stop.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from data.documents.files import DAMAGED, compression, damage, file_format, open_file
from data.documents.ranges import Range, Row, brief, first_key
from data.documents.tables import arrow_batches, parquet_batches, read_table

_BYTES_AT_ONCE = 1 << 16
_LONGEST_LINE = 1 << 27  # bytes: a whole line is held in memory
_LONGEST_JSON = 1 << 30  # characters of an array, or of objects over many lines: all of it is held in memory


def read(part: Range, start: int, column: str) -> Iterator[Row]:
    """Yield the rows of a range of a file of a known format, from ``part.begin`` or the position of a row on.

    ``column`` is the dotted path of the wanted column, for formats that can read one column alone; '' for all.
    """
    return _READERS[str(file_format(part.path))](part, start, column)


def can_seek(path: str) -> bool:
    """Whether reading can start anywhere in a file."""
    return not compression(path) and file_format(path) in (".txt", ".jsonl", ".parquet")


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON may hold halves of surrogate pairs, which are no characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_lines(part: Range, start: int, column: str, *, parse: Callable[[str], Any]) -> Iterator[Row]:
    """Lines that are not blank. Positions are bytes where the file is not compressed, else numbers of lines."""
    by_byte = can_seek(part.path)
    position = 0
    with open_file(part.path) as file:
        if by_byte:
            may_cut = start == part.begin > 0  # a line, which belongs to the range in which it begins
            position = file.seek(start - may_cut)
            position += _next_line(file)[1] if may_cut else 0
        while position < part.end:
            begin = position
            try:
                line, size = _next_line(file)
            except DAMAGED as error:
                yield _damaged(begin, part, error)
                return
            if not line:
                return
            position += size if by_byte else 1
            if begin == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip() and (by_byte or (begin >= start and part.has(begin))):
                yield _parsed(begin, position, line, parse)


def _next_line(file: Any) -> tuple[bytes, int]:
    """A line and its size in bytes. A line that is too long is cut one byte after the allowed length."""
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


def _damaged(begin: int, part: Range, error: Exception) -> Row:
    return Row(begin, part.end, None, f"the file is damaged from here on ({damage(error)})")


def _read_json(part: Range, start: int, column: str) -> Iterator[Row]:
    """One object a line, where a bad line does not end the file; or an array or objects over many lines, read whole."""
    try:
        with open_file(part.path) as file:
            has_lines = _begins_with_a_row(file)
        if has_lines:
            yield from _read_lines(part, start, column, parse=json.loads)
            return
        values = enumerate(_json_values(part.path))
        rows = [_object(index, index + 1, value) for index, value in values if index >= start and part.has(index)]
    except (ValueError, RecursionError, *DAMAGED) as error:
        yield Row(start, part.end, None, f"not JSON that can be read: {damage(error)}")
        return
    del values  # and with it those of other streams
    yield from rows


def _json_values(path: str) -> list[Any]:
    """The values of an array, or those that stand one after the other."""
    with open_file(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as content:
        text = content.read(_LONGEST_JSON + 1)
    if len(text) > _LONGEST_JSON:
        raise ValueError(f"more than {_LONGEST_JSON:,} characters in one piece: make it one object a line (.jsonl)")
    if text.lstrip().startswith("["):
        return json.loads(text)
    decoder, values, end = json.JSONDecoder(), [], 0
    while end < len(text):
        if text[end].isspace():
            end += 1
        else:
            value, end = decoder.raw_decode(text, end)
            values.append(value)
    return values


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


def _read_csv(part: Range, start: int, column: str, *, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_LINE)
    index = 0
    try:
        with open_file(part.path) as file:
            # Bytes that are not UTF-8 become surrogates, so that one bad row does not end the file.
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.reader(text, delimiter=delimiter, strict=True)
            names, problem = _fields(rows)
            key = first_key(column, names)
            if key is not None and names.count(key) > 1:
                problem = f"the header names {key!r} twice"
            if problem:
                yield Row(start, part.end, None, problem)
                return
            while (found := _fields(rows)) != ([], None):
                if index >= start and part.has(index):
                    yield _csv_row(index, names, *found, key, rows.line_num)
                index += 1
    except DAMAGED as error:
        yield _damaged(max(start, index), part, error)


def _fields(rows: Any) -> tuple[list[str], str | None]:
    """The fields of the next row that is not blank, and its problem; ``([], None)`` at the end of the file."""
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
    ".txt": partial(_read_lines, parse=lambda line: {"text": line}),
    ".jsonl": partial(_read_lines, parse=json.loads),
    ".json": _read_json,
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": partial(read_table, batches=parquet_batches),
    ".arrow": partial(read_table, batches=arrow_batches),
}
