"""The options of each benchmark, and what they mean; nothing here imports torch, so `--help` answers at once."""

import argparse
from typing import Any

from data.config import DataConfig
from train_loop.config import ModelConfig

_DISTILROBERTA = {
    "vocab_size": 50265,
    "num_hidden_layers": 6,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}


def add_parsers(commands: Any) -> None:
    """``python -m launch.benchmark data|train|fill_mask``: a parser for each module of this folder that has a `run`."""
    data = commands.add_parser("data", help="tokenizing, grouping and masking beside the Hugging Face guide")
    _add_text_options(data)
    train = commands.add_parser("train", help="updates beside Trainer and a plain Accelerate loop")
    _add_text_options(train)
    _add_model_options(train)
    train.add_argument("--batch", type=int, default=16, metavar="N", help="Blocks in a batch. Default: %(default)s.")
    train.add_argument(
        "--precision", default="no", choices=("no", "bf16", "fp16"), help="Mixed precision. Default: %(default)s."
    )
    train.add_argument("--steps", type=int, default=8, metavar="N", help="Updates timed. Default: %(default)s.")
    train.add_argument("--warm_up", type=int, default=2, metavar="N", help="Updates before. Default: %(default)s.")
    train.add_argument("--torch_compile", action="store_true", help="Compile the layers of this project's model.")
    fill_mask = commands.add_parser("fill_mask", help='filling masks beside pipeline("fill-mask")')
    _add_text_options(fill_mask)
    _add_model_options(fill_mask)
    fill_mask.add_argument("--texts", type=int, default=1000, metavar="N", help="Sentences. Default: %(default)s.")
    fill_mask.set_defaults(copies=1, repeats=3)


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot work, and turn the model's options into ``options.model``, a `ModelConfig`.

    Raises:
        ValueError: A count is below 1, or a shape is not written as numbers.
    """
    for name in ("repeats", "copies", "length", "batch", "steps", "warm_up", "texts"):
        if getattr(options, name, 1) < 1:
            raise ValueError(f"{name}={getattr(options, name)} must be 1 or more")
    if hasattr(options, "model_type"):
        options.model = _model_config(options)
        options.tokenizer_name_or_path = options.tokenizer_name_or_path or options.model_name_or_path


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    defaults = DataConfig()
    parser.add_argument(
        "--dataset", default=defaults.dataset, metavar="SOURCE", help="As of a run. Default: %(default)s."
    )
    parser.add_argument("--text_column", metavar="COLUMN", help="As of a run.")
    parser.add_argument("--tokenizer_name_or_path", metavar="NAME", help="Default: one is trained on the text.")
    parser.add_argument(
        "--vocab_size", type=int, default=defaults.vocab_size, metavar="N", help="Of that. Default: %(default)s."
    )
    parser.add_argument(
        "--copies", type=int, default=2, metavar="N", help="How often the text is taken. Default: %(default)s."
    )
    parser.add_argument("--length", type=int, default=128, metavar="N", help="Tokens in a block. Default: %(default)s.")
    parser.add_argument("--cache_dir", default=defaults.cache_dir, metavar="FOLDER", help="As of a run.")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="Rounds. Default: %(default)s.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_name_or_path", metavar="NAME", help="A Hub id or folder, instead of a shape.")
    parser.add_argument(
        "--model_type", default="roberta", metavar="TYPE", help="Of random weights. Default: %(default)s."
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        default=[],
        metavar="KEY=N",
        help="Changes to the model's configuration. Default: DistilRoBERTa's for roberta.",
    )


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
