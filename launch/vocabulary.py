"""Teach a model's tokenizer the words of a text that it cuts into many pieces.

mlm vocabulary --model DIR_OR_ID --dataset texts/ --add 1000 --output DIR

Added are the words of the training text that save most tokens: how often one occurs, times its tokens less one. Its row
is the mean of its pieces' (default), weighted by their order, or random. Settings are those of a run.
"""

import sys
import tempfile
import time
from pathlib import Path

from launch.run.errors import OneLineParser, one_line_errors
from launch.run.settings import settings_of_model


@one_line_errors
def main(arguments: list[str]) -> None:
    """Write the model with its new words, and print what they save."""
    started = time.perf_counter()
    parser = OneLineParser(prog="mlm vocabulary", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder of a run or a model, or a Hub id")
    parser.add_argument("--add", type=int, required=True, metavar="N", help="words to add, at the most")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write: a model to any other command")
    parser.add_argument("--init", default="mean", choices=("mean", "weighted", "random"), help="rows of new words")
    options, others = parser.parse_known_args(arguments)
    if options.add < 1:
        raise ValueError(f"--add {options.add} must be 1 or more")
    if (output := Path(options.output)).exists():
        raise ValueError(f"--output {output} is there already: name another folder, or remove it")
    settings = settings_of_model("mlm vocabulary", others, options.model)
    from transformers.utils import logging

    from data.blocks.new_words import save_with_words, shattered_words
    from data.blocks.tokenization import open_tokenizer
    from launch.run.corpus import open_corpus
    from launch.terminal.tables import print_rows
    from launch.terminal.token_text import shown_token
    from train_loop.model import add_rows, load_model

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would tell how it draws the rows that are replaced
    corpus, name = open_corpus(settings, trains=False), str(settings.model.model_name_or_path)
    found, before, num_texts = shattered_words(corpus.tokenizer, (t for d in corpus.documents for t in d.texts()))
    if not (words := found[: options.add]):
        raise ValueError(f"--add {options.add}: each word of the text is one token of {name!r} already")
    model = load_model(name, settings.model.model_revision, needs_all_weights=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        folder = Path(scratch) / output.name
        save_with_words(corpus.tokenizer, (word for _, word, _ in words), folder)
        tokenizer = open_tokenizer(settings.data, [], str(folder))
        left, after, _ = shattered_words(tokenizer, (t for d in corpus.documents for t in d.texts()))
        if left != found[len(words) :]:
            raise ValueError(f"new words would change how the tokenizer of {name!r} cuts others: it cannot have any")
        pieces = {tokenizer.convert_tokens_to_ids(word): pieces for _, word, pieces in words}
        add_rows(model, pieces, after, options.init)
        model.save_pretrained(folder)
        folder.rename(output)
    mean = sum(map(len, pieces.values())) / len(words)
    print(f"words    {len(words):,} of {len(found):,} that are several tokens: now 1 token each, {mean:.2f} before")
    old, new = before.total() / num_texts, after.total() / num_texts
    print(f"tokens   in each of {num_texts:,} documents: {old:,.1f} before, {new:,.1f} after ({new / old - 1:+.1%})")
    shown = zip((shown_token(tokenizer, token) for token in pieces), words[:12], strict=False)
    print_rows([{"word": word, "pieces": len(w[2]), "gain": w[0]} for word, w in shown], {"pieces": "", "gain": ","})
    print(f"where    {output}, after {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
