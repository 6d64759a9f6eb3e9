"""Prepare a run's text without training: ``python -m launch.prepare --recipe quickstart``."""

import sys

from launch.run.settings import Command, Settings, parse_settings
from launch.terminal.texts import run_or_fail

COMMAND = Command(
    prog="python -m launch.prepare",
    description="Make what a run needs before its first update, without a model: documents, tokenizer, and the blocks "
    "to train and to evaluate on. What is already in the cache is not made again.",
)


def main(arguments: list[str]) -> None:
    """Make the corpus and print where it is; exit 2 with one line for a user error."""
    settings, _ = parse_settings(arguments, COMMAND)
    run_or_fail(lambda: _prepare(settings))


def _prepare(settings: Settings) -> None:
    from launch.run.corpus import open_corpus, print_corpus  # see launch.train

    corpus = open_corpus(settings)
    print_corpus(corpus)
    print(f"tokens   {len(corpus.tokenizer):,} in the vocabulary")
    print(f"where    {corpus.config.cache_dir}")


if __name__ == "__main__":
    main(sys.argv[1:])
