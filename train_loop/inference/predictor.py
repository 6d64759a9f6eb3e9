"""Tokens in, logits at chosen positions out: what filling masks and scoring text have in common.

The head runs at the asked positions only, rows of like length share a batch, and
nothing as large as the vocabulary leaves the device.
"""

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from train_loop.model import load_model, max_positions
from train_loop.objectives.checks import gather_in_last_layer
from train_loop.objectives.masked_logits import MaskedLogits

_MOST_POSITIONS = 512  # in one batch: of a vocabulary of 50,000 their logits are 100 MB

_num_asking: dict[PreTrainedModel, int] = {}  # threads that ask a model which was in training
_mode_lock = threading.Lock()
_tokenizer_lock = threading.Lock()


class Query(NamedTuple):
    """Which logits are wanted.

    Attributes:
        input_ids: ``[L]``, a text with its special tokens.
        positions: Where in it.
    """

    input_ids: Sequence[int]
    positions: Sequence[int]


class Ask(NamedTuple):
    """A token whose probability at a position is wanted, given the other tokens."""

    input_ids: tuple[int, ...]
    position: int
    token: int


class MaskPredictor:
    """A masked language model and its tokenizer, ready to be asked."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        """Take a model as it is, or move it to a device or a dtype first.

        Raises:
            ValueError: The model has no MLM head, the tokenizer no mask token, or there is no such dtype.
        """
        if model.get_output_embeddings() is None:
            raise ValueError(
                f"{type(model).__name__} has no masked-language-modeling head: load it with AutoModelForMaskedLM"
            )
        if tokenizer.mask_token_id is None:
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path!r} has no mask token: use the one the model was trained with"
            )
        if device is not None:
            model.to(device)
        self.logits = MaskedLogits(model)
        # Tried out in full precision: a difference by rounding would look like one in substance.
        if model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type):
            with _without_dropout(model):
                gather_in_last_layer(self.logits)
        if dtype is not None:
            model.to(_dtype(dtype))
        self.tokenizer = tokenizer
        self.longest = max_positions(model)
        self.vocab_size = model.get_input_embeddings().num_embeddings
        pads = (tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None), 0)
        self._pad = next(pad for pad in pads if pad is not None)  # behind the attention mask any will do

    def encode(
        self,
        texts: Sequence[str],
        *,
        first: int | None = None,
        truncation: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
    ) -> list[list[int]]:
        """The tokens of texts that each have a mask, checked.

        Args:
            first: Number of the first text, for messages; None where there is only one.
            truncation: Cut a text that is longer than the model, so that its masks stay.
            tokenizer_kwargs: For the tokenizer; rows are padded here, so its ``padding`` is ignored.

        Raises:
            ValueError: A text that is empty, has no mask or is too long.
        """
        ours = {"padding": False, "return_tensors": None, "return_attention_mask": False, "verbose": False}
        rows = tokenize(self.tokenizer, list(texts), **{**(tokenizer_kwargs or {}), **ours})["input_ids"]
        for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
            where = "" if first is None else f" (text {first + i})"
            if self.tokenizer.mask_token_id not in row:
                raise ValueError(self._why_no_mask(text, where))
            if len(row) > self.longest:
                rows[i] = self._cut(row, text, where, truncation=truncation)
        return rows

    def masks(self, row: Sequence[int]) -> list[int]:
        """Where a row has masks."""
        return [i for i, token in enumerate(row) if token == self.tokenizer.mask_token_id]

    def _why_no_mask(self, text: str, where: str) -> str:
        mask = self.tokenizer.mask_token
        if not text.strip():
            return f"an empty text{where}: write one with {mask} where a word is to be filled in"
        if mask in text:
            return f"tokenizer_kwargs cut off the mask of {excerpt(text)}{where}: truncation=True keeps it"
        return f"no mask token in {excerpt(text)}{where}: write {mask} where a word is to be filled in"

    def _cut(self, row: list[int], text: str, where: str, *, truncation: bool) -> list[int]:
        """The part of a row around its masks that the model has positions for, between its special tokens."""
        if not truncation:
            raise ValueError(
                f"a text of {len(row):,} tokens is longer than the model's {self.longest:,} positions{where}: "
                f"{excerpt(text)}; shorten it, or cut it around its mask with truncation"
            )
        around = tokenize(self.tokenizer, "")["input_ids"]
        lead = next((i for i, (a, b) in enumerate(zip(row, around, strict=False)) if a != b), len(around))
        body = row[lead : len(row) - (len(around) - lead)]
        room = self.longest - len(around)
        masks = self.masks(body)
        if masks[-1] - masks[0] >= room:
            raise ValueError(
                f"the masks of {excerpt(text)}{where} lie {masks[-1] - masks[0] + 1:,} tokens apart, "
                f"more than the model's {self.longest:,} positions hold: fill them one by one"
            )
        start = min(max((masks[0] + masks[-1] + 1 - room) // 2, 0), len(body) - room)
        return [*row[:lead], *body[start : start + room], *around[lead:]]

    def batches(self, queries: Sequence[Query], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Yield, batch by batch, which queries it answers and their logits.

        The longest come first: what does not fit in memory fails at once.

        Yields:
            Indices of queries, and ``[M, V]`` logits in fp32: M is all their positions, in that order.
        """
        order = sorted(range(len(queries)), key=lambda i: -len(queries[i].input_ids))
        while order:
            count, num_positions = 0, 0
            while count < min(batch_size, len(order)):
                num_positions += len(queries[order[count]].positions)
                if count and num_positions > _MOST_POSITIONS:
                    break
                count += 1
            indices, order = order[:count], order[count:]
            yield indices, self._logits([queries[i] for i in indices])

    @torch.no_grad()
    def _logits(self, queries: Sequence[Query]) -> Tensor:
        """``[M, V]`` in fp32, without dropout, of one batch whose first query is the longest."""
        model = self.logits.model
        length = len(queries[0].input_ids)
        rows = [[*ids, *[self._pad] * (length - len(ids))] for ids, _ in queries]
        flat = [number * length + position for number, query in enumerate(queries) for position in query.positions]
        attention_mask = None  # none is needed without padding
        if len(queries[-1].input_ids) < length:
            lengths = torch.tensor([len(ids) for ids, _ in queries])
            attention_mask = (torch.arange(length) < lengths[:, None]).long().to(model.device)
        with _without_dropout(model):
            return self.logits(
                torch.tensor(rows).to(model.device), torch.tensor(flat).to(model.device), attention_mask
            ).float()

    def log_probs(self, asks: Sequence[Ask], batch_size: int) -> list[float]:
        """log p of each asked token at its position; rows and positions that are asked again are computed once."""
        members: dict[tuple[int, ...], list[int]] = {}
        for number, ask in enumerate(asks):
            members.setdefault(ask.input_ids, []).append(number)
        rows = list(members)
        queries = [Query(row, sorted({asks[number].position for number in members[row]})) for row in rows]
        result = [0.0] * len(asks)
        for indices, logits_MV in self.batches(queries, batch_size):
            numbers, places, first = [], [], 0
            for i in indices:
                place = {position: first + j for j, position in enumerate(queries[i].positions)}
                first += len(place)
                numbers += members[rows[i]]
                places += [place[asks[number].position] for number in members[rows[i]]]
            tokens = torch.tensor([asks[number].token for number in numbers], device=logits_MV.device)
            where = torch.tensor(places, device=logits_MV.device)
            values = logits_MV[where, tokens] - logits_MV.logsumexp(-1)[where]
            for number, value in zip(numbers, values.tolist(), strict=True):
                result[number] = value
        return result


