"""Open any source of text as a stream of documents.

One door for a Hub dataset, local files and the embedded corpus: `sources` finds
them, `rows` and `readers` read them. This file finds the text in a row, holds
documents out for evaluation, and raises errors that name file, row and column.
"""

import hashlib
import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from data.config import DataConfig
from data.documents import readers
from data.documents.ranges import DataError, Range, Row, brief, first_key
from data.documents.rows import Rows
from data.documents.sources import Source, find_source, open_rows, split_names

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
        cursor: Where the stream goes on after them.
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
        """Changes with all that the texts depend on, and with a file's place or time of change. Quick to compute."""
        return self._digest(self.rows.version)

    @property
    def identity(self) -> str:
        """Changes with the content, the split, the column or the held-out part. The same on every machine."""
        return self._digest(self.rows.identity)

    def _digest(self, rows: str) -> str:
        parts = (rows, self.text_column, self.row_slice, self.held_out, self.eval_fraction, self.skips_bad_rows)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

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
        """Yield the texts of a logical stream, from a cursor to the end of the stream.

        Args:
            at_once: A batch ends when it has so many rows or so many characters.

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
        """Yield range, row, and the cursor after it."""
        for number, part in enumerate(self.rows.ranges(num_streams, stream)):
            if number >= cursor.part:
                start = part.begin if number > cursor.part or cursor.position is None else cursor.position
                if start < part.end:
                    for row in self.rows.read(part, start, self.text_column):
                        yield part, row, Cursor(number, row.position)

    def _bad(self, part: Range, row: Row, text: str | None) -> None:
        if self.skips_bad_rows:  # without the place: finding the number of a line means reading up to it
            logger.debug("dataset=%r: passed over the row at %d of %s", self.name, row.begin, part.path)
            return
        value = (row.value or {}).get(first_key(self.text_column, row.value or {}) or "")
        holds = "holds no text" if text is None else "holds half a surrogate pair, which is no character"
        problem = row.problem or f"text_column={self.text_column!r} {holds}: {brief(value)}"
        place = self.rows.place(part, row.begin)
        raise DataError(f"dataset={self.name!r}: {place}: {problem}; --on_bad_row skip passes over such rows")

    def _holds_out(self, text: str) -> bool:
        """The text alone decides, so that a text that occurs twice is never on both sides."""
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.eval_fraction * 2**64


def open_documents(config: DataConfig) -> tuple[list[Documents], list[Documents]]:
    """The training and the evaluation documents that the settings name, source by source.

    Raises:
        ValueError: What is missing or wrong, and what would work.
    """
    sources = [find_source(name, config) for name in config.mixture or [config.dataset]]
    train = [_open(source, config.dataset_split, config, is_endless=config.streaming) for source in sources]
    if config.eval_dataset is not None:
        source = find_source(config.eval_dataset, config)
        split = config.eval_split or _default_eval_split(source, ("validation", "test", "train"), config)
        return train, [_open(source, split or "train", config)]
    split = config.eval_split
    if split is None and config.eval_fraction is None:
        split = _own_eval_split(sources, config)
    if split is not None:
        return train, [_open(source, split, config) for source in sources]
    fraction = config.eval_fraction or _DEFAULT_EVAL_FRACTION
    held_in, held_out = (
        [replace(documents, held_out=side, eval_fraction=fraction) for documents in train] for side in (False, True)
    )
    return held_in, held_out


def _own_eval_split(sources: list[Source], config: DataConfig) -> str | None:
    """The validation split of the only source, if it has one.

    Of a mixture all sources hold out texts by the same hash: what is in the validation
    split of one may stand in the training text of another.
    """
    having = [source for source in sources if _default_eval_split(source, ("validation",), config)]
    if len(sources) == 1:
        return "validation" if having else None
    for source in having:
        logger.warning(
            "dataset=%r: its validation split is not read: the evaluation text of a mixture is held out of the "
            "training text of all sources; --eval_dataset names another",
            source.name,
        )
    return None


def _default_eval_split(source: Source, wanted: tuple[str, ...], config: DataConfig) -> str | None:
    splits = split_names(source, config)
    return next((split for split in wanted if split in splits), None)


def _open(source: Source, split: str, config: DataConfig, *, is_endless: bool = False) -> Documents:
    rows, row_slice = open_rows(source, split, config, is_endless=is_endless)
    column = _text_column(rows.columns(), source.name, config.text_column, anywhere=bool(config.mixture))
    return Documents(rows, source.name, column, row_slice, skips_bad_rows=config.on_bad_row == "skip")


def _text_column(columns: set[str], name: str, wanted: str | None, *, anywhere: bool) -> str:
    """The dotted path of the text, which must be a column; in a mixture, a source without it may have a default one."""
    candidates = (wanted, *_DEFAULT_TEXT_COLUMNS) if anywhere else (wanted,) if wanted else _DEFAULT_TEXT_COLUMNS
    for column in candidates:
        if column in columns:
            return column
    problem = f"has no column {wanted!r}" if wanted else "has no column 'text': name one with --text_column"
    raise ValueError(f"dataset={name!r} {problem}; the columns are: {', '.join(sorted(columns))}")


def text_of(row: dict[str, Any], text_column: str) -> str | None:
    """The text at a dotted path of a row, or in a column of that very name; lists are joined by a space.

    None if there is anything but text.
    """
    try:
        return _text_at(row, text_column)
    except RecursionError:  # lists in lists in lists
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
