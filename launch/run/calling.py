"""What `launch.train.train` needs to be called from Python: settings, texts, and a process left as it was."""

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.config import DataConfig
from launch.run.settings import Settings, SettingsParser, parse_settings
from train_loop import run_files
from train_loop.model import load_model


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended: the final model on the CPU, the rows of ``metrics.jsonl``, and the run's folder."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metrics: list[dict[str, Any]]
    folder: Path


def finished(folder: Path, auto_class: Any) -> FinishedRun:
    """Open what a run left in its folder."""
    model = str(folder / run_files.MODEL)
    lines = (folder / run_files.METRICS).read_text(encoding="utf-8").splitlines()
    trained = load_model(model, auto_class=auto_class)
    return FinishedRun(trained, AutoTokenizer.from_pretrained(model), list(map(json.loads, lines)), folder)


def settings_of_call(values: Mapping[str, Any]) -> Settings:
    """The settings that the command reads from the same names and values, and ``recipe``. Raises its ValueError."""
    words: list[str] = []
    for name, value in values.items():
        if name in ("dataset", "eval_dataset") and not isinstance(value, str | Path | None):
            cache = Path(values.get("cache_dir", DataConfig.cache_dir)).expanduser()
            words.append(f"--{name}={_texts_file(name, value, cache / 'texts')}")
        elif isinstance(value, Mapping):
            words += [f"--{name}", *(f"{key}={json.dumps(item)}" for key, item in value.items())]
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return parse_settings(words, SettingsParser("train"))[0]


def _texts_file(name: str, texts: object, folder: Path) -> Path:
    """Write texts to a file that is named for its content, where a resumed run and loader workers find it."""
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise ValueError(f"{name} is a {type(texts).__name__}: give one Dataset, an iterable of strings, or a path")
    table = texts.with_format("arrow")[:] if isinstance(texts, Dataset) else pa.table({"text": list(texts)})
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        part = Path(scratch) / "texts"
        pq.write_table(table, part)
        with part.open("rb") as content:
            path = folder / f"{hashlib.file_digest(content, 'sha256').hexdigest()[:32]}.parquet"
        part.replace(path)
    return path


@contextlib.contextmanager
def process_left_as_it_was() -> Iterator[None]:
    """Undo, at the end, what a run changes in its process: log, threads, Accelerate's state."""
    handlers = {logger: logger.handlers for logger in map(logging.getLogger, ("data", "train_loop"))}
    threads, is_shared = torch.get_num_threads(), bool(PartialState._shared_state)  # with an Accelerator of the caller
    try:
        yield
    finally:
        for logger, before in handlers.items():
            logger.handlers = before
        torch.set_num_threads(threads)
        for state in () if is_shared else (AcceleratorState, GradientState, PartialState):
            state._reset_state()
