"""Prepare a run: ``python -m launch.prepare --recipe quickstart``."""

import sys

from launch.run.settings import Command, fail, parse_settings

COMMAND = Command(
    prog="python -m launch.prepare",
    description="Make what a run needs before its first update, without a model: documents, tokenizer, and the blocks "
    "to train and to evaluate on. What is there already is not made again.",
)


def main(arguments: list[str]) -> None:
    """Make the corpus and say where it is; exit 2 with one line for what the user can mend."""
    settings, _ = parse_settings(arguments, COMMAND)
    from launch.run.corpus import open_corpus, print_corpus  # see launch.train

    try:
        corpus = open_corpus(settings)
    except (ValueError, OSError) as error:
        fail(error)
    print_corpus(corpus)
    print(f"tokens   {len(corpus.tokenizer):,} in the vocabulary")
    print(f"where    {corpus.config.cache_dir}")


if __name__ == "__main__":
    main(sys.argv[1:])
