"""Fill ``<mask>`` by the top-k of its logits.

What ``pipeline("fill-mask")`` answers, from explicit steps: encode, find the
mask, run the head there only, take the k largest logits, and turn them into
probabilities with one log-sum-exp.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from train_loop.model import load_model, max_positions
from train_loop.objective import MaskedLMObjective

Fill = dict[str, Any]  # score, token, token_str, sequence: the pipeline's fields


class FillMask:
    """Fills masks with a model and its tokenizer.

    >>> fill = FillMask.from_pretrained("runs/quickstart/model")
    >>> fill("The default <mask> is None.", top_k=3)
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.mask_token_id is None:
            raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no mask token")
        self.objective = MaskedLMObjective(model)
        self._longest = max_positions(model)
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device | None = None) -> "FillMask":
        """Load model and tokenizer from a folder or the Hub, onto the GPU if there is one.

        Raises:
            ValueError: There is no such model or tokenizer, or it cannot fill masks.
        """
        model = load_model(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name!r} has no tokenizer: {' '.join(str(error).split())}") from error
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device).eval(), tokenizer)

    def __call__(self, texts: str | Sequence[str], top_k: int = 5, batch_size: int = 32) -> list[Any]:
        """The most probable fills of every mask.

        Args:
            texts: One text or several, each with one mask token or more.
            top_k: K, fills for each mask.
            batch_size: Texts in one forward.

        Returns:
            For one text with one mask, K fills; with several masks, a list of
            that for each mask; for a list of texts, a list of the above. A fill
            has ``score`` (probability), ``token``, ``token_str``, ``sequence``.

        Raises:
            ValueError: A text without a mask, or longer than the model; or a
                ``top_k`` beyond the vocabulary.
        """
        if isinstance(texts, str):
            return next(self._fill([texts], top_k))
        batches = (texts[i : i + batch_size] for i in range(0, len(texts), batch_size))
        return [fills for batch in batches for fills in self._fill(batch, top_k)]

    @torch.no_grad()
    def _fill(self, texts: Sequence[str], top_k: int) -> Iterator[list[Any]]:
        model, tokenizer = self.objective.model, self.tokenizer
        rows = tokenizer(list(texts))["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if tokenizer.mask_token_id not in row:
                raise ValueError(
                    f"no mask token in {text!r}: write {tokenizer.mask_token} where a word is to be filled in"
                )
            if len(row) > self._longest:
                raise ValueError(
                    f"a text of {len(row)} tokens is longer than the model's {self._longest} positions: {text!r:.60}"
                )
        inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
        # Without padding no attention mask is needed.
        attention_mask = inputs["attention_mask"] if len({len(row) for row in rows}) > 1 else None
        input_ids = inputs["input_ids"]
        positions = torch.nonzero(input_ids.flatten() == tokenizer.mask_token_id).squeeze(1)
        logits_MV = self.objective.masked_logits(input_ids, positions, attention_mask).float()
        if not 1 <= top_k <= logits_MV.shape[1]:
            raise ValueError(f"top_k={top_k} must be between 1 and {logits_MV.shape[1]}, the size of the vocabulary")
        values_MK, tokens_MK = logits_MV.topk(top_k)
        scores_MK = (values_MK - logits_MV.logsumexp(-1, keepdim=True)).exp()
        per_mask = zip(scores_MK.tolist(), tokens_MK.tolist(), strict=True)
        for row in rows:
            masks = [i for i, token in enumerate(row) if token == tokenizer.mask_token_id]
            fills = [self._decode(row, mask, *next(per_mask), skip_special_tokens=len(masks) == 1) for mask in masks]
            yield fills[0] if len(masks) == 1 else fills

    def _decode(
        self, row: list[int], mask: int, scores: list[float], tokens: list[int], *, skip_special_tokens: bool
    ) -> list[Fill]:
        """The fills of one mask; where there are several masks, the others stay visible in ``sequence``."""
        return [
            {
                "score": score,
                "token": token,
                "token_str": self.tokenizer.decode([token]),
                "sequence": self.tokenizer.decode(
                    [*row[:mask], token, *row[mask + 1 :]], skip_special_tokens=skip_special_tokens
                ),
            }
            for score, token in zip(scores, tokens, strict=True)
        ]
