"""Compares updates per second of this loop, `Trainer`, a tuned `Trainer`, and a plain Accelerate loop.

All start from the same weights and train on the same blocks, with the model's own dropout, AdamW and clipping. Each
runs in a process of its own, in every round.
"""

import argparse
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from launch.benchmarks.contenders import CONTENDERS, Setup
from launch.benchmarks.measuring import in_child, interleave, print_report, rate, ratio, spread, times
from launch.benchmarks.text import write_text
from launch.run.corpus import open_corpus
from launch.run.settings import Settings
from train_loop.config import TrainConfig
from train_loop.objectives.checks import gather_in_last_layer
from train_loop.objectives.masked_lm import MaskedLMObjective
from train_loop.speed.flops import count_flops, matmul_rate


def run(options: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        ValueError: The text, the tokenizer or the model cannot be opened.
    """
    train = TrainConfig(global_batch_size=options.batch, torch_compile=options.torch_compile)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(write_text(options, Path(folder)), options.model, train)
        num_blocks = len(open_corpus(settings).train[0])
        if num_blocks < options.batch:
            raise ValueError(f"batch={options.batch}: the text has {num_blocks} blocks: use --batch {num_blocks}")
        total_steps = options.warm_up + options.steps
        setup = Setup(settings, options.batch, options.steps, total_steps, options.precision)
        flops_per_token = in_child(partial(_flops_per_token, setup))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ways: dict[str, Any] = {name: partial(contender, setup) for name, contender in CONTENDERS.items()}
        ways["matmul"] = partial(matmul_rate, device, options.precision, seconds=3.0)
        results = interleave({name: partial(in_child, way) for name, way in ways.items()}, options.repeats)
    cases = []
    speeds = {name: [result["tokens_per_second"] for result in results[name]] for name in CONTENDERS}
    for name in CONTENDERS:
        shares = [speed * flops_per_token / peak for speed, peak in zip(speeds[name], results["matmul"], strict=True)]
        case = {
            "name": name,
            "tokens_per_second": spread(speeds[name]),
            "ratio": ratio(speeds[name], speeds["Trainer"]),
            "peak_memory_bytes": spread([result["peak_memory"] for result in results[name]]),
            "share_of_matmul_rate": spread(shares),
        }
        cases.append(case)
    facts = {name: getattr(options, name) for name in ("batch", "length", "precision", "torch_compile")}
    facts |= {"model": asdict(options.model), "flops_per_token": flops_per_token}
    facts["matmul_flops_per_second"] = spread(results["matmul"])
    header = ["training", "tokens/s", "ratio to Trainer", "peak memory", "of the matrix-product rate"]
    print_report(options, [header, *map(_row, cases)], cases, **facts)


def _flops_per_token(setup: Setup) -> float:
    """The operations that the loss needs, also for contenders that compute more."""
    corpus, model = setup.open()
    objective = MaskedLMObjective(model)
    gather_in_last_layer(objective.logits)
    return count_flops(objective, corpus.config.block_size).of(1, corpus.config.mlm_probability)


def _row(case: dict[str, Any]) -> list[str]:
    memory, share = (case[name]["median"] for name in ("peak_memory_bytes", "share_of_matmul_rate"))
    speed, compared = rate(case["tokens_per_second"]), times(case["ratio"])
    return [case["name"], speed, compared, f"{memory / 1e9:.2f} GB", f"{share:.0%}"]
