"""Scores how probable a text is to a masked language model, by its pseudo-log-likelihood.

Each token is masked alone, and the log-probabilities of all tokens are added up (Salazar et al. 2020, "Masked Language
Model Scoring", equation 1). This favours words of several tokens, because the other tokens of the word give the masked
one away. ``within_word`` also masks the later tokens of the word (Kauf and Ivanova 2023, "A Better Way to Do Masked
Language Model Scoring", section 3, ``PLL-word-l2r``).
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import BatchEncoding

from train_loop.inference.predictor import Ask, MaskPredictor, tokenize
from train_loop.objectives.masked_lm import perplexity
from train_loop.watching.columns import excerpt


@dataclass(frozen=True)
class TextScore:
    """The score of one text."""

    text: str
    tokens: list[str]  # as the vocabulary spells them, without special tokens, which are not scored
    log_probs: list[float]  # the natural logarithm of each token's probability

    @property
    def pseudo_log_likelihood(self) -> float:
        """The sum of ``log_probs``."""
        return sum(self.log_probs)

    @property
    def pseudo_perplexity(self) -> float:
        """The pseudo-perplexity of this text alone; infinite where it is too large for a float."""
        return pseudo_perplexity([self])


def pseudo_perplexity(scores: Iterable[TextScore]) -> float:
    """The pseudo-perplexity over all tokens of texts (Salazar et al. 2020, equation 3). ValueError if there is none."""
    log_probs = [log_prob for score in scores for log_prob in score.log_probs]
    if not log_probs:
        raise ValueError("scores=[] have no token: a perplexity needs one text or more")
    return perplexity(-sum(log_probs) / len(log_probs))


class TextScorer(MaskPredictor):
    """Scores texts with a model and its tokenizer.

    >>> score = TextScorer.from_pretrained("runs/quickstart/model")
    >>> score("The default value is None.").pseudo_perplexity
    """

    def __call__(self, texts: str | Iterable[str], *, within_word: bool = False, batch_size: int = 32) -> Any:
        """Score one text, a list, or an iterator of texts: with a `TextScore`, a list or an iterator of them.

        A text of L tokens takes the time of L rows of L tokens.

        Args:
            texts: An iterator is read no further ahead than ``batch_size`` texts.
            within_word: Mask the later tokens of a token's word together with it.
            batch_size: Number of rows in one forward.

        Raises ValueError if a text is empty, has a mask or is too long, or the tokenizer cannot tell words.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more")
        if within_word and not self.tokenizer.is_fast:
            raise ValueError(
                f"within_word needs a fast tokenizer: {type(self.tokenizer).__name__} cannot tell words; leave it off"
            )
        score = partial(self._score, within_word=within_word, batch_size=batch_size)
        return self.answer_each(texts, score, batch_size)

    def _score(self, texts: list[str], first: int | None, *, within_word: bool, batch_size: int) -> list[TextScore]:
        settings = {"return_special_tokens_mask": True, "return_offsets_mapping": within_word, "verbose": False}
        encodings = tokenize(self.tokenizer, texts, **settings)
        asks: list[list[Ask]] = []
        for i, text in enumerate(texts):
            row = tuple(encodings["input_ids"][i])
            scored = [position for position, special in enumerate(encodings["special_tokens_mask"][i]) if not special]
            self._check(text, row, scored, "" if first is None else f" (text {first + i})")
            ends = _word_ends(encodings, i, text) if within_word else range(1, len(row) + 1)
            asks.append([self.ask(row, position, ends[position]) for position in scored])
        log_probs = iter(self.log_probs(list(itertools.chain.from_iterable(asks)), batch_size))
        tokens = [self.tokenizer.convert_ids_to_tokens([ask.token for ask in of_text]) for of_text in asks]
        rows = zip(texts, tokens, strict=True)
        return [TextScore(text, of_text, list(itertools.islice(log_probs, len(of_text)))) for text, of_text in rows]

    def _check(self, text: str, row: tuple[int, ...], scored: list[int], where: str) -> None:
        if not scored:
            raise ValueError(f"an empty text{where}: there is nothing to score")
        if self.tokenizer.mask_token_id in row:
            raise ValueError(
                f"a mask in {excerpt(text, 60)!r}{where}: only a text without masks has a score; write the word"
            )
        if len(row) > self.longest:
            raise ValueError(
                f"a text of {len(row):,} tokens is longer than the model's {self.longest:,} positions"
                f"{where}: {excerpt(text, 60)!r}; score its parts"
            )


def _word_ends(encodings: BatchEncoding, index: int, text: str) -> list[int]:
    """For each token of a text, the position after the last token of its word.

    A word ends where the tokenizer's word id changes, or at white space, which SentencePiece may have inside a word id.

    text  "un believ able, it"     tokens of "unbelievable, it":  un believ able , it
    ends                                                           3    3     3   4  5
    """
    word_ids, offsets = encodings.word_ids(index), encodings["offset_mapping"][index]
    ends = list(range(1, len(word_ids) + 1))
    for i in range(len(word_ids) - 2, -1, -1):
        between = text[offsets[i][1] : offsets[i + 1][0] + 1]  # with the first character of the next token
        if word_ids[i] is not None and word_ids[i] == word_ids[i + 1] and not any(map(str.isspace, between)):
            ends[i] = ends[i + 1]
    return ends
