"""Tokenizing, grouping, masking: this project beside the Hugging Face guide, on the same text and tokenizer.

- ``tokenize and group``: `build_blocks` from the file to finished blocks on disk,
  beside the guide's two passes of ``datasets.map`` over rows that are already
  loaded. First, both are pinned to one core. Then both may use all cores: the guide
  in one process, whose tokenizer starts threads, and with ``num_proc`` processes.
- ``masked batches``: of 64 blocks by `TrainLoader` from cached blocks, in this
  process, beside ``DataCollatorForLanguageModeling`` in a DataLoader over the
  guide's dataset.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from data.blocks.store import build_blocks
from data.blocks.tokenization import open_tokenizer
from data.config import DataConfig
from data.cores import available_cores
from launch.benchmarks import guide, measuring
from launch.benchmarks.measuring import in_child
from launch.benchmarks.text import MLM_PROBABILITY, Text, train_loader, write_text

_BATCH = 64
_REQUIRED_GROUPING, _REQUIRED_BATCHES, _REQUIRED_RATE = 2.5, 20.0, 6e6
_WARM_UP_BATCHES = 3
_PASSES = 10  # over the blocks, for one figure of this project's batches


def run(options: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        ValueError: The text or the tokenizer cannot be opened.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = write_text(options, Path(folder))
        rounds = [_round(text, options.length) for _ in range(options.repeats)]
    figures = {name: [figures[name] for figures in rounds] for name in rounds[0]}

    def case(name: str, ours: str, theirs: str, required: float) -> dict[str, Any]:
        return measuring.comparison(name, "tokens/s", figures[ours], figures[theirs], "guide", required)

    cases = [
        case(f"tokenize and group, {label}", f"blocks, {cores}", f"guide, {label}", _REQUIRED_GROUPING)
        for label, cores, _, _ in _grouping_cases()
    ]
    cases.append(case(f"masked batches of {_BATCH}", "batches", "guide batches", _REQUIRED_BATCHES))
    cases[-1]["required_rate"] = _REQUIRED_RATE
    report = {"benchmark": "data", "surroundings": measuring.surroundings(), "repeats": options.repeats, "cases": cases}
    header = ["tokens/s", "this project", "the guide", "ratio", "required"]
    measuring.print_report(report, header, [_row(case) for case in cases], as_json=options.json)


def _grouping_cases() -> list[tuple[str, str, bool, int | None]]:
    """For each case: label, the name of our figure, whether pinned to one core, and the guide's ``num_proc``."""
    cores = available_cores()
    return [
        ("1 core", "1 core", True, None),
        (f"{cores} cores, 1 process", "all cores", False, None),
        (f"{cores} cores, num_proc={cores}", "all cores", False, cores),
    ]


def _round(text: Text, block_size: int) -> dict[str, float]:
    """Tokens per second of every contender; they run one after the other."""
    figures = {}
    for label, cores, pinned, num_proc in _grouping_cases():
        if f"blocks, {cores}" not in figures:
            figures[f"blocks, {cores}"] = in_child(blocks_rate, text, block_size, pinned=pinned)
        figures[f"guide, {label}"] = in_child(guide_rate, text, block_size, num_proc, pinned=pinned)
    figures["batches"], figures["guide batches"] = in_child(batch_rates, text, block_size)
    return figures


def _row(case: dict[str, Any]) -> list[str]:
    required = f"{case['required_ratio']:g}x"
    if "required_rate" in case:
        required += f", {case['required_rate'] / 1e6:g} M"
    return [*measuring.comparison_row(case, "guide"), required]


def blocks_rate(text: Text, block_size: int, *, pinned: bool) -> float:
    """Tokens per second of `build_blocks`, nothing cached; for a child process."""
    _settle(pinned=pinned)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in a run, which tokenizes in threads of its own
    with tempfile.TemporaryDirectory() as folder:
        config = text.config(Path(folder), block_size)
        documents = text.documents(config)
        tokenizer = open_tokenizer(config, documents, None)
        start = time.perf_counter()
        blocks = build_blocks(documents, tokenizer, config)
        return blocks.counts.kept / (time.perf_counter() - start)


def guide_rate(text: Text, block_size: int, num_proc: int | None, *, pinned: bool) -> float:
    """Tokens per second of the guide's two passes, nothing cached; for a child process."""
    _settle(pinned=pinned)
    with tempfile.TemporaryDirectory() as folder:
        rows = guide.load(text, Path(folder))
        start = time.perf_counter()
        grouped = guide.tokenize_and_group(rows, text.tokenizer, block_size, num_proc)
        return len(grouped) * block_size / (time.perf_counter() - start)


def _settle(*, pinned: bool) -> None:
    datasets.disable_progress_bars()
    if pinned and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


def batch_rates(text: Text, block_size: int) -> tuple[float, float]:
    """Tokens per second in masked batches, of this project and of the guide; for a child process."""
    _settle(pinned=False)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = text.config(Path(folder), block_size)
        rows = guide.load(text, Path(folder))
        grouped = guide.tokenize_and_group(rows, text.tokenizer, block_size, None)
        return _own_batch_rate(text, config), _guide_batch_rate(text, grouped)


def _own_batch_rate(text: Text, config: DataConfig) -> float:
    documents = text.documents(config)
    tokenizer = open_tokenizer(config, documents, None)
    blocks = build_blocks(documents, tokenizer, config)
    loader = train_loader(blocks, tokenizer, _BATCH, torch.device("cpu"))
    for _ in loader.steps(0, _WARM_UP_BATCHES):
        pass
    num_tokens = 0
    start = time.perf_counter()
    for (batch,) in loader.steps(0, _PASSES * -(-len(blocks) // _BATCH)):
        num_tokens += batch.num_tokens
    return num_tokens / (time.perf_counter() - start)


def _guide_batch_rate(text: Text, grouped: datasets.Dataset) -> float:
    tokenizer = AutoTokenizer.from_pretrained(str(text.tokenizer))
    collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=MLM_PROBABILITY)
    loader = DataLoader(grouped, batch_size=_BATCH, shuffle=True, collate_fn=collator)
    for _, _ in zip(range(_WARM_UP_BATCHES), loader, strict=False):
        pass
    num_tokens = 0
    start = time.perf_counter()
    for batch in loader:
        num_tokens += batch["input_ids"].numel()
    return num_tokens / (time.perf_counter() - start)
