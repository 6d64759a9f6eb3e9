"""Open any source of text as a stream of documents.

One door for a Hub dataset, local files and the embedded corpus: `sources` finds
them, `rows` and `readers` read them. What is added here: where in a row the text
is, which documents are held out for evaluation, and errors that name file, row
and column.
"""

import hashlib
import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from data import readers
from data.config import DataConfig
from data.readers import DataError, Range, Row
from data.rows import Rows
from data.sources import open_rows, split_names

logger = logging.getLogger(__name__)

_DEFAULT_TEXT_COLUMNS = ("text", "answers.text")
_DEFAULT_EVAL_FRACTION = 0.05
_BATCH_OF_ROWS = 1000
_BATCH_OF_CHARACTERS = 1_000_000


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
        """Yield range, row, and the cursor behind it."""
        column = self.text_column.split(".")[0]
        for number, part in enumerate(self.rows.ranges(num_streams, stream)):
            if number >= cursor.part:
                start = part.begin if number > cursor.part or cursor.position is None else cursor.position
                if start < part.end:
                    for row in self.rows.read(part, start, column):
                        yield part, row, Cursor(number, row.position)

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
    splits = split_names(name, config)
    return next((split for split in wanted if split in splits), None)


def _open(name: str, split: str, config: DataConfig, *, is_endless: bool = False) -> Documents:
    rows, row_slice = open_rows(name, split, config, is_endless=is_endless)
    column = _text_column(rows.columns(), name, config.text_column, anywhere=bool(config.mixture))
    return Documents(rows, name, column, row_slice, skips_bad_rows=config.on_bad_row == "skip")


def _text_column(columns: set[str], name: str, wanted: str | None, *, anywhere: bool) -> str:
    """The dotted path of the text, checked against the columns there are; of a mixture, not every source has it."""
    candidates = (wanted, *_DEFAULT_TEXT_COLUMNS) if anywhere else (wanted,) if wanted else _DEFAULT_TEXT_COLUMNS
    for column in candidates:
        if column in columns:
            return column
    problem = f"has no column {wanted!r}" if wanted else "has no column 'text': name one with --text_column"
    raise ValueError(f"dataset={name!r} {problem}; the columns are: {', '.join(sorted(columns))}")


def text_of(row: dict[str, Any], text_column: str) -> str | None:
    """The text at a dotted path of a row; lists are joined by a space. None if there is anything but text."""
    try:
        return _text_at(row, text_column.split("."))
    except RecursionError:  # lists in lists in lists
        return None


def _text_at(value: Any, path: list[str]) -> str | None:
    if isinstance(value, list):
        parts = [_text_at(item, path) for item in value]
        return None if None in parts else " ".join(part for part in parts if part is not None)
    if not path:
        return value if isinstance(value, str) else None
    return _text_at(value.get(path[0]), path[1:]) if isinstance(value, dict) else None
