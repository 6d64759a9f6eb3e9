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

from launch.benchmarks.measuring import in_child, interleave, print_report, rate, ratio, spread, times
from launch.benchmarks.text import write_text
from launch.benchmarks.train import measured, this_project
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
                max_steps=options.warm_up + options.steps,
                mixed_precision=options.precision,
            )
            settings = Settings(data, options.model, train)
            children = {}
            for key, is_flat in (("ours", True), ("padded or masked", False)):
                way = partial(this_project, side_by_side=is_flat)
                children[key] = partial(in_child, partial(measured, way, settings, options.steps))
            results = interleave(children, options.repeats)
            speeds = {key: [one["tokens_per_second"] for one in of_way] for key, of_way in results.items()}
            memory = [max(one["peak_memory"] for one in of_way) for of_way in results.values()]
            case = {key: spread(of_way) for key, of_way in speeds.items()} | {"ratio": ratio(*speeds.values())}
            cases.append({"name": name, **case, "peak_memory_bytes": memory})
            shown = [*(rate(case[key]) for key in children), times(case["ratio"])]
            rows.append([name, *shown, f"{memory[0] / 1e9:.2f} GB against {memory[1] / 1e9:.2f}"])
    print_report(options, rows, cases)
