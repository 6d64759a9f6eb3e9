"""Open files, and decompress those whose ending says so; a file that ends too early is an error.

Decompressing needs little memory, whatever the file says: 64 KB of content at a time, and for zstd a window of at
most 128 MB, as ``zstd -d`` has it. A file of ``zstd --long=28`` or more is refused.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

COMPRESSIONS = (".gz", ".zst")
DAMAGED = (OSError, EOFError, zlib.error, pa.ArrowException)  # what reading a damaged file raises, see `damage`


def compression(path: str) -> str:
    """The ending that says how a file is compressed; '' if it is not."""
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


@contextmanager
def open_raw(path: str) -> Iterator[io.BufferedReader]:
    """The bytes as they are. Only a file on the Hub goes through `fsspec`, which takes ``::`` in a path for a chain."""
    if "://" not in path:
        with Path(path).open("rb") as file:
            yield file
    else:
        with fsspec.open(path, "rb") as remote, io.BufferedReader(remote) as file:  # whose lines have no limit
            yield file


@contextmanager
def open_file(path: str) -> Iterator[Any]:
    """The content, decompressed."""
    with open_raw(path) as raw:
        if compression(path) == ".gz":
            yield gzip.GzipFile(fileobj=raw)
        elif compression(path) == ".zst":
            with pa.CompressedInputStream(raw, "zstd") as content:
                yield io.BufferedReader(content)
        else:
            yield raw


def damage(error: Exception) -> str:
    """What is wrong with the content, of an error of `DAMAGED`; one of the disk or the network is raised again.

    Arrow raises a bare OSError for damaged content; an error of the disk has a number or a class of its own.
    """
    is_of_content = type(error) is OSError and error.errno is None
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and not is_of_content:
        raise error
    return " ".join(str(error).split())
