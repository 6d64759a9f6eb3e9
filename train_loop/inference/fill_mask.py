"""Fills ``<mask>`` with the most probable tokens.

It gives the answers of ``pipeline("fill-mask")`` by explicit steps: encode the text, find its masks, run the head there
only, and take the top-k of the logits.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from train_loop.inference.predictor import Choice, MaskPredictor, Query
from train_loop.inference.targets import score_targets, target_pieces
from train_loop.inference.unmasking import JOINT_METHODS, ORDERS, Filling, JointMethod, Order, fill_jointly, unmask

Fill = dict[str, Any]  # score, token, token_str, sequence: the pipeline's fields
Row = list[int]

_DEFAULT_TOP_K = 5
_BATCHES_AT_ONCE = 32  # are read ahead, so that texts of similar length share a batch


class FillMask(MaskPredictor):
    """Fills masks with a model and its tokenizer; it is called as the pipeline is.

    >>> fill_mask = FillMask.from_pretrained("runs/quickstart/model")
    >>> fill_mask("The default <mask> is None.", top_k=3)

    The answers have the pipeline's scores, order and fields. ``README.md`` in this folder lists the differences.
    """

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
        """Find the most probable fills of every mask.

        Args:
            texts: One text, a list, or an iterator, which is read no further ahead than 32 batches.
            top_k: K, the number of fills for each mask. Default: 5; with targets, all of them in their order.
            targets: Score only these words: entries of the vocabulary (``"Ġred"``), or text (``" red"``). A word of
                several tokens is scored over all of them, where the pipeline takes the first.
            joint: Fill a text's masks so that they fit each other; see `train_loop.inference.unmasking.fill_jointly`.
            num_beams: The width of ``joint="beam"``.
            batch_size: Number of texts in one forward.
            truncation: Cut a text that is longer than the model, around its masks.
            tokenizer_kwargs: For the tokenizer.
            clean: Give sequences without special tokens, also of texts with several masks, where the pipeline
                leaves ``<s>`` and ``</s>``.

        Returns:
            For one text with one mask, K fills; with several masks, a list of such lists, one for each mask; for a
            list (iterator) of texts, a list (iterator) of the above. A fill has ``score`` (probability), ``token``,
            ``token_str`` and ``sequence``; ``token`` is a list where a target has several tokens.
            With ``joint``: K fills for a text, whose ``token`` and ``token_str`` are lists with one item for each mask.

        Raises ValueError if a setting, a target or a text cannot work.
        """
        self._check(top_k, targets, joint, num_beams, batch_size)
        pieces = None if targets is None else target_pieces(self.tokenizer, targets)
        count = top_k or _DEFAULT_TOP_K

        def answer(texts: list[str], first: int | None) -> list[Any]:
            rows = self.encode(texts, first=first, truncation=truncation, tokenizer_kwargs=tokenizer_kwargs)
            if joint is not None:
                found = fill_jointly(self, rows, joint, top_k=count, num_beams=num_beams, batch_size=batch_size)
                pairs = zip(rows, found, strict=True)
                return [[self._joint_fill(row, filling) for filling in fillings] for row, fillings in pairs]
            if pieces is not None:
                choices = score_targets(self, rows, pieces, batch_size)
            else:
                choices = self.top_k([Query(row, self.masks(row)) for row in rows], count, batch_size)
            return [self._fills(row, of_row, top_k, clean) for row, of_row in zip(rows, choices, strict=True)]

        return self.answer_each(texts, answer, _BATCHES_AT_ONCE * batch_size)

    def generate(
        self,
        texts: Sequence[str],  # prompts, which stay as they are; several of one are continued differently
        num_tokens: int = 0,  # masks to add to each
        *,
        num_steps: int | None = None,  # forwards in which the masks of a text are filled; None: one a mask
        order: Order = "confidence",  # which masks a step fills; see `unmasking.unmask`
        temperature: float = 1.0,  # of the draw of a token; near 0, always the most probable one
        top_k: int = 20,  # how many of the most probable tokens are drawn from
        seed: int = 0,  # of the draws
        batch_size: int = 32,  # number of texts in one forward
        watch: Callable[[list[str]], None] | None = None,  # gets the texts before the first step and after each
    ) -> list[str]:
        """Write text in the place of masks: those of the texts, and so many more tokens at their ends.

        Raises ValueError if a setting or a text cannot work.
        """
        for name, value in (("num_steps", num_steps), ("top_k", top_k), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        if num_tokens < 0 or not temperature > 0:
            raise ValueError(f"num_tokens={num_tokens} must be 0 or more, and temperature={temperature} above 0")
        if order not in ORDERS:
            raise ValueError(f"order={order!r} must be one of {', '.join(ORDERS)}")
        rows = self.encode([text + str(self.tokenizer.mask_token) * num_tokens for text in texts], first=1)
        special = frozenset(self.tokenizer.all_special_ids)
        options: dict[str, Any] = {"num_steps": num_steps, "top_k": top_k, "temperature": temperature, "seed": seed}
        options |= {"excluded": special, "batch_size": batch_size}
        written = list(texts)
        for fillings in unmask(self, [Filling.of(self, row) for row in rows], order, **options):
            written = [self._clean(list(filling.row)) for filling in fillings]
            if watch is not None:
                watch(written)
        return written

    def _check(self, top_k: int | None, targets: object, joint: str | None, num_beams: int, batch_size: int) -> None:
        if top_k is not None and not 1 <= top_k <= self.vocab_size:
            raise ValueError(f"top_k={top_k} must be between 1 and {self.vocab_size}, the size of the vocabulary")
        for name, value in (("batch_size", batch_size), ("num_beams", num_beams)):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        if joint is not None and joint not in JOINT_METHODS:
            raise ValueError(f"joint={joint!r} must be one of {', '.join(JOINT_METHODS)}")
        if joint is not None and targets is not None:
            raise ValueError("targets are scored mask by mask: omit targets or joint")

    def _joint_fill(self, row: Row, filling: Filling) -> Fill:
        tokens = [filling.row[mask] for mask in self.masks(row)]
        return {
            "score": math.exp(filling.log_prob),
            "token": tokens,
            "token_str": [self._token_str((token,)) for token in tokens],
            "sequence": self.tokenizer.decode(list(filling.row), skip_special_tokens=True),
        }

    def _fills(self, row: Row, choices: list[list[Choice]], top_k: int | None, clean: bool) -> Any:
        """The fills of each mask of a row, the best K where ``top_k`` is given; of its only mask without a list."""
        fills = []
        for mask, of_mask in zip(self.masks(row), choices, strict=True):
            kept = of_mask if top_k is None else sorted(of_mask, key=lambda c: c[0], reverse=True)[:top_k]
            fills.append([self._fill(row, mask, choice, clean) for choice in kept])
        return fills[0] if len(fills) == 1 else fills

    def _fill(self, row: Row, mask: int, choice: Choice, clean: bool) -> Fill:
        """A fill in the pipeline's form; where there are several masks, the others stay visible in ``sequence``."""
        log_prob, tokens = choice
        filled = [*row[:mask], *tokens, *row[mask + 1 :]]
        if row.count(self.tokenizer.mask_token_id) == 1:
            sequence = self.tokenizer.decode(filled, skip_special_tokens=True)
        else:
            sequence = self._clean(filled) if clean else self.tokenizer.decode(filled)
        return {
            "score": math.exp(log_prob),
            "token": tokens[0] if len(tokens) == 1 else list(tokens),
            "token_str": self._token_str(tokens),
            "sequence": sequence,
        }

    @functools.cached_property
    def _token_str(self) -> Callable[[tuple[int, ...]], str]:
        decode = self.tokenizer.decode
        return functools.lru_cache(maxsize=100_000)(lambda tokens: decode(list(tokens)))

    def _clean(self, row: Row) -> str:
        """The text of a row with its masks, without its other special tokens."""
        mask = self.tokenizer.mask_token
        special = {*self.tokenizer.all_special_ids} - {self.tokenizer.mask_token_id}
        text = self.tokenizer.decode([token for token in row if token not in special])
        # RoBERTa's mask token includes the space before it, and is decoded without it.
        return re.sub(rf"(?<=[\w.,:;!?)>]){re.escape(mask)}", f" {mask}", text)
