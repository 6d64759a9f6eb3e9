"""Compares texts side by side in one row with the same texts padded, and documents in a block with a mask of them.

- ``sentences``: one a block, beside batches of similar lengths that are padded to their longest.
- ``documents``: packed whole into blocks of ``--long``, beside the same blocks with a mask.

Both sides are this project's own loop on the same blocks, masks and weights. Tokens of padding do not count.
"""

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from launch.benchmarks.contenders import Setup, this_project
from launch.benchmarks.measuring import in_child, interleave, print_report, rate, ratio, spread, times
from launch.benchmarks.text import write_text
from launch.run.settings import Settings
from train_loop.config import TrainConfig

_MICRO_BATCHES = 4  # of sentences in an update, sorted by length, so that padding is what it is in a run


def run(options: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        ValueError: The text, the tokenizer or the model cannot be opened.
    """
    ways: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sentences = write_text(options, Path(folder), by_sentence=True)
        long = write_text(options, Path(folder) / "long")
        cases = {
            "sentences": (replace(sentences, grouping="line_by_line"), options.batch, _MICRO_BATCHES),
            f"documents in blocks of {options.long}": (
                replace(long, grouping="pack", document_attention=True, block_size=options.long),
                max(1, options.batch * options.length // options.long),
                1,
            ),
        }
        for name, (data, size, number) in cases.items():
            train = TrainConfig(global_batch_size=number * size, per_device_train_batch_size=size)
            settings = Settings(data, options.model, train)
            setup = Setup(settings, size, options.steps, options.warm_up + options.steps, options.precision)
            for side_by_side in (True, False):
                way = partial(this_project, setup, side_by_side=side_by_side)
                ways[f"{name}, {side_by_side}"] = partial(in_child, way)
        results = interleave(ways, options.repeats)
    rows = [["tokens of text/s", "side by side", "padded or masked", "ratio", "peak memory"]]
    reported = []
    for name in cases:
        ours, theirs = ([one["tokens_per_second"] for one in results[f"{name}, {way}"]] for way in (True, False))
        memory = [spread([one["peak_memory"] for one in results[f"{name}, {way}"]]) for way in (True, False)]
        speeds = {"ours": spread(ours), "padded or masked": spread(theirs), "ratio": ratio(ours, theirs)}
        reported.append({"name": name, **speeds, "required_ratio": 1.15, "peak_memory_bytes": memory})
        against = " against ".join(f"{one['median'] / 1e9:.2f} GB" for one in memory)
        rows.append([name, rate(speeds["ours"]), rate(speeds["padded or masked"]), times(speeds["ratio"]), against])
    print_report(options, rows, reported)
