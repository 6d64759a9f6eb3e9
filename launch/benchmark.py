"""Measure this project beside what people use today: ``python -m launch.benchmark data|train|fill_mask``."""

import importlib
import sys

from launch.benchmarks.options import add_parsers, check
from launch.run.settings import OneLineParser
from launch.terminal.texts import run_or_fail


def main(arguments: list[str]) -> None:
    """Run a benchmark; exit 2 with one line for a user error."""
    parser = OneLineParser(prog="python -m launch.benchmark", description=__doc__)
    add_parsers(parser.add_subparsers(required=True, metavar="BENCHMARK", dest="name"))
    options = parser.parse_args(arguments)

    def run() -> None:
        check(options)
        importlib.import_module(f"launch.benchmarks.{options.name}").run(options)  # imports torch

    run_or_fail(run)


if __name__ == "__main__":
    main(sys.argv[1:])
