"""What `launch.train.train` needs to be called from Python: settings, texts, and a process left as it was."""

import contextlib
import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.config import DataConfig
from launch.run.settings import Command, Settings, parse_settings
from train_loop import run_files
from train_loop.model import load_model
from train_loop.run import Run

_SOURCES = ("dataset", "eval_dataset")


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended.

    Attributes:
        model: The final model, in evaluation mode, on the CPU.
        metrics: The rows of ``metrics.jsonl``: training, evaluations, probes.
        folder: The run's folder.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metrics: list[dict[str, Any]]
    folder: Path

    @classmethod
    def read(cls, run: Run) -> "FinishedRun":
        """Open what a run left in its folder."""
        model = str(run.output_dir / run_files.MODEL)
        lines = (run.output_dir / run_files.METRICS).read_text(encoding="utf-8").splitlines()
        return cls(
            load_model(model, auto_class=run.bare_objective.auto_class),
            AutoTokenizer.from_pretrained(model),
            [json.loads(line) for line in lines],
            run.output_dir,
        )


def settings_of_call(values: Mapping[str, Any]) -> Settings:
    """The settings that the command reads from the same names and values, and ``recipe``.

    Raises:
        ValueError: A name or a value is wrong. The message is the command's line.
    """
    cache = Path(values.get("cache_dir", DataConfig.cache_dir)).expanduser() / "texts"
    words: list[str] = []
    for name, value in values.items():
        if name in _SOURCES and not isinstance(value, str | Path | None):
            words.append(f"--{name}={_texts_file(name, value, cache)}")
        elif isinstance(value, Mapping):
            words += [f"--{name}", *(f"{key}={json.dumps(item)}" for key, item in value.items())]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            settings, _ = parse_settings(words, Command(prog="train", description=""))
    except SystemExit:
        raise ValueError(shown.getvalue().strip().removeprefix("error: ")) from None
    return settings


def _texts_file(name: str, texts: object, folder: Path) -> Path:
    """Write texts to a file that is named for its content, where a resumed run and loader workers find it."""
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise ValueError(f"{name} is a {type(texts).__name__}: give one Dataset, an iterable of strings, or a path")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        part = Path(scratch) / "texts"
        if isinstance(texts, Dataset):
            texts.to_parquet(part)
        else:
            with part.open("w", encoding="ascii") as file:
                for number, text in enumerate(texts):
                    if not isinstance(text, str):
                        raise ValueError(f"{name}: item {number} is a {type(text).__name__}, and must be a string")
                    file.write(json.dumps({"text": text}) + "\n")
        with part.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:32]
        path = folder / f"{digest}.{'parquet' if isinstance(texts, Dataset) else 'jsonl'}"
        part.replace(path)
    return path


@contextlib.contextmanager
def process_left_as_it_was() -> Iterator[None]:
    """Undo, at the end, what a run changes in its process: log, progress bars, threads, Accelerate's state."""
    loggers = {name: logging.getLogger(name).handlers for name in ("data", "train_loop")}
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    has_bars = transformers.utils.logging.is_progress_bar_enabled()
    has_accelerate = bool(PartialState._shared_state)  # the caller's own
    try:
        yield
    finally:
        for name, handlers in loggers.items():
            logging.getLogger(name).handlers = handlers
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        if has_bars:
            transformers.utils.logging.enable_progress_bar()
        if not has_accelerate:
            for state in (AcceleratorState, GradientState, PartialState):
                state._reset_state()
