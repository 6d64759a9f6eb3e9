"""Rows of Parquet and Arrow files. The offsets and sizes in a file are checked before they are used to read a value."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from data.documents.files import DAMAGED, compression, damage, open_file, open_raw
from data.documents.ranges import DataError, Range, Row, first_key

_ROWS_AT_ONCE = 1000
_HOSTILE = (*DAMAGED, MemoryError, UnicodeDecodeError)  # impossible sizes and names
Batches = Iterator[tuple[int, pa.RecordBatch]]  # each with the number of its first row


@contextmanager
def parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raises DataError if the file is damaged, also from within the ``with`` block."""
    try:
        with open_raw(path) as file, pq.ParquetFile(file) as table:
            yield table
    except _HOSTILE as error:
        raise DataError(f"{PurePosixPath(path).name} cannot be read as Parquet: {damage(error)}") from error


def schema_columns(schema: pa.Schema) -> set[str]:
    """Dotted paths of a schema's columns, also nested ones."""

    def names(field: pa.Field, prefix: str) -> Iterator[str]:
        kind = field.type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        yield prefix + field.name
        if pa.types.is_struct(kind):
            for child in kind.fields:
                yield from names(child, f"{prefix}{field.name}.")

    return {name for field in schema for name in names(field, "")}


def read_table(part: Range, start: int, column: str, *, batches: Callable[[str, int, str], Batches]) -> Iterator[Row]:
    """See `data.documents.readers.read`. The last row of a damaged file names the damage."""
    position = start
    try:
        for first, batch in batches(part.path, start, column):
            names = batch.schema.names
            key = first_key(column, names)
            if column and key is None:
                raise DataError(f"the file has no column {column!r}; it has: {', '.join(names)}")
            wanted = {name: batch.column(name) for name in (names if key is None else [key])}
            problem = _damage_of(wanted.values())
            for index in filter(part.has, range(max(start, first), min(part.end, first + len(batch)))):
                try:
                    value = None if problem else {name: array[index - first].as_py() for name, array in wanted.items()}
                    row = Row(index, index + 1, value, problem)
                except UnicodeDecodeError as error:
                    row = Row(index, index + 1, None, f"not UTF-8: {error}")
                yield row
                position = row.position
            if first + len(batch) >= part.end:
                return
    except DataError as error:
        yield Row(position, part.end, None, str(error))
    except _HOSTILE as error:
        problem = damage(error) or "too much memory is asked for"
        yield Row(position, part.end, None, f"cannot be read as Arrow: {problem}")


def parquet_batches(path: str, start: int, column: str) -> Batches:
    """The wanted column from the row group on that holds row ``start``."""
    with parquet(path) as table:
        key = first_key(column, table.schema_arrow.names)
        first = 0
        for group in range(table.num_row_groups):
            end = first + table.metadata.row_group(group).num_rows
            if end > start:
                for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=key and [key]):
                    yield first, batch
                    first += len(batch)
            first = end


def arrow_batches(path: str, start: int, column: str) -> Batches:
    """All rows of the streaming format, which `datasets` writes, or the file format."""
    with open_file(path) as file:
        is_stream = file.read(6) != b"ARROW1"
    if not is_stream and compression(path):
        raise DataError("an Arrow file that is compressed is read as a stream only: unpack it")
    with open_file(path) as file:
        reader = pa.ipc.open_stream(file) if is_stream else pa.ipc.open_file(file)
        first = 0
        for batch in reader if is_stream else map(reader.get_batch, range(reader.num_record_batches)):
            yield first, batch
            first += len(batch)


def _damage_of(arrays: Iterable[pa.Array]) -> str | None:
    """What is wrong if an offset or index leads out of an array: reading such a value would crash the process."""
    try:
        for array in arrays:
            array.view(_as_bytes(array.type)).validate(full=True)
    except pa.ArrowException as error:
        return f"damaged: {damage(error)}"
    return None


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in place of text: UTF-8 is checked row by row, when a value is decoded."""
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind.fields])
    return {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(kind, kind)
