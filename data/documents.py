"""Open any source of text as a stream of documents.

One door for a Hub dataset, local files and the embedded corpus; reading is left
to the `datasets` library, which memory-maps what it reads. What is added here:
which files and split are meant, where in a row the text is, which documents are
held out for evaluation, and errors that name the file, line or column.
"""

import gzip
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

import datasets
import zstandard
from datasets.data_files import DataFilesDict, get_data_patterns

from data import python_docs
from data.config import PYTHON_DOCS, DataConfig

# File ending -> (reader of `datasets`, its options). Endings may be followed by .gz or .zst.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
COMPRESSIONS = (".gz", ".zst")
_TEXT_FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv")
_DEFAULT_TEXT_COLUMNS = ("text", "answers.text")
_DEFAULT_EVAL_FRACTION = 0.05
_BATCH_OF_ROWS = 1000


@dataclass(frozen=True)
class Documents:
    """Texts that can be read from the start any number of times.

    Attributes:
        rows: The memory-mapped table.
        name: What the user called the source, for messages.
        text_column: Dotted path of the text in a row.
        files: Where the rows were read from, if from local files.
        held_out: Keep only the documents that the hash holds out (True), only
            the others (False), or all (None).
        eval_fraction: The fraction that the hash holds out.
    """

    rows: datasets.Dataset
    name: str
    text_column: str
    files: tuple[str, ...] = ()
    held_out: bool | None = None
    eval_fraction: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Changes when the source, the split, the column or the held-out part does."""
        parts = (self.rows._fingerprint, self.text_column, self.held_out, self.eval_fraction)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def texts(self) -> Iterator[list[str]]:
        """Yield the texts in batches, in order, without the blank ones.

        Raises:
            ValueError: A row without a text, naming the row and the column.
        """
        column, *path = self.text_column.split(".")
        row = 0
        for values in self._columns(column):
            texts = []
            for value in values:
                text = _text_of(value, path)
                if text is None:
                    raise ValueError(
                        f"dataset={self.name!r}, row {row}: text_column={self.text_column!r} holds no text: "
                        f"{value!r:.80}"
                    )
                row += 1
                if text.strip() and (self.held_out is None or self._holds_out(text) == self.held_out):
                    texts.append(text)
            yield texts

    def _columns(self, column: str) -> Iterator[list[Any]]:
        try:
            for batch in self.rows.select_columns([column]).iter(batch_size=_BATCH_OF_ROWS):
                yield batch[column]
        except UnicodeDecodeError as error:  # JSON and Parquet are read without a look at the bytes
            for file in self.files:
                _check_utf8(Path(file))
            raise ValueError(f"dataset={self.name!r}: text_column={column!r} is not UTF-8: {error}") from error

    def _holds_out(self, text: str) -> bool:
        """By the text itself, so that a text met twice is never on both sides."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.eval_fraction * 2**64


def open_documents(config: DataConfig) -> tuple[Documents, Documents]:
    """The training and the evaluation documents that the settings name.

    Raises:
        ValueError: What is missing or wrong, and what would work.
    """
    train = _open(config.dataset, config.dataset_split, config)
    eval_name = config.eval_dataset or config.dataset
    eval_split = config.eval_split
    if eval_split is None and config.eval_fraction is None:
        eval_split = _default_eval_split(eval_name, config)
    if eval_split is not None:
        return train, _open(eval_name, eval_split, config)
    fraction = config.eval_fraction or _DEFAULT_EVAL_FRACTION
    return replace(train, held_out=False, eval_fraction=fraction), replace(train, held_out=True, eval_fraction=fraction)


def _default_eval_split(name: str, config: DataConfig) -> str | None:
    """The split to evaluate on where the settings name none; None means to hold some of the training text out."""
    wanted = ("validation", "test", "train") if config.eval_dataset else ("validation",)
    splits = _split_names(name, config)
    return next((split for split in wanted if split in splits), None)


