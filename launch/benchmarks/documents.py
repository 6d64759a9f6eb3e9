"""Compares texts side by side in one row with the same texts padded, and documents in a block with a mask of them.

- ``sentences``: one a block, beside batches of similar lengths that are padded to their longest.
- ``documents``: packed whole into blocks of ``--long``, beside the same blocks with a mask.

Both sides are this project's own loop on the same blocks, masks and weights, in one process, an update of each in turn.
Tokens of padding do not count. The rounds are updates. Peak memory is that of a process of its own.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from launch.benchmarks.contenders import Setup, this_project, updates
from launch.benchmarks.measuring import in_child, print_report, rate, ratio, spread, times
from launch.benchmarks.text import write_text
from launch.run.settings import Settings
from train_loop.config import TrainConfig

_MICRO_BATCHES = 4  # of sentences in an update, sorted by length, so that padding is what it is in a run


def run(options: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        ValueError: The text, the tokenizer or the model cannot be opened.
    """
    rows, cases = [["tokens of text/s", "side by side", "padded or masked", "ratio", "peak memory"]], []
    with tempfile.TemporaryDirectory() as folder:
        sentences = replace(write_text(options, Path(folder), by_sentence=True), grouping="line_by_line")
        long = replace(write_text(options, Path(folder) / "long"), grouping="pack", document_attention=True)
        num_long = max(1, options.batch * options.length // (2 * options.long))  # sentences are short
        for name, data, size, number in (
            ("sentences", sentences, options.batch, _MICRO_BATCHES),
            (f"documents in blocks of {options.long}", replace(long, block_size=options.long), num_long, 1),
        ):
            train = TrainConfig(global_batch_size=number * size, per_device_train_batch_size=size)
            settings, total = Settings(data, options.model, train), options.warm_up + options.repeats
            setup = Setup(settings, size, options.repeats, total, options.precision)
            ours, theirs = in_child(partial(in_turn, setup))
            once = replace(setup, steps=1, total_steps=2)
            memory = [in_child(partial(this_project, once, side_by_side=way))["peak_memory"] for way in (True, False)]
            speeds = {"ours": spread(ours), "padded or masked": spread(theirs), "ratio": ratio(ours, theirs)}
            cases.append({"name": name, **speeds, "required_ratio": 1.15, "peak_memory_bytes": memory})
            shown = [rate(speeds["ours"]), rate(speeds["padded or masked"]), times(speeds["ratio"])]
            rows.append([name, *shown, f"{memory[0] / 1e9:.2f} GB against {memory[1] / 1e9:.2f}"])
    print_report(options, rows, cases)


def in_turn(setup: Setup) -> tuple[list[float], list[float]]:
    """Tokens of text per second in each update that is timed, side by side and not; one of each in turn."""
    ways = [(updates(setup, side_by_side=is_flat), list[float]()) for is_flat in (True, False)]
    for _ in range(setup.total_steps):
        for made, rates in ways:
            start = time.perf_counter()
            num_tokens = next(made)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # else the GPU is still at it
            rates.append(num_tokens / (time.perf_counter() - start))
    ours, theirs = (rates[-setup.steps :] for _, rates in ways)
    return ours, theirs
