"""Measure this project beside what people use today: ``python -m launch.benchmark data|train|fill_mask``."""

import sys

from launch.benchmarks import data, fill_mask, train
from launch.run.settings import OneLineParser, fail


def main(arguments: list[str]) -> None:
    """Run a benchmark; exit 2 with one line for what the user can mend."""
    parser = OneLineParser(prog="python -m launch.benchmark", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    data.add_parser(commands)
    train.add_parser(commands)
    fill_mask.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        if options.repeats < 1 or options.copies < 1:
            raise ValueError("repeats and copies must be 1 or more")
        options.run(options)
    except (ValueError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main(sys.argv[1:])
