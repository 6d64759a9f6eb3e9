"""Shared by all tests: an offline world, caches of the session's own, a tiny tokenizer and a tiny corpus."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

_HOME = tempfile.mkdtemp(prefix="mlm-tests-")
# Before anything imports the libraries, and for the processes that tests start.
os.environ["HF_HOME"] = _HOME
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import hypothesis
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import PreTrainedTokenizerBase

from data import DataConfig, Documents, open_documents, open_tokenizer

torch.set_num_threads(1)
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("tests")

_WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "then",
    "it",
    "saw",
    "two",
    "dogs",
    "run",
    "after",
    "one",
    "red",
    "ball",
    "over",
    "every",
    "green",
    "hill",
    "in",
    "town",
]


def sentences(count: int, length: int = 12) -> list[str]:
    """Different sentences of the same few words."""
    return [" ".join(_WORDS[(i * 7 + j * (1 + i % 5)) % len(_WORDS)] for j in range(length)) for i in range(count)]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state for a process, and a run its signal handlers; each test begins as in a new process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="session")
def cache_dir() -> str:
    return str(Path(_HOME) / "mlm-cache")


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "sentences.txt"
    path.write_text("\n".join(sentences(400)) + "\n")
    return path


@pytest.fixture(scope="session")
def data_config(corpus_file: Path, cache_dir: str) -> DataConfig:
    return DataConfig(
        dataset=str(corpus_file),
        eval_fraction=0.2,
        train_tokenizer=True,
        vocab_size=300,
        block_size=16,
        cache_dir=cache_dir,
    )


@pytest.fixture(scope="session")
def documents(data_config: DataConfig) -> tuple[Documents, Documents]:
    (train,), (evaluation,) = open_documents(data_config)
    return train, evaluation


@pytest.fixture(scope="session")
def tokenizer(data_config: DataConfig, documents: tuple[Documents, Documents]) -> PreTrainedTokenizerBase:
    return open_tokenizer(data_config, documents[:1], None)
