"""Score texts: how probable each is to a masked language model.

mlm score --model DIR_OR_ID "The default value is None." "The default value am None."
mlm score --model DIR_OR_ID --file texts.jsonl > scores.jsonl
"""

import json
import math
import sys
from typing import TYPE_CHECKING

from launch.run.errors import one_line_errors
from launch.terminal.texts import as_json, open_texts, text_parser
from launch.terminal.token_text import shown_token
from train_loop.watching.columns import say
from train_loop.watching.run_record import shown_perplexity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from train_loop.inference.scoring import TextScore


@one_line_errors
def main(arguments: list[str]) -> None:
    """Print the score of each text."""
    how = "Each token is masked by itself; its log-probabilities add up (Salazar et al. 2020)."
    parser = text_parser("mlm score", f"{__doc__}\n{how}")
    why = "mask the later pieces of a token's word with it, which would give it away (Kauf and Ivanova 2023)"
    parser.add_argument("--within_word", action="store_true", help=why)
    parser.add_argument("--tokens", action="store_true", help="also print the log-probability of each token")
    options = parser.parse_args(arguments)
    if not options.texts and options.file is None and sys.stdin.isatty():
        raise ValueError("no texts: give some, or --file, or pipe them in")
    texts = open_texts(options)
    from transformers.utils import logging

    from train_loop.inference.scoring import TextScorer
    from train_loop.objectives.masked_lm import perplexity

    logging.disable_progress_bar()
    score = TextScorer.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    log_likelihood, num_tokens, num_texts = 0.0, 0, 0
    for result in score(texts, within_word=options.within_word, batch_size=options.batch_size):
        log_likelihood += result.pseudo_log_likelihood
        num_tokens += len(result.tokens)
        num_texts += 1
        if num_texts == 1 and not as_json(options):
            print("pseudo-perplexity  log-likelihood  tokens  text")
        _print(result, score.tokenizer, as_json=as_json(options), tokens=options.tokens)
    if num_texts > 1 and not as_json(options):
        overall = shown_perplexity(perplexity(-log_likelihood / num_tokens))
        print(f"pseudo-perplexity {overall} over {num_tokens:,} tokens")


def _print(score: "TextScore", tokenizer: "PreTrainedTokenizerBase", *, as_json: bool, tokens: bool) -> None:
    if as_json:
        row = {
            "text": score.text,
            "pseudo_log_likelihood": score.pseudo_log_likelihood,
            "num_tokens": len(score.tokens),
            "pseudo_perplexity": score.pseudo_perplexity if math.isfinite(score.pseudo_perplexity) else None,
        }
        row |= {"tokens": score.tokens, "log_probs": score.log_probs} if tokens else {}
        print(json.dumps(row, ensure_ascii=False))
        return
    perplexity = shown_perplexity(score.pseudo_perplexity)
    numbers = f"{perplexity:>17}  {score.pseudo_log_likelihood:14.2f}  {len(score.tokens):6}  "
    say(score.text, numbers)
    if tokens:
        ids = tokenizer.convert_tokens_to_ids(score.tokens)
        for token, log_prob in zip(ids, score.log_probs, strict=True):
            print(f"{'':33}{log_prob:8.2f}  {shown_token(tokenizer, token)}")


if __name__ == "__main__":
    main(sys.argv[1:])
