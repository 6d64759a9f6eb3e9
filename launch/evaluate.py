"""Evaluate models on texts, as training does, also models of different tokenizers.

mlm evaluate --model runs/one runs/two --recipe runs/one/config.yaml    # on the text that this run holds out
mlm evaluate --model runs/one roberta-base --text a.txt b.jsonl         # on all of each of these texts
"""

import sys
from functools import partial

from launch.run.errors import OneLineParser, one_line_errors
from launch.run.settings import settings_of_model

_PAIRS = "minimal pairs: files or folders of rows with sentence_good and sentence_bad, or english, a suite of our own"
_LABELS = "labelled texts: files of rows with text and label, or python-docs, its modules; needs scikit-learn"
_MEANING = """
loss, perplexity, accuracy: of the masked tokens, the same ones at every evaluation with these settings.
bits per byte: the loss in bits, times the tokens in a byte of the text, without special tokens. Models compare that
  are asked for the same share of their tokens (--mlm_probability).
PLL bits per byte: by pseudo-likelihood (Salazar et al. 2020). Each token of a text is masked by itself; the bits of all
  of them, divided by the bytes. It takes a forward for each token.

Settings are those of a run: mlm train --help lists them. Every number is the same on any number of processes."""


@one_line_errors
def main(arguments: list[str]) -> None:
    """Print a row for each model on each text."""
    parser = OneLineParser(prog="mlm evaluate", description=f"{__doc__}{_MEANING}", allow_abbrev=False)
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME", help="folders of runs or models, Hub ids")
    parser.add_argument("--text", nargs="+", metavar="SOURCE", help="texts (default: that of the settings)")
    parser.add_argument("--pll", type=int, metavar="N", help="also score the first N texts by pseudo-likelihood")
    questions = parser.add_argument_group("questions, instead of the text of the settings")
    questions.add_argument("--pairs", nargs="+", default=[], metavar="SOURCE", help=_PAIRS)
    questions.add_argument("--group_by", metavar="COLUMN", help="what a pair is about (default: the name of its file)")
    questions.add_argument("--within_word", action="store_true", help="mask a word's later pieces too, see mlm score")
    questions.add_argument("--labels", nargs="+", default=[], metavar="SOURCE", help=_LABELS)
    questions.add_argument("--pooling", default="mean", choices=("mean", "first"), help="which states are classified")
    parser.add_argument("--json", action="store_true", help="print one JSON line a row")
    options, words = parser.parse_known_args(arguments)
    if options.pll is not None and options.pll < 1:
        raise ValueError(f"--pll {options.pll} must be 1 or more")
    asks = bool(options.pairs or options.labels)
    texts = options.text or [None] * (not asks)
    cases = [settings_of_model("mlm evaluate", words, model, text) for text in texts for model in options.model]
    asked = [settings_of_model("mlm evaluate", words, model) for model in options.model if asks]
    from launch.run.evaluation import evaluate_all, evaluate_text  # imports torch
    from launch.run.suite import Suite

    forms = {"group_by": options.group_by, "within_word": options.within_word, "pooling": options.pooling}
    suite = Suite(tuple(options.pairs), tuple(options.labels), **forms)
    work = [(settings, partial(evaluate_text, num_scored=options.pll)) for settings in cases]
    evaluate_all([*work, *((settings, suite.rows) for settings in asked)], as_json=options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
