"""Any source of text as a stream of documents.

This file takes the text from each row, holds documents out for evaluation, and raises errors that name file, row and
column.
"""

import hashlib
import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data.config import DataConfig
from data.documents import files, readers
from data.documents.ranges import DataError, Range, Row, brief, first_key
from data.documents.rows import FileRows
from data.documents.sources import Source, find_source, open_rows

logger = logging.getLogger(__name__)

_DEFAULT_TEXT_COLUMNS = ("text", "answers.text")
_DEFAULT_EVAL_FRACTION = 0.05
_AT_ONCE = (1000, 1_000_000)  # a batch ends when it has this many rows or this many characters


class Cursor(NamedTuple):
    """Where a logical stream of documents continues: the number of its range, and the position there."""

    part: int = 0
    position: int = -1  # the start of the range


START = Cursor()


class TextBatch(NamedTuple):
    """Some texts of a stream."""

    texts: list[str]  # that are not blank; may be empty
    cursor: Cursor  # where the stream continues after them
    num_bad: int  # bad rows that were skipped


@dataclass(frozen=True)
class Documents:
    """Texts that can be read from the start any number of times, whole or in logical streams."""

    rows: FileRows
    name: str  # the user's, for messages
    text_column: str  # dotted path of the text in a row
    row_slice: tuple[int, int] | None = None  # read only these rows, [first, end), as in a split name[first:end]
    held_out: bool | None = None  # only the documents that the hash holds out (True), only the others, or all (None)
    eval_fraction: float = 0.0  # that the hash holds out
    skips_bad_rows: bool = False  # skip a row without readable text instead of raising an error

    @property
    def fingerprint(self) -> str:
        """Changes with everything the texts depend on, and with a file's place or time of change. Quick to compute."""
        return self._digest(repr([(path, files.version(path)) for path in self.rows.paths]))

    @property
    def identity(self) -> str:
        """Changes with the content, split, column or held-out part; the same on any machine. It may take a second."""
        return self._digest(files.identity(self.rows.paths))

    def _digest(self, rows: str) -> str:
        parts = (rows, self.text_column, self.row_slice, self.held_out, self.eval_fraction, self.skips_bad_rows)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def texts(self) -> Iterator[list[str]]:
        """Yield all texts in batches, in order, without the blank ones. Raises as `batches` does."""
        return (batch.texts for batch in self.batches())

    def batches(
        self, num_streams: int = 1, stream: int = 0, cursor: Cursor = START, at_once: tuple[int, int] = _AT_ONCE
    ) -> Iterator[TextBatch]:
        """Yield the texts of a logical stream, from a cursor to the end of the stream.

        Raises DataError for a row that has no text, with file, row and column.
        """
        texts: list[str] = []
        num_bad = num_rows = num_characters = 0
        rows = self._rows(num_streams, stream, cursor)
        for part, row, after in itertools.islice(rows, *(self.row_slice or (0, None))):
            text = None if row.problem or row.value is None else text_of(row.value, self.text_column)
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
        """Yield range, row, and the cursor after it."""
        for number, part in enumerate(self.rows.ranges(num_streams, stream)):
            start = max(part.begin, cursor.position) if number == cursor.part else part.begin
            if number >= cursor.part and start < part.end:
                for row in readers.read(part, start, self.text_column):
                    yield part, row, Cursor(number, row.position)

    def _bad(self, part: Range, row: Row, text: str | None) -> None:
        if self.skips_bad_rows:  # without the line's number, which is found by reading the file up to the line
            logger.debug("dataset=%r: skipped the row at %d of %s", self.name, row.begin, part.path)
            return
        value = (row.value or {}).get(first_key(self.text_column, row.value or {}) or "")
        holds = "holds no text" if text is None else "holds half a surrogate pair, which is no character"
        problem = row.problem or f"text_column={self.text_column!r} {holds}: {brief(value)}"
        place = self.rows.place(part, row.begin)
        raise DataError(f"dataset={self.name!r}: {place}: {problem}; --on_bad_row skip skips such rows")

    def _holds_out(self, text: str) -> bool:
        """The text alone decides, so that a text that occurs twice is never on both sides."""
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.eval_fraction * 2**64


