"""Audit another training loop: are its gradient and its loss right, with your model and versions?

mlm audit trainer --model roberta-base       # transformers' Trainer, and Trainer with this project's MaskedLMLoss
mlm audit accelerate --model_type bert       # a loop like run_mlm_no_trainer.py; random weights of a tiny shape
"""

import sys

from launch.run.errors import OneLineParser, one_line_errors

_MEANING = """
One update of 8 texts of 64 tokens, 15 % of them masked, cut in each way, without dropout and clipping. The true
gradient is that of the mean over all masked tokens of the update.
gradient x: how many times too long the loop's gradient is. cosine: 1 if it has the right direction.
eval loss x: the loss that the loop reports for other texts, over the mean over all of their masked tokens."""


@one_line_errors
def main(arguments: list[str]) -> None:
    """Print a row for each loop and each way, and what to do."""
    parser = OneLineParser(prog="mlm audit", description=f"{__doc__}{_MEANING}")
    parser.add_argument("loop", choices=("trainer", "accelerate"), help="the loop to audit")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="DIR_OR_ID", help="a model as AutoModelForMaskedLM opens it")
    model.add_argument("--model_type", metavar="TYPE", help="random weights of a tiny model of this type")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="default: 1 2 4")
    parser.add_argument("--json", action="store_true", help="print one JSON line a row")
    options = parser.parse_args(arguments)
    from launch.benchmarks.audit import audit  # imports torch

    audit(options)


if __name__ == "__main__":
    main(sys.argv[1:])