@contextmanager
def _without_dropout(model: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode; a model that was in training is so again when the last thread that asks it is done."""
    with _mode_lock:
        is_trained = model.training or model in _num_asking
        if is_trained:
            _num_asking[model] = _num_asking.get(model, 0) + 1
            model.eval()
    try:
        yield
    finally:
        if is_trained:
            with _mode_lock:
                _num_asking[model] -= 1
                if not _num_asking[model]:
                    del _num_asking[model]
                    model.train()


class PredictorUser:
    """What `FillMask` and `TextScorer` are: a `MaskPredictor`, and something to ask of it; many threads may at once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        """Take a model where and as it is, unless a device or a dtype is given.

        Raises:
            ValueError: See `MaskPredictor`.
        """
        self.predictor = MaskPredictor(model, tokenizer, device, dtype)
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, name: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
    ) -> Self:
        """Load model and tokenizer from a folder or the Hub, onto the GPU if there is one.

        Raises:
            ValueError: There is no such model or tokenizer, or the model has no trained MLM head.
        """
        model = load_model(name, needs_all_weights=True).eval()
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name!r} has no tokenizer: {' '.join(str(error).split())}") from error
        return cls(model, tokenizer, device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: str | list[str], **settings: Any) -> BatchEncoding:
    """``tokenizer(texts, **settings)``, one thread at a time: a call sets the tokenizer's own state of truncation."""
    with _tokenizer_lock:
        return tokenizer(texts, **settings)


def windows(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    """Yield so many texts at once, and the number of the first, counted from 1."""
    iterator = iter(texts)
    first = 1
    while window := list(itertools.islice(iterator, size)):
        yield first, window
        first += len(window)


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is no floating-point type of torch: use float32, bfloat16 or float16")
    return found


def excerpt(text: str) -> str:
    """The beginning of a text, quoted."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
