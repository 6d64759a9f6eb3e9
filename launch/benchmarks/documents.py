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

from launch.benchmarks.measuring import in_child, print_report, rate, ratio, spread, times
from launch.benchmarks.text import write_text
from launch.benchmarks.train import measured, this_project, updates
from launch.run.settings import Settings
from train_loop.config import TrainConfig

_MICRO_BATCHES = 4  # of sentences in an update, sorted by length, so that padding is what it is in a run


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    rows, cases = [["tokens of text/s", "side by side", "padded or masked", "ratio", "peak memory"]], []
    with tempfile.TemporaryDirectory() as folder:
        sentences = replace(write_text(options, Path(folder), by_sentence=True), grouping="line_by_line")
        long = replace(write_text(options, Path(folder) / "long"), grouping="pack", document_attention=True)
        num_long = max(1, options.batch * options.length // (2 * options.long))  # sentences are short
        for name, data, size, number in (
            ("sentences", sentences, options.batch, _MICRO_BATCHES),
            (f"documents in blocks of {options.long}", replace(long, block_size=options.long), num_long, 1),
        ):
            train = TrainConfig(
                global_batch_size=number * size,
                per_device_train_batch_size=size,
                max_steps=options.warm_up + options.repeats,
                mixed_precision=options.precision,
            )
            settings = Settings(data, options.model, train)
            ours, theirs = (rates[options.warm_up :] for rates in in_child(partial(in_turn, settings)))
            once = replace(settings, train=replace(train, max_steps=2))
            ways = [partial(this_project, side_by_side=is_flat) for is_flat in (True, False)]
            memory = [in_child(partial(measured, way, once, steps=1))["peak_memory"] for way in ways]
            speeds = {"ours": spread(ours), "padded or masked": spread(theirs), "ratio": ratio(ours, theirs)}
            cases.append({"name": name, **speeds, "required_ratio": 1.15, "peak_memory_bytes": memory})
            shown = [rate(speeds["ours"]), rate(speeds["padded or masked"]), times(speeds["ratio"])]
            rows.append([name, *shown, f"{memory[0] / 1e9:.2f} GB against {memory[1] / 1e9:.2f}"])
    print_report(options, rows, cases)


def in_turn(settings: Settings) -> tuple[list[float], list[float]]:
    """Tokens of text per second in each update, side by side and not; one of each in turn."""
    ways = tuple(updates(settings, side_by_side=is_flat) for is_flat in (True, False))
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(settings.train.max_steps or 0):
        for way, of_way in zip(ways, rates, strict=True):
            start = time.perf_counter()
            num_tokens = next(way)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # else the GPU is still at it
            of_way.append(num_tokens / (time.perf_counter() - start))
    return rates
