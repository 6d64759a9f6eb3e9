"""Open any source of text as a stream of documents.

One door for a Hub dataset, local files and the embedded corpus. `readers` reads
files; the `datasets` library finds and downloads what is on the Hub. What is
added here: which files and split are meant, where in a row the text is, which
documents are held out for evaluation, and errors that name file, row and column.
"""

import hashlib
import itertools
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from data import python_docs, readers
from data.config import PYTHON_DOCS, DataConfig
from data.readers import DataError, Range, Row

if TYPE_CHECKING:  # imported where it is used: it takes a second, which local files need not wait for
    import datasets

logger = logging.getLogger(__name__)

_DEFAULT_TEXT_COLUMNS = ("text", "answers.text")
_DEFAULT_EVAL_FRACTION = 0.05
_BATCH_OF_ROWS = 1000
_BATCH_OF_CHARACTERS = 1_000_000


class Rows(Protocol):
    """A source of rows that can be divided and entered anywhere."""

    def ranges(self, num_streams: int, stream: int) -> list[Range]:
        """What a logical stream reads: together the streams read each row once."""

    def read(self, part: Range, start: int, column: str) -> Iterator[Row]:
        """Yield the rows of a range from a position on."""

    def place(self, part: Range, position: int) -> str:
        """A row by name and number, for messages."""

    def columns(self) -> set[str]:
        """Dotted paths of the columns."""

    def count(self) -> int:
        """Rows in all; may read everything."""

    @property
    def identity(self) -> str:
        """Tells the source from another, on any machine."""

    @property
    def version(self) -> str:
        """Changes when the source does, on this machine."""


@dataclass(frozen=True)
class FileRows:
    """Rows of files of one format, on this machine or, by an ``hf://`` path, on the Hub."""

    paths: tuple[str, ...]

    def ranges(self, num_streams: int, stream: int) -> list[Range]:
        """See `Rows`."""
        return readers.ranges(self.paths, self._sizes, num_streams, stream)

    @cached_property
    def _sizes(self) -> list[int] | None:
        return readers.sizes(self.paths)  # once for all streams and passes: on the Hub it is slow

    def read(self, part: Range, start: int, column: str) -> Iterator[Row]:
        """See `Rows`."""
        return readers.read(part, start, column)

    def place(self, part: Range, position: int) -> str:
        """See `Rows`."""
        return readers.place(part.path, position)

    def columns(self) -> set[str]:
        """See `Rows`."""
        found = (readers.columns(path) for path in self.paths)
        return next((columns for columns in found if columns), set())

    def count(self) -> int:
        """See `Rows`."""
        if readers.file_format(self.paths[0]) == ".parquet" and self._sizes is not None:
            return sum(self._sizes)
        return sum(1 for part in self.ranges(1, 0) for _ in self.read(part, part.begin, ""))

    @property
    def identity(self) -> str:
        """Names and sizes."""
        return repr([(Path(path).name, readers.file_size(path)) for path in self.paths])

    @property
    def version(self) -> str:
        """Places and times of change."""
        return repr([(path, readers.modified(path)) for path in self.paths])