def open_documents(config: DataConfig) -> tuple[list[Documents], list[Documents]]:
    """The training and the evaluation documents of the settings, source by source.

    Raises ValueError if a source, split or column is missing or wrong.
    """
    sources = [find_source(name, config) for name in config.mixture or [config.dataset]]
    train = [_open(source, config.dataset_split, config, is_endless=config.streaming) for source in sources]
    split = config.eval_split
    if config.eval_dataset is not None:
        source = find_source(config.eval_dataset, config)
        split = split or next((name for name in ("validation", "test") if name in source.files), "train")
        return train, [_open(source, split, config)]
    if split is None and config.eval_fraction is None:
        split = _own_eval_split(sources)
    if split is not None:
        return train, [_open(source, split, config) for source in sources]
    fraction = config.eval_fraction or _DEFAULT_EVAL_FRACTION
    held_in, held_out = (
        [replace(documents, held_out=side, eval_fraction=fraction) for documents in train] for side in (False, True)
    )
    return held_in, held_out


def _own_eval_split(sources: list[Source]) -> str | None:
    """The validation split of the only source, if it has one.

    A mixture has none: a text in the validation split of one source may occur in the training text of another, so
    all sources hold out texts by the same hash.
    """
    with_split = [source for source in sources if "validation" in source.files]
    if len(sources) == 1:
        return "validation" if with_split else None
    for source in with_split:
        logger.warning(
            "dataset=%r: its validation split is not read: a mixture is evaluated on text held out of the training "
            "text of all sources; --eval_dataset names other text",
            source.name,
        )
    return None


def _open(source: Source, split: str, config: DataConfig, *, is_endless: bool = False) -> Documents:
    rows, row_slice = open_rows(source, split, is_endless=is_endless)
    column = _text_column(rows.columns(), source.name, config.text_column, anywhere=bool(config.mixture))
    return Documents(rows, source.name, column, row_slice, skips_bad_rows=config.on_bad_row == "skip")


def _text_column(columns: set[str], name: str, wanted: str | None, *, anywhere: bool) -> str:
    """The dotted path of the text. In a mixture, a source without the wanted column may have a default one."""
    candidates = (wanted, *_DEFAULT_TEXT_COLUMNS) if anywhere else (wanted,) if wanted else _DEFAULT_TEXT_COLUMNS
    for column in candidates:
        if column in columns:
            return column
    problem = f"has no column {wanted!r}" if wanted else "has no column 'text': name one with --text_column"
    raise ValueError(f"dataset={name!r} {problem}; the columns are: {', '.join(sorted(columns))}")


def texts_of_file(path: Path, *columns: str) -> Iterator[tuple[str, ...]]:
    """Yield the texts in some columns of each row of a file. Raises DataError for a row without one of them."""
    rows, part = FileRows((str(path),)), Range(str(path), 0, sys.maxsize)
    for row in readers.read(part, 0, columns[0] if len(columns) == 1 else ""):
        texts = [None if row.value is None else text_of(row.value, column) for column in columns]
        if row.problem or None in texts:
            missing = ", ".join(column for column, text in zip(columns, texts, strict=True) if text is None)
            there = f"--text_column {missing} holds no text; the columns are: {', '.join(row.value or ())}"
            raise DataError(f"{rows.place(part, row.begin)}: {row.problem or there}")
        yield tuple(map(str, texts))


def text_of(row: dict[str, Any], text_column: str) -> str | None:
    """The text at a dotted path of a row, or in a column of that very name. Lists are joined by a space.

    None if there is anything but text, or it is nested too deeply.
    """
    try:
        return _text_at(row, text_column)
    except RecursionError:
        return None


def _text_at(value: Any, path: str) -> str | None:
    if isinstance(value, list):
        parts = [_text_at(item, path) for item in value]
        return None if None in parts else " ".join(part for part in parts if part is not None)
    if not path:
        return value if isinstance(value, str) else None
    if not isinstance(value, dict):
        return None
    key = path if path in value else first_key(path, value)
    return None if key is None else _text_at(value[key], path[len(key) + 1 :])
