"""The masks of this project for transformers' `Trainer`, or for a DataLoader of the user's own."""

import itertools
import secrets
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from data.batches.collator import Collator
from data.batches.hashing import key64
from data.batches.masking import MASKINGS, check_choice, check_replacement, needs_words, uniform
from data.blocks.vocabulary import vocabulary
from data.blocks.words import require_words, word_starts
from data.functions import find

_IGNORED = -100  # the label that cross entropy ignores


@dataclass(eq=False)
class MaskedLMCollator:
    """A drop-in for `transformers.DataCollatorForLanguageModeling`, with the same batches and better masks.

    With a ``seed`` too, masks differ by epoch, worker and rank. A random token is never a special one, words are those
    of the tokenizer, and 80/10/10 holds for words and spans too. With a ``seed``, a new collator repeats its masks
    after the same ``torch.manual_seed``, from which a DataLoader seeds its workers.

    A ``masking`` that needs words, such as "whole_word" (transformers' ``whole_word_mask=True``) and "span", needs
    ``word_ids`` in each feature: a list with None for special tokens, as from ``BatchEncoding.word_ids(i)``. `Trainer`
    drops that column unless ``remove_unused_columns=False``.
    """

    tokenizer: PreTrainedTokenizerBase  # pads, and gives the special tokens
    mlm: bool = True  # the second argument as in transformers; all others are given by name
    _: KW_ONLY
    mlm_probability: float = 0.15  # rate at which tokens are chosen to be predicted
    masking: str = "token"  # a name in `MASKINGS`, or path/to/file.py:name
    mask_replace_prob: float = 0.8  # fraction of the chosen tokens that become the mask token
    random_replace_prob: float = 0.1  # fraction that become a random token; the rest stay
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"  # or "np"
    seed: int | None = None  # of the masks; None takes one from the operating system
    gives_positions: bool = False  # adds masked_positions, [M] in the flattened [B * L], for `MaskedLMLoss`
    _masks: Collator = field(init=False, repr=False)
    _rank: int = field(init=False, repr=False, default=0)
    _num_calls: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        if self.mlm is not True:
            raise ValueError(f"mlm={self.mlm} must be True: this collator only masks; mlm_probability goes by name")
        if self.tokenizer.mask_token_id is None:
            raise ValueError(f"tokenizer {self.tokenizer.name_or_path!r} has no mask token: use a masked model's")
        choose = find("masking", self.masking, MASKINGS, check_choice)
        if getattr(choose, "by_block", False):
            raise ValueError(f"masking={self.masking} gives weights, which Trainer does not read: use mlm train")
        if needs_words(choose):
            require_words(self.tokenizer, self.masking)
        if not 0 <= self.mlm_probability <= 1:
            raise ValueError(f"mlm_probability={self.mlm_probability} must be between 0 and 1")
        check_replacement(self.mask_replace_prob, self.random_replace_prob)
        if self.seed is None:
            self.seed = secrets.randbits(63)
        shares = self.mask_replace_prob, self.random_replace_prob
        self._masks = Collator(vocabulary(self.tokenizer), self.seed, 0, choose, shares)

    def __getstate__(self) -> dict[str, Any]:
        """The state for a spawned worker, with the rank: its process is in no group and cannot ask for it."""
        return {**self.__dict__, "_rank": self._current_rank()}

    def __call__(self, features: list[Any], return_tensors: str | None = None) -> Any:
        """Pad and mask B mappings with ``input_ids`` and other columns that the tokenizer pads, or B bare sequences.

        They are lists, numpy or torch, of any lengths. Returns the padded features with ``input_ids`` after masking and
        ``labels``, both ``[B, L]`` int64. Labels are -100 where nothing is to be predicted. Raises ValueError if words
        are needed and a feature has no ``word_ids``.
        """
        kind = return_tensors or self.return_tensors
        if kind not in ("pt", "np"):
            raise ValueError(f"return_tensors={kind!r} must be 'pt' or 'np'")
        bare = not isinstance(features[0], Mapping)
        rows = [{"input_ids": ids} for ids in features] if bare else [dict(feature) for feature in features]
        word_ids = [row.pop("word_ids", None) for row in rows]
        lengths = [len(row["input_ids"]) for row in rows]
        batch = pad_without_fast_tokenizer_warning(
            self.tokenizer,
            rows,
            padding=len(set(lengths)) > 1 or lengths[0] % (self.pad_to_multiple_of or 1) != 0,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_attention_mask=False if bare else None,
            return_tensors=kind,
        )
        batch.pop("offset_mapping", None)
        input_ids = np.asarray(batch["input_ids"]).copy()  # which is masked
        if (special := batch.pop("special_tokens_mask", None)) is None:
            special = self._masks.vocabulary.is_special[input_ids]
        is_token = np.arange(input_ids.shape[1]) < np.array(lengths)[:, None]
        if self.tokenizer.padding_side == "left":
            is_token = is_token[:, ::-1]
        starts = self._word_starts(input_ids, word_ids, is_token) if needs_words(self._masks.choose) else None
        draws = uniform(np.arange(len(input_ids)), input_ids.shape[1], *self._next_key())
        labels = np.full_like(input_ids, _IGNORED)
        allowed = ~np.asarray(special).astype(bool) & is_token
        chosen, tokens = self._masks.mask(input_ids, allowed, starts, draws, self.mlm_probability)
        labels.reshape(-1)[chosen] = tokens
        batch["input_ids"] = torch.from_numpy(input_ids) if kind == "pt" else input_ids
        batch["labels"] = torch.from_numpy(labels) if kind == "pt" else labels
        if self.gives_positions:
            batch["masked_positions"] = torch.from_numpy(chosen) if kind == "pt" else chosen
        return dict(batch) if bare else batch

    def _next_key(self) -> tuple[int, int]:
        """A key of its own for each call, worker, epoch and rank."""
        assert self.seed is not None
        worker = torch.utils.data.get_worker_info()
        # PyTorch draws new worker seeds for each epoch; a worker that lives longer continues to count its calls.
        key = key64(self.seed, self._current_rank(), 0 if worker is None else worker.seed)
        self._num_calls += 1
        return key, self._num_calls

    def _current_rank(self) -> int:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank()
        return self._rank

    def _word_starts(self, input_ids: np.ndarray, word_ids: list[Any], is_token: np.ndarray) -> np.ndarray:
        """``[B, L]`` bool; a padding token is a word of its own."""
        lengths = is_token.sum(1).tolist()
        for ids, length in zip(word_ids, lengths, strict=True):
            if ids is None or len(ids) != length:
                raise ValueError(
                    f"masking={self.masking} needs in each feature word_ids, one for each of its input_ids, None for "
                    "special tokens: add the tokenizer's word_ids(i), and give Trainer remove_unused_columns=False"
                )
        starts = np.ones(input_ids.shape, dtype=bool)
        flat_ids = itertools.chain.from_iterable(word_ids)
        starts[is_token] = word_starts(self.tokenizer, input_ids[is_token], flat_ids, lengths)
        return starts
