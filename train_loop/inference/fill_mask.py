"""Fill ``<mask>`` by the top-k of its logits.

What ``pipeline("fill-mask")`` answers, from explicit steps: encode, find the
mask, run the head there only, take the k largest logits, and turn them into
probabilities with one log-sum-exp.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from train_loop.inference.joint_fill import JOINT_METHODS, Filling, JointMethod, fill_jointly
from train_loop.inference.predictor import PredictorUser, Query, windows
from train_loop.inference.targets import Pieces, score_targets, target_pieces

Fill = dict[str, Any]  # score, token, token_str, sequence: the pipeline's fields
Row = list[int]

_DEFAULT_TOP_K = 5
_BATCHES_AT_ONCE = 32  # are read ahead, so that texts of like length meet


class FillMask(PredictorUser):
    """Fills masks with a model and its tokenizer; called as the pipeline is.

    >>> fill_mask = FillMask.from_pretrained("runs/quickstart/model")
    >>> fill_mask("The default <mask> is None.", top_k=3)

    The answers are the pipeline's, scores, order and fields, but for this:

    - ``targets`` keep their order, each in its place, unless ``top_k`` asks for the best of them. One of
      several tokens is scored over all of them (the pipeline takes the first); an unknown one is an error.
    - ``sequence`` has no ``<s>`` and ``</s>`` around a text of several masks, and keeps the spaces before
      its other masks; ``clean=False`` gives the pipeline's.
    - A list of one text is a list of one answer.
    - Texts that cannot be filled are errors that say why.
    """

    @functools.cached_property
    def _token_str(self) -> Callable[[int], str]:
        decode = self.tokenizer.decode
        return functools.lru_cache(maxsize=100_000)(lambda token: decode([token]))

    def __call__(
        self,
        texts: str | Iterable[str],
        top_k: int | None = None,
        *,
        targets: str | Sequence[str] | None = None,
        joint: JointMethod | None = None,
        num_beams: int = 10,
        batch_size: int = 32,
        truncation: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        clean: bool = True,
    ) -> Any:
        """The most probable fills of every mask.

        Args:
            texts: One text, a list, or an iterator, which is read no further ahead than 32 batches.
            top_k: K, fills for each mask. Default: 5; with targets, all of them in their order.
            targets: Score these words and no others: entries of the vocabulary (``"Ġred"``), or text (``" red"``).
            joint: Fill a text's masks so that they fit each other; see `train_loop.inference.joint_fill.fill_jointly`.
            num_beams: For ``joint="beam"``.
            batch_size: Texts in one forward.
            truncation: Cut a text that is longer than the model, around its masks.
            tokenizer_kwargs: For the tokenizer.
            clean: Give sequences without special tokens, also of texts with several masks.

        Returns:
            For one text with one mask, K fills; with several masks, a list of that for each mask; for a list
            (iterator) of texts, a list (iterator) of the above. A fill has ``score`` (probability), ``token``,
            ``token_str`` and ``sequence``; ``token`` is a list where a target has several tokens.
            With ``joint``: K fills for a text, ``token`` and ``token_str`` being lists with one item a mask.

        Raises:
            ValueError: A setting, a target or a text that cannot work.
        """
        self._check(top_k, targets, joint, num_beams, batch_size)
        fill: Callable[[Sequence[Row]], list[Any]]
        if targets is not None:
            pieces = target_pieces(self.tokenizer, targets)
            fill = functools.partial(self._fill_targets, pieces=pieces, top_k=top_k, batch_size=batch_size, clean=clean)
        else:
            fill = functools.partial(self._fill, top_k=top_k or _DEFAULT_TOP_K, batch_size=batch_size, clean=clean)
            if joint is not None:
                fill = functools.partial(
                    self._fill_jointly,
                    method=joint,
                    top_k=top_k or _DEFAULT_TOP_K,
                    num_beams=num_beams,
                    batch_size=batch_size,
                )
        encode = functools.partial(self.predictor.encode, truncation=truncation, tokenizer_kwargs=tokenizer_kwargs)
        if isinstance(texts, str):
            return fill(encode([texts]))[0]
        answers = self._stream(texts, encode, fill, _BATCHES_AT_ONCE * batch_size)
        return list(answers) if isinstance(texts, Sequence) else answers

    def _check(self, top_k: int | None, targets: object, joint: str | None, num_beams: int, batch_size: int) -> None:
        vocab_size = self.predictor.vocab_size
        if top_k is not None and not 1 <= top_k <= vocab_size:
            raise ValueError(f"top_k={top_k} must be between 1 and {vocab_size}, the size of the vocabulary")
        for name, value in (("batch_size", batch_size), ("num_beams", num_beams)):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        if joint is not None and joint not in JOINT_METHODS:
            raise ValueError(f"joint={joint!r} must be one of {', '.join(JOINT_METHODS)}")
        if joint is not None and targets is not None:
            raise ValueError("targets are scored mask by mask: leave out targets or joint")

    @staticmethod
    def _stream(
        texts: Iterable[str],
        encode: Callable[..., list[Row]],
        fill: Callable[[Sequence[Row]], list[Any]],
        at_once: int,
    ) -> Iterator[Any]:
        for first, window in windows(texts, at_once):
            yield from fill(encode(window, first=first))

    def _fill(self, rows: Sequence[Row], top_k: int, batch_size: int, *, clean: bool) -> list[Any]:
        """The K largest logits of each mask."""
        queries = [Query(row, self.predictor.masks(row)) for row in rows]
        answers: list[Any] = [None] * len(rows)
        for indices, logits_MV in self.predictor.batches(queries, batch_size):
            values_MK, tokens_MK = logits_MV.topk(top_k)
            scores_MK = (values_MK - logits_MV.logsumexp(-1, keepdim=True)).exp()
            per_mask = zip(scores_MK.tolist(), tokens_MK.tolist(), strict=True)
            for i in indices:
                fills = []
                for mask in queries[i].positions:
                    scores, tokens = next(per_mask)
                    pairs = zip(scores, tokens, strict=True)
                    fills.append([self._answer(rows[i], mask, (token,), score, clean) for score, token in pairs])
                answers[i] = fills[0] if len(fills) == 1 else fills
        return answers

    def _fill_targets(
        self, rows: Sequence[Row], pieces: Sequence[Pieces], top_k: int | None, batch_size: int, *, clean: bool
    ) -> list[Any]:
        """All targets in their order, or the best K of them."""
        answers = []
        for row, scores in zip(rows, score_targets(self.predictor, rows, pieces, batch_size), strict=True):
            fills = []
            for mask, of_mask in zip(self.predictor.masks(row), scores, strict=True):
                chosen = list(range(len(pieces)))
                if top_k is not None:
                    chosen = sorted(chosen, key=of_mask.__getitem__, reverse=True)[:top_k]
                fills.append([self._answer(row, mask, pieces[index], of_mask[index], clean) for index in chosen])
            answers.append(fills[0] if len(fills) == 1 else fills)
        return answers

    def _fill_jointly(
        self, rows: Sequence[Row], method: JointMethod, top_k: int, num_beams: int, batch_size: int
    ) -> list[list[Fill]]:
        found = fill_jointly(self.predictor, rows, method, top_k=top_k, num_beams=num_beams, batch_size=batch_size)
        return [
            [self._joint_answer(filling, self.predictor.masks(row)) for filling in fillings]
            for row, fillings in zip(rows, found, strict=True)
        ]

    def _joint_answer(self, filling: Filling, masks: Sequence[int]) -> Fill:
        tokens = [filling.row[mask] for mask in masks]
        return {
            "score": math.exp(filling.log_prob),
            "token": tokens,
            "token_str": [self._token_str(token) for token in tokens],
            "sequence": self.tokenizer.decode(list(filling.row), skip_special_tokens=True),
        }

    def _answer(self, row: Row, mask: int, tokens: Pieces, score: float, clean: bool) -> Fill:
        """A fill in the pipeline's form; where there are several masks, the others stay visible in ``sequence``."""
        filled = [*row[:mask], *tokens, *row[mask + 1 :]]
        if row.count(self.tokenizer.mask_token_id) == 1:
            sequence = self.tokenizer.decode(filled, skip_special_tokens=True)
        else:
            sequence = self._clean(filled) if clean else self.tokenizer.decode(filled)
        return {
            "score": score,
            "token": tokens[0] if len(tokens) == 1 else list(tokens),
            "token_str": self._token_str(tokens[0]) if len(tokens) == 1 else self.tokenizer.decode(list(tokens)),
            "sequence": sequence,
        }

    def _clean(self, row: Row) -> str:
        """The text of a row with masks, without its other special tokens."""
        tokenizer = self.tokenizer
        mask = tokenizer.mask_token
        special = {*tokenizer.all_special_ids} - {tokenizer.mask_token_id}
        text = tokenizer.decode([token for token in row if token not in special])
        # RoBERTa's mask takes the space before it along.
        return re.sub(rf"(?<=[\w.,:;!?)>]){re.escape(mask)}", f" {mask}", text)
