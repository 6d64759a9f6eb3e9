"""Take a model elsewhere: ``python -m launch.publish export --model DIR_OR_ID --format onnx --output DIR``."""

import argparse
import logging
import warnings
from pathlib import Path

from launch.run.settings import OneLineParser
from launch.terminal.texts import run_or_fail


def main(arguments: list[str]) -> None:
    """Write the model in another format; exit 2 with one line for what the user can mend."""
    parser = OneLineParser(prog="python -m launch.publish export", description=__doc__)
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a run's model folder, or an id of the Hub")
    parser.add_argument(
        "--format", required=True, choices=("onnx", "keras"), help="for ONNX Runtime, or a KerasHub preset"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    options = parser.parse_args(arguments)
    run_or_fail(lambda: _export(options))


def _export(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if output.exists():
        raise ValueError(f"--output {output} is there already: name another folder, or remove it")
    logging.disable(logging.WARNING)  # the exporter has much to say about itself
    warnings.filterwarnings("ignore")
    from transformers.utils import logging as transformers_logging

    from train_loop.sharing.export_keras import export_keras
    from train_loop.sharing.export_onnx import export_onnx

    transformers_logging.disable_progress_bar()
    export, engine = (export_onnx, "ONNX Runtime") if options.format == "onnx" else (export_keras, "KerasHub")
    compared = export(options.model, output)
    print(f"exported   {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    print(
        f"checked    {engine}'s logits differ from the model's by {compared.difference:.2g} at the most, "
        f"on random texts of {min(compared.lengths):,} to {max(compared.lengths):,} tokens"
    )
