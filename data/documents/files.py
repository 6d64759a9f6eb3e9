"""What is known of a file before a row of it is read: its format, its size and its identity."""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from data.documents.compression import compression, open_raw

_FORMATS = {
    ".txt": ".txt",
    ".text": ".txt",
    ".jsonl": ".jsonl",
    ".ndjson": ".jsonl",
    **{ending: ending for ending in (".json", ".csv", ".tsv", ".arrow", ".parquet")},
}
_HASHED_WHOLE = 1 << 30  # bytes of a source: half a second to a second
_PIECE = 1 << 16
_NUM_PIECES = 4096


def file_format(path: str) -> str | None:
    """How a file is read, by its ending without that of its compression; None if that is not known.

    A Parquet file that was compressed once more is not read: reading begins at its end, so all would be unpacked.
    """
    name = PurePosixPath(path.lower())
    if not compression(path):
        return _FORMATS.get(name.suffix)
    inner = _FORMATS.get(PurePosixPath(name.stem).suffix)
    return None if inner == ".parquet" else inner


def known_formats() -> str:
    """The endings of the files that are read, for messages."""
    return f"{' '.join(e for e in _FORMATS if e != '.parquet')}, also with .gz or .zst, and .parquet only as it is"


def file_size(path: str) -> int:
    """How many bytes a file has."""
    return int(_hub_facts(path)["size"]) if "://" in path else Path(path).stat().st_size


def version(path: str) -> str:
    """Changes when a file does: on the Hub the hash of its content; here its size, times and place on the disk.

    A copy may keep the time of the last write (``cp -p``), but not the time at which the file's entry was changed.
    """
    if "://" in path:
        return str(_hub_facts(path).get("blob_id", ""))
    facts = Path(path).stat()
    return repr((facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino))


def identity(paths: tuple[str, ...]) -> str:
    """SHA-256 of names, sizes and content: the same on any machine.

    Up to 1 GB in all, every byte is hashed. Of more, only 4,096 pieces of 64 KB are, evenly spread over the files:
    this takes less than a second, but does not see a change between two pieces that keeps the size. A file on the
    Hub counts by the hash that the Hub has.
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
