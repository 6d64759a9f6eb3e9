"""Files opened, decompressed where their ending says so; one that ends too early is an error."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import zstandard

COMPRESSIONS = (".gz", ".zst")
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)  # what reading a damaged file raises
_PACKED_AT_ONCE = 1 << 16
_LARGEST_WINDOW = 1 << 31  # of `zstd --long=31`


@contextmanager
def open_file(path: str) -> Iterator[Any]:
    """The content, decompressed."""
    with fsspec.open(path, "rb") as raw:
        if path.endswith(".gz"):
            yield gzip.GzipFile(fileobj=raw)
        elif path.endswith(".zst"):
            yield io.BufferedReader(ZstdReader(raw))
        else:
            yield raw


class ZstdReader(io.RawIOBase):
    """The content of frames that follow each other. An end within one is an error, which zstandard's reader hides."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._frame: Any = None
        self._packed = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`.

        Raises:
            EOFError: The file ends within a frame.
        """
        while not self._content:
            self._packed = self._packed or self._raw.read(_PACKED_AT_ONCE)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends before the end of the compressed content")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
            self._content = memoryview(self._frame.decompress(self._packed))
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size