def _split_names(name: str, config: DataConfig) -> list[str]:
    if (files := _files(name, config)) is not None:
        return list(files)
    try:
        return datasets.get_dataset_split_names(name, config.dataset_config, revision=config.dataset_revision)
    except Exception as error:
        raise ValueError(_hub_message(name, error)) from error


def _open(name: str, split: str, config: DataConfig) -> Documents:
    files = _files(name, config)
    if files is not None:
        chosen, rows = _load_files(name, files, split)
    else:
        chosen = ()
        try:
            rows = datasets.load_dataset(name, config.dataset_config, revision=config.dataset_revision, split=split)
        except Exception as error:
            raise ValueError(_hub_message(name, error)) from error
    return Documents(rows, name, _text_column(rows, name, config.text_column), chosen)


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
    if _format(path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ValueError(f"dataset={name!r}: no such file or folder")
    return None


def _splits_of_folder(name: str, folder: Path) -> dict[str, list[str]]:
    try:
        patterns = get_data_patterns(str(folder))
        found = DataFilesDict.from_patterns(patterns, base_path=str(folder))
    except FileNotFoundError:  # of an empty folder
        found = {}
    known = {str(split): sorted(f for f in files if _format(Path(f))) for split, files in found.items()}
    if not any(known.values()):
        raise ValueError(f"dataset={name!r}: the folder holds no {_known_formats()} file")
    return {split: files for split, files in known.items() if files}


def _load_files(name: str, files: dict[str, list[str]], split: str) -> tuple[tuple[str, ...], datasets.Dataset]:
    split_name = re.split(r"[\[+]", split)[0]
    if split_name not in files:
        raise ValueError(f"dataset={name!r} has no split {split_name!r}: it has {', '.join(files)}")
    chosen = files[split_name]
    formats = {_format(Path(f)) or "unknown" for f in chosen}
    if len(formats) > 1 or "unknown" in formats:
        found = ", ".join(sorted(formats))
        raise ValueError(f"dataset={name!r} must be files of one format ({_known_formats()}), but holds: {found}")
    reader, options = FORMATS[formats.pop()]
    if all(Path(f).stat().st_size == 0 for f in chosen):
        raise ValueError(f"dataset={name!r}: the file is empty: {chosen[0]}")
    try:
        rows = datasets.load_dataset(reader, data_files={split_name: chosen}, split=split, **options)
    except Exception as error:
        for file in chosen:
            _check_utf8(Path(file))
        raise ValueError(f"dataset={name!r} cannot be read as {reader}: {_first_cause(error)}") from error
    return tuple(chosen), rows


def _check_utf8(path: Path) -> None:
    """Raise ValueError that names the first line that is not UTF-8; used to explain a failed read."""
    if _format(path) not in _TEXT_FORMATS:
        return
    with _open_binary(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}): "
                    f"convert the file, for example with: iconv -f LATIN1 -t UTF-8"
                ) from None


def _open_binary(path: Path) -> io.BufferedIOBase | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        return io.BufferedReader(zstandard.open(path, "rb"))
    return path.open("rb")


def _format(path: Path) -> str | None:
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    return suffix if suffix in FORMATS else None


def _known_formats() -> str:
    return " ".join(FORMATS)


def _text_column(rows: datasets.Dataset, name: str, wanted: str | None) -> str:
    """The dotted path of the text, checked against the columns there are."""
    for column in (wanted,) if wanted else _DEFAULT_TEXT_COLUMNS:
        if _has_path(rows.features, column):
            return column
    columns = sorted({*rows.column_names, *rows.features.flatten()})
    problem = f"has no column {wanted!r}" if wanted else "has no column 'text': name one with --text_column"
    raise ValueError(f"dataset={name!r} {problem}; the columns are: {', '.join(columns)}")


def _has_path(features: Any, path: str) -> bool:
    """Whether a dotted path leads somewhere, through lists of structs too."""
    for part in path.split("."):
        while isinstance(features, datasets.List | datasets.LargeList):
            features = features.feature
        if not isinstance(features, dict) or part not in features:
            return False
        features = features[part]
    return True


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


def _first_cause(error: BaseException) -> str:
    """The message at the bottom of a chain of exceptions, on one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
