"""Which files or which Hub dataset a name means, and which part of it.

The `datasets` library finds and downloads what is on the Hub, and tells a
folder's splits by the names of its files.
"""

import re
import sys
from glob import glob
from pathlib import Path

from data import python_docs, readers
from data.config import PYTHON_DOCS, DataConfig
from data.rows import FileRows, Rows, TableRows


def open_rows(name: str, split: str, config: DataConfig, *, is_endless: bool) -> tuple[Rows, tuple[int, int] | None]:
    """The rows of a split of a source; and the first of them and the end, where ``split`` names a part.

    Args:
        is_endless: It will be streamed, again and again. What is evaluated on is not, but a
            streaming run does not download a Hub dataset for it either.

    Raises:
        ValueError: What is missing or wrong, and what would work.
    """
    files = _files(name, config)
    if files is None and config.streaming:
        files = _hub_files(name, config)
    if files is not None:
        rows = FileRows(_chosen(name, files, re.split(r"[\[+]", split)[0]))
        return rows, _row_slice(split, rows, is_endless)
    import datasets

    try:
        table = datasets.load_dataset(name, config.dataset_config, revision=config.dataset_revision, split=split)
    except Exception as error:
        raise ValueError(_hub_message(name, error)) from error
    return TableRows(table), None


def split_names(name: str, config: DataConfig) -> list[str]:
    """The splits that a source has."""
    if (files := _files(name, config)) is not None:
        return list(files)
    import datasets

    try:
        return datasets.get_dataset_split_names(name, config.dataset_config, revision=config.dataset_revision)
    except Exception as error:
        raise ValueError(_hub_message(name, error)) from error


def _row_slice(split: str, rows: Rows, is_endless: bool) -> tuple[int, int] | None:
    """First row and end of ``train[10:500]`` or ``train[:20%]``; None of a whole split."""
    if re.fullmatch(r"[\w.-]+", split):
        return None
    match = re.fullmatch(r"[\w.-]+\[(-?\d+%?)?:(-?\d+%?)?\]", split)
    if match is None or is_endless:
        why = "write a part as 'train[:5000]' or 'train[10%:20%]'"
        if match is not None:
            why = f"streaming takes whole splits: use --dataset_split {split.partition('[')[0]}, or --streaming false"
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


def _hub_message(name: str, error: Exception) -> str:
    return (
        f"dataset={name!r} is no local file or folder, and the Hub did not give it: "
        f"{type(error).__name__}: {' '.join(str(error).split())}"
    )
