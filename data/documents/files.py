"""A file before its rows are read: its format, its content, its size and its identity.

Decompressing needs little memory, whatever the file says: 64 KB of content at a time, and for zstd a window of at
most 128 MB, as for ``zstd -d``. A file made with ``zstd --long=28`` or more is refused.
"""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

_FORMATS = {
    ".txt": ".txt",
    ".text": ".txt",
    ".jsonl": ".jsonl",
    ".ndjson": ".jsonl",
    **{ending: ending for ending in (".json", ".csv", ".tsv", ".arrow", ".parquet")},
}
KNOWN_FORMATS = f"{' '.join(e for e in _FORMATS if e != '.parquet')}, also with .gz or .zst, and .parquet only as it is"
DAMAGED = (OSError, EOFError, zlib.error, pa.ArrowException)  # what reading a damaged file raises, see `damage`
_HASHED_WHOLE = 1 << 30  # bytes of a source: half a second to a second
_PIECE = 1 << 16
_NUM_PIECES = 4096


def file_format(path: str) -> str | None:
    """How a file is read, by its ending without that of its compression; None if the ending is unknown.

    A compressed Parquet file is not read: reading starts at its end, so all of it would be unpacked first.
    """
    name = PurePosixPath(path.lower())
    if not compression(path):
        return _FORMATS.get(name.suffix)
    inner = _FORMATS.get(PurePosixPath(name.stem).suffix)
    return None if inner == ".parquet" else inner


def compression(path: str) -> str:
    """The ending that names a file's compression, ".gz" or ".zst"; '' if it is not compressed."""
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if suffix in (".gz", ".zst") else ""


@contextmanager
def open_raw(path: str) -> Iterator[io.BufferedReader]:
    """Open the bytes as they are. Only Hub files go through `fsspec`, which takes ``::`` in a path for a chain."""
    if "://" not in path:
        with Path(path).open("rb") as file:
            yield file
    else:
        with fsspec.open(path, "rb") as remote, io.BufferedReader(remote) as file:  # fsspec limits a line's length
            yield file


@contextmanager
def open_file(path: str) -> Iterator[Any]:
    """Open the decompressed content. Reading a file that ends too early raises an error of `DAMAGED`."""
    with open_raw(path) as raw:
        if compression(path) == ".gz":
            yield gzip.GzipFile(fileobj=raw)
        elif compression(path) == ".zst":
            with pa.CompressedInputStream(raw, "zstd") as content:
                yield io.BufferedReader(content)
        else:
            yield raw


def damage(error: Exception) -> str:
    """What is wrong with a file's content, from an error of `DAMAGED`. Errors of the disk or network are raised again.

    Arrow raises a bare OSError for damaged content; an error of the disk has a number or a class of its own.
    """
    is_of_content = type(error) is OSError and error.errno is None
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and not is_of_content:
        raise error
    return " ".join(str(error).split())


def file_size(path: str) -> int:
    """The size of a file in bytes."""
    return int(_hub_facts(path)["size"]) if "://" in path else Path(path).stat().st_size


def version(path: str) -> str:
    """Changes when a file does. On the Hub it is the hash of the content; here, size, times and place on the disk.

    A copy may keep the time of the last write (``cp -p``), but not the time at which the file's entry was changed.
    """
    if "://" in path:
        return str(_hub_facts(path).get("blob_id", ""))
    facts = Path(path).stat()
    return repr((facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino))


def identity(paths: tuple[str, ...]) -> str:
    """SHA-256 of names, sizes and content: the same on any machine.

    Up to 1 GB in all, every byte is hashed. Above that, 4,096 pieces of 64 KB are hashed, evenly spread over the
    files: this takes less than a second, but misses a change between two pieces that keeps the size. For a file on
    the Hub, the Hub's own hash is used.
    """
    sizes = [file_size(path) for path in paths]
    is_whole = sum(sizes) <= _HASHED_WHOLE
    step = _PIECE if is_whole else sum(sizes) // _NUM_PIECES
    hashed, position = hashlib.sha256(), 0
    for path, size in zip(paths, sizes, strict=True):
        hashed.update(repr((PurePosixPath(path).name, size)).encode())
        if "://" in path:
            hashed.update(version(path).encode())
        elif position < size:
            with open_raw(path) as file:
                for place in range(position, size, step):
                    file.seek(place)
                    hashed.update(file.read(_PIECE))
        position = 0 if is_whole else (position - size) % step
    return hashed.hexdigest()


def _hub_facts(path: str) -> dict[str, Any]:
    filesystem, name = fsspec.core.url_to_fs(path)
    return dict(filesystem.info(name))
