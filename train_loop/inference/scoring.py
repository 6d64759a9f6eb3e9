"""How probable a text is to a masked language model: its pseudo-log-likelihood.

Each token is masked by itself and its log-probability added up (Salazar et al. 2020,
"Masked Language Model Scoring", equation 1). That favours words of several pieces,
whose other pieces give the masked one away; ``within_word`` masks the pieces of the
word after it too (Kauf and Ivanova 2023, "A Better Way to Do Masked Language Model
Scoring", section 3, ``PLL-word-l2r``).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BatchEncoding

from train_loop.evaluate import perplexity
from train_loop.inference.predictor import Ask, PredictorUser, excerpt, tokenize, windows


@dataclass(frozen=True)
class TextScore:
    """Of one text.

    Attributes:
        text: It.
        tokens: As the vocabulary has them; special tokens are not scored.
        log_probs: Natural logarithm of the probability of each.
    """

    text: str
    tokens: list[str]
    log_probs: list[float]

    @property
    def pseudo_log_likelihood(self) -> float:
        """The sum over the tokens."""
        return sum(self.log_probs)

    @property
    def pseudo_perplexity(self) -> float:
        """Of the text by itself."""
        return pseudo_perplexity([self])


def pseudo_perplexity(scores: Iterable[TextScore]) -> float:
    """Over all tokens of some texts: sums first, one division (Salazar et al. 2020, equation 3).

    Raises:
        ValueError: They have no token.
    """
    log_probs = [log_prob for score in scores for log_prob in score.log_probs]
    if not log_probs:
        raise ValueError("scores=[] have no token: a perplexity is that of one text or more")
    return perplexity(-sum(log_probs) / len(log_probs))


class TextScorer(PredictorUser):
    """Scores texts with a model and its tokenizer.

    >>> score = TextScorer.from_pretrained("runs/quickstart/model")
    >>> score("The default value is None.").pseudo_perplexity
    """

    def __call__(self, texts: str | Iterable[str], *, within_word: bool = False, batch_size: int = 32) -> Any:
        """Score one text, a list, or an iterator of texts.

        A text of L tokens costs L rows of L tokens.

        Args:
            texts: An iterator is read no further ahead than ``batch_size`` texts.
            within_word: Mask the later pieces of a token's word together with it.
            batch_size: Rows in one forward.

        Returns:
            A `TextScore`, a list or an iterator of them.

        Raises:
            ValueError: A text that is empty, has a mask or is longer than the model; or a tokenizer that cannot
                tell words.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more")
        if within_word and not self.tokenizer.is_fast:
            raise ValueError(f"within_word needs a fast tokenizer: {type(self.tokenizer).__name__} tells no words")
        if isinstance(texts, str):
            return self._score([texts], None, within_word, batch_size)[0]
        scores = self._stream(texts, within_word, batch_size)
        return list(scores) if isinstance(texts, Sequence) else scores

    def _stream(self, texts: Iterable[str], within_word: bool, batch_size: int) -> Iterator[TextScore]:
        for first, window in windows(texts, batch_size):
            yield from self._score(window, first, within_word, batch_size)

    def _score(self, texts: Sequence[str], first: int | None, within_word: bool, batch_size: int) -> list[TextScore]:
        settings = {"return_special_tokens_mask": True, "return_offsets_mapping": within_word, "verbose": False}
        encodings = tokenize(self.tokenizer, list(texts), **settings)
        asks: list[list[Ask]] = []
        for i, text in enumerate(texts):
            row = tuple(encodings["input_ids"][i])
            scored = [position for position, special in enumerate(encodings["special_tokens_mask"][i]) if not special]
            self._check(text, row, scored, "" if first is None else f" (text {first + i})")
            ends = _word_ends(encodings, i, text) if within_word else [position + 1 for position in range(len(row))]
            asks.append([self._ask(row, position, ends[position]) for position in scored])
        log_probs = iter(self.predictor.log_probs(list(itertools.chain.from_iterable(asks)), batch_size))
        return [
            TextScore(
                text,
                self.tokenizer.convert_ids_to_tokens([ask.token for ask in of_text]),
                list(itertools.islice(log_probs, len(of_text))),
            )
            for text, of_text in zip(texts, asks, strict=True)
        ]

    def _ask(self, row: tuple[int, ...], position: int, end: int) -> Ask:
        """For a token, with its word masked from there to its end."""
        masks = (self.tokenizer.mask_token_id,) * (end - position)
        return Ask(row[:position] + masks + row[end:], position, row[position])

    def _check(self, text: str, row: Sequence[int], scored: Sequence[int], where: str) -> None:
        if not scored:
            raise ValueError(f"an empty text{where}: there is nothing to score")
        if self.tokenizer.mask_token_id in row:
            raise ValueError(
                f"a mask in {excerpt(text)}{where}: a text is scored whole; to fill masks use launch.fill_mask"
            )
        if len(row) > self.predictor.longest:
            raise ValueError(
                f"a text of {len(row):,} tokens is longer than the model's {self.predictor.longest:,} positions"
                f"{where}: {excerpt(text)}; score its parts"
            )


def _word_ends(encodings: BatchEncoding, index: int, text: str) -> list[int]:
    """For each token, the position behind the last one of its word.

    A word ends where the tokenizer's word id changes or white space comes, which SentencePiece may have within one.

    text  "un believ able, it"     pieces of "unbelievable, it":  un believ able , it
    ends                                                           3    3     3   4  5
    """
    word_ids, offsets = encodings.word_ids(index), encodings["offset_mapping"][index]
    ends = list(range(1, len(word_ids) + 1))
    for i in range(len(word_ids) - 2, -1, -1):
        between = text[offsets[i][1] : offsets[i + 1][0] + 1]  # and the first character of the next token
        is_apart = any(character.isspace() for character in between)
        if word_ids[i] is not None and word_ids[i] == word_ids[i + 1] and not is_apart:
            ends[i] = ends[i + 1]
    return ends
