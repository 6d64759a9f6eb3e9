"""Files of every format that is read, for tests."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def zstd(content: bytes) -> bytes:
    """One frame."""
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


def write_texts(path: Path, values: list[str]) -> Path:
    """Write them, a row each, in the format of the path's name; 10 rows in a row group."""
    table = pa.table({"text": values})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=10)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=10)
    elif ".jsonl" in path.name:
        content = "".join(json.dumps({"text": value}) + "\n" for value in values).encode()
        packers = {".gz": gzip.compress, ".zst": zstd}
        path.write_bytes(packers.get(path.suffix, bytes)(content))
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"text": value} for value in values]))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text"], *([value] for value in values)])
    else:
        path.write_text("\n".join(values))
    return path
