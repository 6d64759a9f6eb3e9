"""Measure this project beside what people use today: ``mlm benchmark data|train|fill_mask|race``."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from data.config import DataConfig
from launch.run.errors import OneLineParser, one_line_errors
from train_loop.config import ModelConfig

_DISTILROBERTA = {"vocab_size": 50265, "num_hidden_layers": 6, "max_position_embeddings": 514, "type_vocab_size": 1}


@one_line_errors
def main(arguments: list[str]) -> None:
    """Run a benchmark and print its report."""
    options = _parser().parse_args(arguments)
    for name in ("repeats", "copies", "length", "batch", "steps", "warm_up", "texts", "seeds"):
        if getattr(options, name, 1) < 1:
            raise ValueError(f"{name}={getattr(options, name)} must be 1 or more")
    if hasattr(options, "model_type"):
        options.model = _model_config(options)
        options.tokenizer_name_or_path = options.tokenizer_name_or_path or options.model_name_or_path
    importlib.import_module(f"launch.benchmarks.{options.name}").run(options)  # imports torch


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="mlm benchmark", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", dest="name")
    _add(commands, "data", "tokenizing, grouping and masking beside the Hugging Face guide", {}, has_model=False)
    counts = {"batch": (16, "Blocks in a batch."), "steps": (8, "Updates timed."), "warm_up": (2, "Updates before.")}
    train = _add(commands, "train", "updates beside Trainer and a plain Accelerate loop", counts)
    train.add_argument("--torch_compile", action="store_true", help="Compile the layers of this project's model.")
    train.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"), help="Default: no, fp32.")
    texts = "concatenate; or sentences (line_by_line) or documents (pack) side by side, beside padding and masks."
    train.add_argument("--grouping", default="concatenate", choices=("concatenate", "line_by_line", "pack"), help=texts)
    counts = {"texts": (1000, "Sentences.")}
    _add(commands, "fill_mask", 'filling masks beside pipeline("fill-mask")', counts, copies=1, repeats=3)
    race = commands.add_parser("race", help="who learns a fixed text best, by recipes and seeds")
    race.add_argument("entries", nargs="*", metavar="ENTRY", help="ours/muon, or a path; none prints the ledger.")
    race.add_argument("--limit", default="seconds", choices=("seconds", "flops"), help="What is the same for all.")
    race.add_argument("--seeds", type=int, default=5, metavar="N", help="Runs of an entry. Default: %(default)s.")
    race.add_argument("--replay", action="store_true", help="Race the first seed again, by the ledger's recipe.")
    ledger = Path(__file__).parent / "benchmarks" / "race" / "ledger.jsonl"
    race.add_argument("--ledger", default=ledger, metavar="FILE", help="Yours, on another machine. Default: ours.")
    race.add_argument("--cache_dir", default=DataConfig.cache_dir, metavar="FOLDER", help="As in a run.")
    return parser


def _add(
    commands: Any,
    benchmark: str,
    title: str,
    counts: dict[str, tuple[int, str]],
    *,
    has_model: bool = True,
    copies: int = 2,
    repeats: int = 5,
) -> argparse.ArgumentParser:
    """Add a benchmark with the options that all have, and with its own counts: name -> default and help."""
    parser: argparse.ArgumentParser = commands.add_parser(benchmark, help=title)
    run = DataConfig()
    parser.add_argument("--dataset", default=run.dataset, metavar="SOURCE", help="As in a run. Default: %(default)s.")
    parser.add_argument("--text_column", metavar="COLUMN", help="As in a run.")
    parser.add_argument("--tokenizer_name_or_path", metavar="NAME", help="Default: one is trained on the text.")
    parser.add_argument("--cache_dir", default=run.cache_dir, metavar="FOLDER", help="As in a run.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    if has_model:
        parser.add_argument("--model_name_or_path", metavar="NAME", help="A Hub id or folder, instead of a shape.")
        parser.add_argument("--model_type", default="roberta", metavar="TYPE", help="Random weights. Default: roberta.")
        shape = "Changes to the model's configuration. Default: DistilRoBERTa's for roberta."
        parser.add_argument("--shape", nargs="+", default=[], metavar="KEY=N", help=shape)
    shared = {"vocab_size": (run.vocab_size, "Of a tokenizer that is trained.")}
    shared["copies"] = (copies, "How many times the text is repeated.")
    shared |= {"length": (128, "Tokens in a block."), "repeats": (repeats, "Rounds.")}
    for name, (default, text) in (shared | counts).items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} Default: %(default)s.")
    return parser


def _model_config(options: argparse.Namespace) -> ModelConfig:
    if options.model_name_or_path:
        return ModelConfig(model_name_or_path=options.model_name_or_path)
    shape: dict[str, Any] = dict(_DISTILROBERTA) if options.model_type == "roberta" else {}
    for pair in options.shape:
        name, _, value = pair.partition("=")
        if not value.isdigit():
            raise ValueError(f"shape {pair!r} must be written NAME=NUMBER, for example hidden_size=256")
        shape[name] = int(value)
    return ModelConfig(model_type=options.model_type, model_config=shape)


if __name__ == "__main__":
    main(sys.argv[1:])
