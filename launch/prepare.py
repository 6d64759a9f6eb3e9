"""Prepare a run's text without training: ``mlm prepare --recipe quickstart``."""

import sys
from pathlib import Path

from launch.run.errors import one_line_errors
from launch.run.settings import SettingsParser, parse_settings

COMMAND = SettingsParser(
    "mlm prepare",
    "Make what a run needs before its first update, without a model: documents, tokenizer, and the blocks "
    "to train and to evaluate on. What is already in the cache is not made again.",
)


@one_line_errors
def main(arguments: list[str]) -> None:
    """Make the corpus and print where it is."""
    settings, _ = parse_settings(arguments, COMMAND)
    from launch.run.corpus import open_corpus, print_corpus  # imports torch

    tokenizer = None
    for phase in settings.phases or (settings,):
        corpus = open_corpus(phase, tokenizer=tokenizer)
        print_corpus(corpus)
        tokenizer = corpus.tokenizer
    print(f"tokens   {len(corpus.tokenizer):,} in the vocabulary")
    print(f"where    {Path(settings.data.cache_dir).expanduser()}")


if __name__ == "__main__":
    main(sys.argv[1:])
