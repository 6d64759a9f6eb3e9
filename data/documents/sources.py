"""Which files or which Hub dataset a name means, and which part of it.

The `datasets` library finds and downloads what is on the Hub; the names of the
files of a local folder tell its splits, as on the Hub. Files of a folder that are not
read are named in one line; if they look like part of the text, the folder is refused.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path, PurePosixPath

from data.config import PYTHON_DOCS, DataConfig
from data.documents import python_docs
from data.documents.files import file_format, file_size, known_formats
from data.documents.rows import FileRows, Rows, TableRows

logger = logging.getLogger(__name__)

_WORDS = "(?P<train>training|train)|(?P<validation>validation|valid|dev|val)|(?P<test>testing|test|evaluation|eval)"
_SPLIT = re.compile(rf"(?:^|[-._ 0-9])(?:{_WORDS})(?=$|[-._ 0-9])")
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\..*")  # as `push_to_hub` names them
_SHEETS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # of `datasets`
_NAMED = 5  # names in a line


@dataclass(frozen=True)
class Source:
    """What a name means.

    Attributes:
        name: What the user calls it.
        files: The files of each split; None for a Hub dataset, which `datasets` downloads.
    """

    name: str
    files: dict[str, list[str]] | None


def find_source(name: str, config: DataConfig) -> Source:
    """Look for a source: a file, a folder, a glob, or a dataset of the Hub.

    Raises:
        ValueError: The path does not exist, or holds no file that is read.
    """
    if name == PYTHON_DOCS:
        return Source(name, {"train": [str(python_docs.cached_rows(Path(config.cache_dir)))]})
    files = _local_files(name)
    if files is None and config.streaming:
        files = _hub_files(name, config)
    return Source(name, files)


def open_rows(
    source: Source, split: str, config: DataConfig, *, is_endless: bool
) -> tuple[Rows, tuple[int, int] | None]:
    """The rows of a split of a source; also the first and the end of those to read, if ``split`` names a part.

    Args:
        is_endless: Whether the rows are streamed again and again, as those of training are. The rows of an
            evaluation are read once, but a streaming run does not download a Hub dataset for them either.

    Raises:
        ValueError: What is missing or wrong, and what would work.
    """
    if source.files is not None:
        rows = FileRows(_chosen(source.name, source.files, re.split(r"[\[+]", split)[0]))
        return rows, _row_slice(split, rows, is_endless)
    import datasets

    try:
        table = datasets.load_dataset(source.name, config.dataset_config, revision=config.dataset_revision, split=split)
    except Exception as error:
        raise ValueError(_hub_message(source.name, error)) from error
    return TableRows(table), None


def split_names(source: Source, config: DataConfig) -> list[str]:
    """The splits that a source has."""
    if source.files is not None:
        return list(source.files)
    import datasets

    try:
        return datasets.get_dataset_split_names(source.name, config.dataset_config, revision=config.dataset_revision)
    except Exception as error:
        raise ValueError(_hub_message(source.name, error)) from error


def _row_slice(split: str, rows: Rows, is_endless: bool) -> tuple[int, int] | None:
    """First row and end of ``train[10:500]`` or ``train[:20%]``; None for a whole split."""
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
    examples = {file_format(path): PurePosixPath(path).name for path in chosen}
    if None in examples:
        raise ValueError(f"dataset={name!r}: {examples[None]} is none of the files that are read: {known_formats()}")
    if len(examples) > 1:
        kinds = ", ".join(sorted(f"{file} is {kind}" for kind, file in examples.items()))
        raise ValueError(f"dataset={name!r} must be files of one format ({known_formats()}), but {kinds}")
    filled = tuple(path for path in chosen if file_size(path) > 0)
    if not filled:
        raise ValueError(f"dataset={name!r}: the file is empty: {chosen[0]}")
    return filled


def _local_files(name: str) -> dict[str, list[str]] | None:
    """``{split: [file, ...]}`` of a local path, folder or glob; None if the name can only be a Hub id."""
    path = Path(name).expanduser()
    if path.is_file():
        return {"train": [str(path)]}
    if path.is_dir():
        return _splits_of_folder(name, path.resolve())
    if re.search(r"[*?\[]", name):
        return {"train": _matches(name, path)}
    if file_format(str(path)) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ValueError(f"dataset={name!r}: no such file or folder")
    return None


def _matches(name: str, path: Path) -> list[str]:
    """The files that a glob means; in the name of an existing folder, its special characters mean themselves."""
    pattern = f"{escape(str(path.parent))}/{path.name}" if path.parent.is_dir() else str(path)
    found = sorted(glob(pattern, recursive=True))
    files = [match for match in found if Path(match).is_file()]
    if not files:
        raise ValueError(f"dataset={name!r}: no file matches")
    folders_too = "**" in name  # which meets all of them on its way
    if unread := [m for m in found if not Path(m).is_file() and not (folders_too and Path(m).is_dir())]:
        logger.warning("dataset=%r: not read: %s", name, _listed(unread))
    return files


def _splits_of_folder(name: str, folder: Path) -> dict[str, list[str]]:
    """By the names of files and folders, as on the Hub (``train.jsonl``, ``validation/part-0.parquet``); else 'train'.

    Raises:
        ValueError: No file is read; or a split's word is in one name, and none in another of the same format.
    """
    paths = sorted(_walk(folder))
    taken: dict[str, list[str]] = {}
    for path in paths:
        if file_format(path) and PurePosixPath(path).name not in _SHEETS and (folder / path).is_file():
            taken.setdefault(_split_of(name, path), []).append(path)
    if not taken:
        but = f", but {_listed(paths)}" if paths else ""
        raise ValueError(f"dataset={name!r}: the folder holds no file that is read ({known_formats()}){but}")
    plain = taken.pop("", [])
    if not taken:
        taken, plain = {"train": plain}, []
    with_word = {file_format(path): path for files in taken.values() for path in files}
    for path in plain:
        if other := with_word.get(file_format(path)):
            raise ValueError(
                f"dataset={name!r}: no split's word is in {path!r}, and one is in {other!r}: rename one of them, or "
                f"name the files by a glob such as '{Path(name) / '*'}{PurePosixPath(path).suffix}', and all are train"
            )
    _say_what_is_left(name, taken, paths)
    order = dict.fromkeys(("train", "validation", "test", *taken))
    return {split: [str(folder / path) for path in taken[split]] for split in order if split in taken}


def _say_what_is_left(name: str, splits: dict[str, list[str]], paths: list[str]) -> None:
    taken = {path for files in splits.values() for path in files}
    said = []
    if len(splits) > 1:
        named = ", ".join(f"{split} ({_listed(files)})" for split, files in sorted(splits.items()))
        said.append(f"split by name into {named}")
    if unread := [path for path in paths if path not in taken]:
        said.append(f"not read: {_listed(sorted(unread, key=lambda path: file_format(path) is None))}")
    if said:
        logger.warning("dataset=%r: %s", name, "; ".join(said))


def _walk(folder: Path) -> Iterator[str]:
    """The files below, and the folders that are not entered (``__pycache__``); nothing that is hidden."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        facts = Path(parent).stat()
        here = Path(parent).relative_to(folder)
        if (facts.st_dev, facts.st_ino) in seen:  # links lead in circles
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        for entry in (*names, *(entry for entry in folders if entry.startswith("__"))):
            if not entry.startswith("."):
                yield str(here / entry)
        folders[:] = sorted(entry for entry in folders if not entry.startswith((".", "__")))


def _raise(error: OSError) -> None:
    raise error


def _split_of(name: str, path: str) -> str:
    """The split whose word is in the name of the innermost folder that has one, else in the file's; '' without."""
    if shard := _SHARD.fullmatch(path):
        return shard[1]
    *folders, file = PurePosixPath(path).parts
    found = [{str(match.lastgroup) for match in _SPLIT.finditer(part.lower())} for part in (*reversed(folders), file)]
    for words in found:
        if len(words) == 1:
            return words.pop()
    if words := next(filter(None, found), set()):
        raise ValueError(
            f"dataset={name!r}: {path!r} is of more than one split, {' and '.join(sorted(words))}: rename it"
        )
    return ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _hub_message(name: str, error: Exception) -> str:
    return (
        f"dataset={name!r} is no local file or folder, and the Hub did not give it: "
        f"{type(error).__name__}: {' '.join(str(error).split())}"
    )
