"""The files or the Hub dataset that a name means, and the part of it that is read.

The `datasets` library finds what is on the Hub, and downloads it as Arrow files unless it is streamed. The names of the
files of a local folder tell its splits, as on the Hub. One line names the files of a folder that are not read; if they
look like part of the text, the folder is refused.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path, PurePosixPath
from typing import Any

from data.config import PYTHON_DOCS, DataConfig
from data.documents import python_docs
from data.documents.files import KNOWN_FORMATS, file_format, file_size
from data.documents.rows import FileRows

logger = logging.getLogger(__name__)

_WORDS = "(?P<train>training|train)|(?P<validation>validation|valid|dev|val)|(?P<test>testing|test|evaluation|eval)"
_SPLIT = re.compile(rf"(?:^|[-._ 0-9])(?:{_WORDS})(?=$|[-._ 0-9])")
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\..*")  # as `push_to_hub` names them
# Metadata that `datasets` writes beside the data.
_SHEETS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_MOST_NAMES = 5  # in one message


@dataclass(frozen=True)
class Source:
    """A source of text."""

    name: str  # the user's
    files: dict[str, list[str]]  # of each split


def find_source(name: str, config: DataConfig) -> Source:
    """Look for a source: a file, a folder, a glob, or a dataset of the Hub.

    Raises ValueError if a path does not exist, holds no file that can be read, or its names leave the splits unclear.
    """
    if name == PYTHON_DOCS:
        return Source(name, {"train": [str(python_docs.cached_rows(Path(config.cache_dir)))]})
    if (files := _local_files(name)) is not None:
        return Source(name, files)
    if config.streaming:
        builder = _from_hub("load_dataset_builder", name, config)
        return Source(name, {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()})
    tables = _from_hub("load_dataset", name, config, keep_in_memory=False)
    return Source(name, {split: [file["filename"] for file in table.cache_files] for split, table in tables.items()})


def open_rows(source: Source, split: str, *, is_endless: bool) -> tuple[FileRows, tuple[int, int] | None]:
    """The rows of a split, and the slice ``(first, end)`` of them to read if it is a part such as ``train[:5000]``.

    An endless split, whose rows are streamed again and again in training, has no slice. Raises ValueError if there is
    no such split, or its files are not of one known format, or all are empty.
    """
    name, files, whole = source.name, source.files, re.split(r"[\[+]", split)[0]
    if whole not in files:
        raise ValueError(f"dataset={name!r} has no split {whole!r}: it has {', '.join(files)}")
    examples = {file_format(path): PurePosixPath(path).name for path in files[whole]}
    if None in examples:
        raise ValueError(f"dataset={name!r}: {examples[None]} is not a file that can be read: {KNOWN_FORMATS}")
    if len(examples) > 1:
        kinds = ", ".join(sorted(f"{file} is {kind}" for kind, file in examples.items()))
        raise ValueError(f"dataset={name!r} must be files of one format ({KNOWN_FORMATS}), but {kinds}")
    rows = FileRows(tuple(path for path in files[whole] if file_size(path) > 0))
    if not rows.paths:
        raise ValueError(f"dataset={name!r}: the file is empty: {', '.join(files[whole][:1])}")
    return rows, _row_slice(split, rows, is_endless)


def _from_hub(function: str, name: str, config: DataConfig, **options: Any) -> Any:
    """Call a function of `datasets`, which is imported only now. Whatever it raises becomes a ValueError."""
    import datasets

    try:
        return getattr(datasets, function)(name, config.dataset_config, revision=config.dataset_revision, **options)
    except Exception as error:
        raise ValueError(
            f"dataset={name!r} is no local file or folder, and the Hub did not give it: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _row_slice(split: str, rows: FileRows, is_endless: bool) -> tuple[int, int] | None:
    """``(first, end)`` of ``train[10:500]`` or ``train[:20%]``; None for a whole split."""
    if re.fullmatch(r"[\w.-]+", split):
        return None
    match = re.fullmatch(r"[\w.-]+\[(-?\d+%?)?:(-?\d+%?)?\]", split)
    if match is None:
        raise ValueError(f"dataset_split={split!r} cannot be read: write a part as 'train[:5000]' or 'train[10%:20%]'")
    if is_endless:
        raise ValueError(
            f"dataset_split={split!r} cannot be read: streaming takes whole splits: "
            f"use --dataset_split {split.partition('[')[0]}, or --streaming false"
        )
    needs_count = any(bound is not None and not bound.isdigit() for bound in match.groups())
    num_rows = rows.count() if needs_count else sys.maxsize

    def index(bound: str) -> int:
        return round(num_rows * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)

    first, end, _ = slice(*(None if bound is None else index(bound) for bound in match.groups())).indices(num_rows)
    return first, end


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
    """The files that match a glob. Special characters in the name of an existing folder stand for themselves."""
    pattern = f"{escape(str(path.parent))}/{path.name}" if path.parent.is_dir() else str(path)
    found = sorted(glob(pattern, recursive=True))
    files = [match for match in found if Path(match).is_file()]
    if not files:
        raise ValueError(f"dataset={name!r}: no file matches")
    folders_too = "**" in name  # a recursive glob matches every folder on its way
    if unread := [m for m in found if not Path(m).is_file() and not (folders_too and Path(m).is_dir())]:
        logger.warning("dataset=%r: not read: %s", name, _listed(unread))
    return files


def _splits_of_folder(name: str, folder: Path) -> dict[str, list[str]]:
    """``{split: [file, ...]}`` by the names of files and folders, as on the Hub; without any, all are train.

    One line of the log says how the names divide the folder and which of its paths are not read.
    """
    paths = sorted(_walk(folder))
    taken: dict[str, list[str]] = {}
    for path in paths:
        if file_format(path) and PurePosixPath(path).name not in _SHEETS and (folder / path).is_file():
            taken.setdefault(_split_of(name, path), []).append(path)
    if not taken:
        but = f", but {_listed(paths)}" if paths else ""
        raise ValueError(f"dataset={name!r}: the folder holds no file that can be read ({KNOWN_FORMATS}){but}")
    plain = taken.pop("", [])
    if not taken:
        taken, plain = {"train": plain}, []
    with_word = {file_format(path): path for files in taken.values() for path in files}
    for path in plain:
        if other := with_word.get(file_format(path)):
            raise ValueError(
                f"dataset={name!r}: the name of {path!r} has no split's word, and that of {other!r} has one: rename "
                f"one, or train on all of them by a glob such as '{Path(name) / '*'}{PurePosixPath(path).suffix}'"
            )
    facts = []
    if len(taken) > 1:
        named = ", ".join(f"{split} ({_listed(files)})" for split, files in sorted(taken.items()))
        facts.append(f"split by name into {named}")
    if unread := set(paths).difference(*taken.values()):
        facts.append(f"not read: {_listed(sorted(unread, key=lambda path: (file_format(path) is None, path)))}")
    if facts:
        logger.warning("dataset=%r: %s", name, "; ".join(facts))
    return {split: [str(folder / path) for path in files] for split, files in taken.items()}


def _walk(folder: Path) -> Iterator[str]:
    """The files below a folder, and the folders that are not entered (``__pycache__``); nothing hidden."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        here, real = Path(parent).relative_to(folder), Path(parent).resolve()
        if real in seen:  # links lead in circles
            folders.clear()
            continue
        seen.add(real)
        for entry in (*names, *(entry for entry in folders if entry.startswith("__"))):
            if not entry.startswith("."):
                yield str(here / entry)
        folders[:] = sorted(entry for entry in folders if not entry.startswith((".", "__")))


def _raise(error: OSError) -> None:
    raise error


def _split_of(name: str, path: str) -> str:
    """The split whose word is in the name of the innermost folder with such a word, else in the file's; or ''."""
    if shard := _SHARD.fullmatch(path):
        return shard[1]
    *folders, file = PurePosixPath(path).parts
    found = [{str(match.lastgroup) for match in _SPLIT.finditer(part.lower())} for part in (*reversed(folders), file)]
    for words in found:
        if len(words) == 1:
            return words.pop()
    if words := next(filter(None, found), set()):
        raise ValueError(
            f"dataset={name!r}: the name of {path!r} has more than one split, {' and '.join(sorted(words))}: rename it"
        )
    return ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