@dataclass(frozen=True)
class TableRows:
    """Rows of a table that `datasets` has downloaded and memory-mapped."""

    table: "datasets.Dataset"

    def ranges(self, num_streams: int, stream: int) -> list[Range]:
        """See `Rows`."""
        begin, end = (len(self.table) * (stream + i) // num_streams for i in (0, 1))
        return [Range("", begin, end)]

    def read(self, part: Range, start: int, column: str) -> Iterator[Row]:
        """See `Rows`."""
        rows = self.table.select_columns([column]).select(range(start, part.end))
        position = start
        for batch in rows.iter(batch_size=_BATCH_OF_ROWS):
            for value in batch[column]:
                yield Row(position, position + 1, {column: value})
                position += 1

    def place(self, part: Range, position: int) -> str:
        """See `Rows`."""
        return f"row {position}"

    def columns(self) -> set[str]:
        """See `Rows`."""
        return readers.schema_columns(self.table.features.arrow_schema)

    def count(self) -> int:
        """See `Rows`."""
        return len(self.table)

    @property
    def identity(self) -> str:
        """Of `datasets`: changes with the source, the revision and the split."""
        return str(self.table._fingerprint)

    @property
    def version(self) -> str:
        """See `identity`."""
        return ""


class Cursor(NamedTuple):
    """Where a logical stream of documents goes on: the number of its range, and the position there."""

    part: int = 0
    position: int | None = None


START = Cursor()


class TextBatch(NamedTuple):
    """Some texts of a stream.

    Attributes:
        texts: Without blank ones; may be empty.
        cursor: Behind them.
        num_bad: Rows without a readable text that were passed over.
    """

    texts: list[str]
    cursor: Cursor
    num_bad: int


@dataclass(frozen=True)
class Documents:
    """Texts that can be read from the start any number of times, whole or in logical streams.

    Attributes:
        rows: Where they are read from.
        name: What the user called the source, for messages.
        text_column: Dotted path of the text in a row.
        row_slice: First row and end of those that are read, where the split is ``name[first:end]``.
        held_out: Keep only the documents that the hash holds out (True), only
            the others (False), or all (None).
        eval_fraction: The fraction that the hash holds out.
        skips_bad_rows: Pass over a row without a readable text, rather than raise.
    """

    rows: Rows
    name: str
    text_column: str
    row_slice: tuple[int, int] | None = None
    held_out: bool | None = None
    eval_fraction: float = 0.0
    skips_bad_rows: bool = False

    @property
    def fingerprint(self) -> str:
        """Changes when anything does that the texts depend on, a file's time of change too."""
        return hashlib.sha256(repr((self.identity, self.rows.version)).encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Changes when the source, the split, the column or the held-out part does; the same on another machine."""
        parts = (self.rows.identity, self.text_column, self.row_slice, self.held_out, self.eval_fraction)
        return hashlib.sha256(repr((*parts, self.skips_bad_rows)).encode()).hexdigest()

    def texts(self) -> Iterator[list[str]]:
        """Yield all texts in batches, in order, without the blank ones.

        Raises:
            ValueError: A row without a text, naming file, row and column.
        """
        for batch in self.batches():
            yield batch.texts

    def batches(
        self,
        num_streams: int = 1,
        stream: int = 0,
        cursor: Cursor = START,
        at_once: tuple[int, int] = (_BATCH_OF_ROWS, _BATCH_OF_CHARACTERS),
    ) -> Iterator[TextBatch]:
        """Yield the texts of a logical stream, from a cursor to the end of the stream; so many rows or characters.

        Raises:
            ValueError: See `texts`.
        """
        texts: list[str] = []
        num_bad = num_rows = num_characters = 0
        for part, row, after in itertools.islice(
            self._rows(num_streams, stream, cursor), *(self.row_slice or (0, None))
        ):
            text = None if row.problem or row.value is None else self._text(row.value)
            if text is None or not readers.is_unicode(text):
                self._bad(part, row, text)
                num_bad += 1
            elif text.strip() and (self.held_out is None or self._holds_out(text) == self.held_out):
                texts.append(text)
                num_characters += len(text)
            num_rows += 1
            if num_rows == at_once[0] or num_characters >= at_once[1]:
                yield TextBatch(texts, after, num_bad)
                texts, num_bad, num_rows, num_characters = [], 0, 0, 0
        yield TextBatch(texts, Cursor(sys.maxsize), num_bad)

    def _rows(self, num_streams: int, stream: int, cursor: Cursor) -> Iterator[tuple[Range, Row, Cursor]]:
        """Yield range, row, and the cursor behind it."""
        column = self.text_column.split(".")[0]
        for number, part in enumerate(self.rows.ranges(num_streams, stream)):
            if number >= cursor.part:
                start = part.begin if number > cursor.part or cursor.position is None else cursor.position
                if start < part.end:
                    for row in self.rows.read(part, start, column):
                        yield part, row, Cursor(number, row.position)

    def _text(self, row: dict[str, Any]) -> str | None:
        column, *path = self.text_column.split(".")
        try:
            return _text_of(row.get(column), path)
        except RecursionError:  # lists in lists in lists
            return None

    def _bad(self, part: Range, row: Row, text: str | None) -> None:
        if self.skips_bad_rows:  # without the place: finding the number of a line means reading up to it
            logger.debug("dataset=%r: passed over the row at %d of %s", self.name, row.begin, part.path)
            return
        value = (row.value or {}).get(self.text_column.split(".")[0])
        holds = "holds no text" if text is None else "holds half a surrogate pair, which is no character"
        problem = row.problem or f"text_column={self.text_column!r} {holds}: {readers.brief(value)}"
        place = self.rows.place(part, row.begin)
        raise DataError(f"dataset={self.name!r}: {place}: {problem}; --on_bad_row skip passes over such rows")

    def _holds_out(self, text: str) -> bool:
        """By the text itself, so that a text met twice is never on both sides."""
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.eval_fraction * 2**64


def open_documents(config: DataConfig) -> tuple[list[Documents], list[Documents]]:
    """The training and the evaluation documents that the settings name, source by source.

    Raises:
        ValueError: What is missing or wrong, and what would work.
    """
    names = list(config.mixture) or [config.dataset]
    train = [_open(name, config.dataset_split, config, is_endless=config.streaming) for name in names]
    if config.eval_dataset is not None:
        split = config.eval_split or _default_eval_split(config.eval_dataset, ("validation", "test", "train"), config)
        return train, [_open(config.eval_dataset, split or "train", config)]
    if config.eval_split is not None:
        return train, [_open(name, config.eval_split, config) for name in names]
    pairs = [_held_out(name, documents, config) for name, documents in zip(names, train, strict=True)]
    return [train for train, _ in pairs], [held_out for _, held_out in pairs]


def _held_out(name: str, documents: Documents, config: DataConfig) -> tuple[Documents, Documents]:
    """Training documents and evaluation documents of a source: its validation split, or a part held out by hash."""
    if config.eval_fraction is None and (split := _default_eval_split(name, ("validation",), config)):
        return documents, _open(name, split, config)
    fraction = config.eval_fraction or _DEFAULT_EVAL_FRACTION
    train, evaluation = (replace(documents, held_out=side, eval_fraction=fraction) for side in (False, True))
    return train, evaluation


def _default_eval_split(name: str, wanted: tuple[str, ...], config: DataConfig) -> str | None:
    splits = _split_names(name, config)
    return next((split for split in wanted if split in splits), None)


def _split_names(name: str, config: DataConfig) -> list[str]:
    if (files := _files(name, config)) is not None:
        return list(files)
    import datasets

    try:
        return datasets.get_dataset_split_names(name, config.dataset_config, revision=config.dataset_revision)
    except Exception as error:
        raise ValueError(_hub_message(name, error)) from error


def _open(name: str, split: str, config: DataConfig, *, is_endless: bool = False) -> Documents:
    """A split of a source.

    Args:
        is_endless: It will be streamed, again and again. What is evaluated on is not, but a
            streaming run does not download a Hub dataset for it either.
    """
    row_slice = None
    rows: Rows
    files = _files(name, config)
    if files is None and config.streaming:
        files = _hub_files(name, config)
    if files is not None:
        rows = FileRows(_chosen(name, files, re.split(r"[\[+]", split)[0]))
        row_slice = _row_slice(split, rows, is_endless)
    else:
        import datasets

        try:
            rows = TableRows(
                datasets.load_dataset(name, config.dataset_config, revision=config.dataset_revision, split=split)
            )
        except Exception as error:
            raise ValueError(_hub_message(name, error)) from error
    column = _text_column(rows.columns(), name, config.text_column, anywhere=bool(config.mixture))
    return Documents(rows, name, column, row_slice, skips_bad_rows=config.on_bad_row == "skip")


def _row_slice(split: str, rows: Rows, is_endless: bool) -> tuple[int, int] | None:
    """First row and end of ``train[10:500]`` or ``train[:20%]``; None of a whole split."""
    if re.fullmatch(r"[\w.-]+", split):
        return None
    match = re.fullmatch(r"[\w.-]+\[(-?\d+%?)?:(-?\d+%?)?\]", split)
    if match is None or is_endless:
        why = "a stream has no end to count from" if match else "write a part as 'train[:5000]' or 'train[10%:20%]'"
        raise ValueError(f"dataset_split={split!r} cannot be read: {why}")
    first, end = match.groups()
    if all(bound is None or bound.isdigit() for bound in (first, end)):
        return int(first or 0), int(end) if end else sys.maxsize
    num_rows = rows.count()

    def resolve(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        number = round(num_rows * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
        return min(num_rows, max(0, number + num_rows if number < 0 else number))

    return resolve(first, 0), resolve(end, num_rows)


def _hub_files(name: str, config: DataConfig) -> dict[str, list[str]]:
    """``{split: [hf:// path, ...]}`` of a Hub dataset."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, config.dataset_config, revision=config.dataset_revision)
    except Exception as error:
        raise ValueError(_hub_message(name, error)) from error
    return {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}


def _chosen(name: str, files: dict[str, list[str]], split: str) -> tuple[str, ...]:
    """The files of a split, checked to be of one known format and not all empty."""
    if split not in files:
        raise ValueError(f"dataset={name!r} has no split {split!r}: it has {', '.join(files)}")
    chosen = files[split]
    formats = {readers.file_format(path) or "unknown" for path in chosen}
    if len(formats) > 1 or "unknown" in formats:
        raise ValueError(
            f"dataset={name!r} must be files of one format ({readers.known_formats()}), "
            f"but holds: {', '.join(sorted(formats))}"
        )
    filled = tuple(path for path in chosen if readers.file_size(path) > 0)
    if not filled:
        raise ValueError(f"dataset={name!r}: the file is empty: {chosen[0]}")
    return filled


def _files(name: str, config: DataConfig) -> dict[str, list[str]] | None:
    """``{split: [file, ...]}``, or None for a Hub dataset."""
    if name == PYTHON_DOCS:
        return {"train": [str(python_docs.cached_rows(Path(config.cache_dir)))]}
    return local_files(name)


def local_files(name: str) -> dict[str, list[str]] | None:
    """``{split: [file, ...]}`` for a local path, folder or glob; None if the name can only be a Hub id.

    In a folder, file and folder names tell the splits as they do on the Hub
    (``train.jsonl``, ``validation/part-0.parquet``); all else is 'train'.

    Raises:
        ValueError: The path does not exist, or holds no file of a known format.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return {"train": [str(path)]}
    if path.is_dir():
        return _splits_of_folder(name, path.resolve())
    if re.search(r"[*?\[]", name):
        matches = sorted(match for match in glob(str(path), recursive=True) if Path(match).is_file())
        if not matches:
            raise ValueError(f"dataset={name!r}: no file matches")
        return {"train": matches}
    if readers.file_format(str(path)) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ValueError(f"dataset={name!r}: no such file or folder")
    return None


def _splits_of_folder(name: str, folder: Path) -> dict[str, list[str]]:
    from datasets.data_files import DataFilesDict, get_data_patterns

    try:
        patterns = get_data_patterns(str(folder))
        found = DataFilesDict.from_patterns(patterns, base_path=str(folder))
    except FileNotFoundError:  # of an empty folder
        found = {}
    known = {str(split): sorted(f for f in files if readers.file_format(f)) for split, files in found.items()}
    if not any(known.values()):
        raise ValueError(f"dataset={name!r}: the folder holds no {readers.known_formats()} file")
    return {split: files for split, files in known.items() if files}


def _text_column(columns: set[str], name: str, wanted: str | None, *, anywhere: bool) -> str:
    """The dotted path of the text, checked against the columns there are; of a mixture, not every source has it."""
    candidates = (wanted, *_DEFAULT_TEXT_COLUMNS) if anywhere else (wanted,) if wanted else _DEFAULT_TEXT_COLUMNS
    for column in candidates:
        if column in columns:
            return column
    problem = f"has no column {wanted!r}" if wanted else "has no column 'text': name one with --text_column"
    raise ValueError(f"dataset={name!r} {problem}; the columns are: {', '.join(sorted(columns))}")


def _text_of(value: Any, path: list[str]) -> str | None:
    """The text at a path inside a value; lists are joined by a space. None if there is anything but text."""
    if isinstance(value, list):
        parts = [_text_of(item, path) for item in value]
        return None if None in parts else " ".join(part for part in parts if part is not None)
    if not path:
        return value if isinstance(value, str) else None
    return _text_of(value.get(path[0]), path[1:]) if isinstance(value, dict) else None


def _hub_message(name: str, error: Exception) -> str:
    return (
        f"dataset={name!r} is no local file or folder, and the Hub did not give it: "
        f"{type(error).__name__}: {' '.join(str(error).split())}"
    )
