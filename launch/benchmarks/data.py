"""Compares tokenizing, grouping and masking with the Hugging Face guide, on the same text and tokenizer.

- ``tokenize and group``: `build_blocks` makes finished blocks on disk from the file. The guide's two passes of
  ``datasets.map`` start from rows that are already loaded. First, both are pinned to one core. Then both may use all
  cores: the guide in one process, whose tokenizer starts threads, and with ``num_proc`` processes.
- ``masked batches``: `TrainLoader` makes batches of 64 blocks from cached blocks, without a worker process. The guide
  uses ``DataCollatorForLanguageModeling`` in a DataLoader over its dataset.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from data.blocks.store import build_blocks
from data.config import DataConfig
from data.cores import available_cores
from launch.benchmarks.measuring import in_child, interleave, print_comparisons
from launch.benchmarks.text import TEXT_COLUMN, open_text, write_text
from launch.run.corpus import open_corpus
from launch.run.loaders import train_loader
from launch.run.settings import Settings
from train_loop.config import ModelConfig, TrainConfig
from train_loop.plan import plan_batches

_BATCH = 64
_WARM_UP_BATCHES = 3
_PASSES = 10  # over the blocks, for one figure of this project's batches


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    cores = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        config = write_text(options, Path(folder))
        ways = {
            "ours, 1 core": partial(_measured, blocks_rate, config, pinned=True),
            "guide, 1 core": partial(_measured, guide_rate, config, pinned=True),
            "ours": partial(_measured, blocks_rate, config),
            "guide": partial(_measured, guide_rate, config),
            "guide, num_proc": partial(_measured, partial(guide_rate, num_proc=cores), config),
            "our batches": partial(_measured, batch_rate, config),
            "guide's batches": partial(_measured, guide_batch_rate, config),
        }
        speeds = interleave({name: partial(in_child, way) for name, way in ways.items()}, options.repeats)
    compared = [
        ("tokenize and group, 1 core", "ours, 1 core", "guide, 1 core"),
        (f"tokenize and group, {cores} cores, 1 process", "ours", "guide"),
        (f"tokenize and group, {cores} cores, num_proc={cores}", "ours", "guide, num_proc"),
        (f"masked batches of {_BATCH}", "our batches", "guide's batches"),
    ]
    print_comparisons(options, speeds, compared, unit="tokens/s", rival="guide")


def _measured(way: Callable[[DataConfig], float], config: DataConfig, *, pinned: bool = False) -> float:
    """The tokens per second of one of the ways below, in this child process and with nothing cached."""
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    if pinned and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    with tempfile.TemporaryDirectory() as folder:
        return way(replace(config, cache_dir=folder))


def _per_second(make: Callable[[], int]) -> float:
    """How many of something are made in a second, by a call that returns how many it made."""
    start = time.perf_counter()
    number = make()
    return number / (time.perf_counter() - start)


def blocks_rate(config: DataConfig) -> float:
    """The rate of `build_blocks`."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in a run, which tokenizes in threads of its own
    text = open_text(config)
    return _per_second(lambda: build_blocks(*text).counts.kept)


def guide_rate(config: DataConfig, *, num_proc: int | None = None) -> float:
    """The rate of the guide's two passes."""
    rows = _guide_rows(config)
    return _per_second(lambda: len(_guide_blocks(rows, config, num_proc)) * config.block_size)


def batch_rate(config: DataConfig) -> float:
    """The rate of this project's masked batches."""
    train = TrainConfig(global_batch_size=_BATCH, num_train_epochs=_PASSES)
    settings = Settings(config, ModelConfig(model_type="roberta"), train)
    corpus = open_corpus(settings)
    plan = plan_batches(train, corpus.blocks_per_epoch, num_processes=1)
    loader = train_loader(settings, corpus, plan)
    for _ in loader.steps(0, _WARM_UP_BATCHES):
        pass
    return _per_second(lambda: sum(batch.num_tokens for (batch,) in loader.steps(0, plan.total_steps)))


def guide_batch_rate(config: DataConfig) -> float:
    """The rate of the guide's masked batches."""
    grouped = _guide_blocks(_guide_rows(config), config)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path)
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=config.mlm_probability)
    loader = DataLoader(grouped, batch_size=_BATCH, shuffle=True, collate_fn=collator)
    for _, _ in zip(range(_WARM_UP_BATCHES), loader, strict=False):
        pass
    return _per_second(lambda: sum(batch["input_ids"].numel() for batch in loader))


def _guide_rows(config: DataConfig) -> datasets.Dataset:
    options = {"split": "train", "cache_dir": config.cache_dir}
    return datasets.load_dataset("json", data_files=config.dataset, **options).flatten()


def _guide_blocks(rows: datasets.Dataset, config: DataConfig, num_proc: int | None = None) -> datasets.Dataset:
    """Tokenize and group with the guide's own code, in two passes of `map`."""
    block_size = config.block_size
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path)
    # As RoBERTa's tokenizer. The base class would add token types, which no contender uses.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]

    def preprocess_function(examples: dict[str, Any]) -> Any:
        return tokenizer([" ".join(x) for x in examples[TEXT_COLUMN]])

    def group_texts(examples: dict[str, Any]) -> dict[str, Any]:
        concatenated_examples: dict[str, Any] = {k: sum(examples[k], []) for k in examples}  # noqa: RUF017
        total_length = len(concatenated_examples[next(iter(examples))])
        if total_length >= block_size:
            total_length = (total_length // block_size) * block_size
        return {
            k: [t[i : i + block_size] for i in range(0, total_length, block_size)]
            for k, t in concatenated_examples.items()
        }

    tokenized = rows.map(preprocess_function, batched=True, num_proc=num_proc, remove_columns=rows.column_names)
    return tokenized.map(group_texts, batched=True, num_proc=num_proc)
