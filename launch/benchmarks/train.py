"""Updates per second: this loop beside `Trainer`, `Trainer` tuned, and a plain Accelerate loop.

All start from the same weights and train on the same blocks, with the model's own
dropout, AdamW and clipping. Each runs in a process of its own, in every round.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.blocks.store import build_blocks
from data.blocks.tokenization import open_tokenizer
from data.cores import available_cores
from launch.benchmarks import measuring
from launch.benchmarks.contenders import CONTENDERS, Setup
from launch.benchmarks.measuring import Spread, in_child, ratios
from launch.benchmarks.text import MLM_PROBABILITY, write_text
from train_loop.objectives.checks import gather_in_last_layer
from train_loop.objectives.masked_lm import MaskedLMObjective
from train_loop.speed.flops import count_flops, matmul_rate


def run(options: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        ValueError: The text, the tokenizer or the model cannot be opened.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = write_text(options, Path(folder))
        config = text.config(Path(folder), options.length)
        documents = text.documents(config)
        blocks = build_blocks(documents, open_tokenizer(config, documents, None), config)
        if len(blocks) < options.batch:
            raise ValueError(f"batch={options.batch}: the text has {len(blocks)} blocks: use --batch {len(blocks)}")
        setup = Setup(
            tokenizer=text.tokenizer,
            blocks=blocks.folder,
            model=options.model,
            batch=options.batch,
            steps=options.steps,
            warm_up=options.warm_up,
            precision=options.precision,
            num_workers=available_cores(),
            torch_compile=options.torch_compile,
        )
        needed = in_child(_flops_per_token, setup, options.length)
        rounds = [_round(setup) for _ in range(options.repeats)]
    cases = [_case(name, rounds, needed) for name in CONTENDERS]
    report = {
        "benchmark": "train",
        "surroundings": measuring.surroundings(),
        "repeats": options.repeats,
        "model": asdict(setup.model),
        "batch": options.batch,
        "length": options.length,
        "precision": options.precision,
        "torch_compile": options.torch_compile,
        "flops_per_token": needed,
        "matmul_flops_per_second": asdict(Spread.of([figures["matmul"] for figures in rounds])),
        "cases": cases,
    }
    header = ["training", "tokens/s", "ratio to Trainer", "peak memory", "of the matrix-product rate"]
    measuring.print_report(report, header, [_row(case) for case in cases], as_json=options.json)


def _flops_per_token(setup: Setup, length: int) -> float:
    """The operations that the loss needs, also for contenders that compute more."""
    objective = MaskedLMObjective(setup.open_model(setup.open_tokenizer(), length))
    gather_in_last_layer(objective.logits)
    return count_flops(objective, length).of(1, MLM_PROBABILITY)


def _round(setup: Setup) -> dict[str, Any]:
    figures: dict[str, Any] = {name: in_child(contender, setup) for name, contender in CONTENDERS.items()}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {**figures, "matmul": in_child(matmul_rate, device, setup.precision, seconds=3.0)}


def _case(name: str, rounds: list[dict[str, Any]], needed: float) -> dict[str, Any]:
    speeds = [figures[name]["tokens_per_second"] for figures in rounds]
    reference = [figures["Trainer"]["tokens_per_second"] for figures in rounds]
    shares = [speed * needed / figures["matmul"] for speed, figures in zip(speeds, rounds, strict=True)]
    return {
        "name": name,
        "tokens_per_second": asdict(Spread.of(speeds)),
        "ratio": asdict(ratios(speeds, reference)),
        "peak_memory_bytes": asdict(Spread.of([figures[name]["peak_memory"] for figures in rounds])),
        "share_of_matmul_rate": asdict(Spread.of(shares)),
    }


def _row(case: dict[str, Any]) -> list[str]:
    memory, share = (case[name]["median"] for name in ("peak_memory_bytes", "share_of_matmul_rate"))
    return [
        case["name"],
        measuring.rate(Spread(**case["tokens_per_second"])),
        measuring.times(Spread(**case["ratio"])),
        f"{memory / 1e9:.2f} GB",
        f"{share:.0%}",
    ]
